"""Finished evaluations beside each other: only what was made alike is compared, and the pictures are theirs."""

import json
import re
import shutil

import pytest

from dalle.cli.evaluation.evaluate import evaluate
from dalle.evaluation.steps.compared import read_compared
from dalle.evaluation.steps.manifest import read_manifest

OPTIONS = ["--n", "2", "--keep", "1", "--most", "6", "--blur_radii", "[0,1]", "--sampling.precision", "fp32"]


@pytest.fixture(scope="module")
def evaluated(models, shapes_folder, tmp_path_factory):
    """Two evaluations of the same captions, with other seeds."""
    folder = tmp_path_factory.mktemp("compared")
    given = ["--model", str(models), "--reference", f"{shapes_folder}/valid-000.tar", *OPTIONS]
    for name, seed in (("one", "0"), ("two", "50")):
        evaluate([*given, "--seed", seed, "--output", str(folder / name)])
    return folder


def _compare(folder, output, *names):
    evaluate(["--compare", " ".join(f"{name}={folder / name}" for name in names), "--output", str(output)])
    return json.loads((output / "metrics.json").read_text()), (output / "report.html").read_text()


def _changed(folder, name, change):
    """Another evaluation, with a changed manifest."""
    shutil.copytree(folder / "two", folder / name, dirs_exist_ok=True)
    path = folder / name / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_figures_are_those_of_each(evaluated, tmp_path):
    found, page = _compare(evaluated, tmp_path / "out", "one", "two")
    for name in ("one", "two"):
        figures = read_manifest(evaluated / name / "manifest.json")["figures"]
        distances = figures["distances_efficientnet-lite0"]["by_radius"]
        assert found[name]["Fréchet distance, efficientnet-lite0"] == distances[0]["frechet_distance"]
        assert found[name]["Fréchet distance, efficientnet-lite0, blurred 1 px"] == distances[1]["frechet_distance"]
        assert found[name]["CLIP score"] == figures["judged"]["samples"]["clip_score"]
        assert (
            found[name]["caption found first, real images"] == figures["judged"]["real images"]["image_to_caption_r1"]
        )
        assert found[name]["right, of all candidates"] == figures["ranking"]["unranked"]["1"]
        assert found[name]["right, best of 2"] == figures["ranking"]["reranked"]["2"]
    assert found["one"] != found["two"]
    assert "The judge is the reranker of one, two" in page


def test_pictures_are_the_first_of_each_beside_the_real_one(evaluated, tmp_path):
    output = tmp_path / "out"
    _, page = _compare(evaluated, output, "one", "two")
    sources = re.findall(r'src="(images/[^"]+)"', page)
    assert sources[:3] == ["images/real/00000.png", "images/0/00000.png", "images/1/00000.png"]
    assert len(sources) == 18
    for number in range(6):
        for place, name in enumerate(("one", "two")):
            shown = (output / f"images/{place}/{number:05}.png").read_bytes()
            assert shown == (evaluated / name / f"samples/{number:05}/samples/0000.png").read_bytes()


@pytest.mark.parametrize(
    ("change", "missing", "why"),
    [
        (
            lambda m: m["figures"]["distances_efficientnet-lite0"]["features"].update(hash="0"),
            "Fréchet distance, efficientnet-lite0",
            "Distances by efficientnet-lite0 do not compare: the networks&#x27; weights differ",
        ),
        (
            lambda m: m["identities"]["reference"].update(size_px=64),
            "Fréchet distance, efficientnet-lite0",
            "the real images were brought to different sizes (32 px, 64 px)",
        ),
        (
            lambda m: m["identities"]["reference"].update(pixels="0"),
            "precision, efficientnet-lite0",
            "the real images differ",
        ),
        (
            lambda m: m["figures"]["distances_efficientnet-lite0"].update(num_images=5),
            "recall, efficientnet-lite0",
            "the numbers of images differ",
        ),
        (
            lambda m: m["figures"]["judged"].update(hash="0"),
            "CLIP score",
            "the judges differ",
        ),
    ],
)
def test_what_was_not_made_alike_is_left_out_and_said(evaluated, tmp_path, change, missing, why):
    _changed(evaluated, "changed", change)
    found, page = _compare(evaluated, tmp_path / "out", "one", "changed")
    assert missing not in found["one"] and missing not in found["changed"]
    assert why in page
    assert "right, best of 2" in found["changed"]


def test_refusals(evaluated, tmp_path):
    for spec, message in (
        ("one=a", "give the folders of two evaluations or more"),
        ("one=a one=b", "one is there twice"),
    ):
        with pytest.raises(ValueError, match=message):
            read_compared(spec)
    _changed(evaluated, "others", lambda m: m["captions"].pop())
    with pytest.raises(ValueError, match=r"others \(5 captions\) is not of the captions of one \(6\)"):
        _compare(evaluated, tmp_path / "out", "one", "others")
    with pytest.raises(ValueError, match=r"compare and n: the evaluations tell all that is shown; leave n out"):
        evaluate(["--compare", f"{evaluated / 'one'} {evaluated / 'two'}", "--n", "3", "--output", str(tmp_path / "x")])
    with pytest.raises(ValueError, match=r"manifest .*nowhere"):
        evaluate(["--compare", f"{evaluated / 'one'} {tmp_path / 'nowhere'}", "--output", str(tmp_path / "y")])
