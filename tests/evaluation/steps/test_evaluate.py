"""An evaluation of a small model from end to end, its figures made again by plain code, and from its manifest."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.cli.evaluation.evaluate import evaluate
from dalle.config import Evaluate, Images
from dalle.data.samples import read_pairs
from dalle.data.shapes import Claim, shows
from dalle.evaluation.features.named import features
from dalle.evaluation.layout import read_image, read_layout
from dalle.evaluation.report.page import page
from dalle.evaluation.steps import manifest as manifests
from dalle.evaluation.steps.sources import find_sources
from dalle.models.clip import load_clip
from dalle.models.folder import load_prior, read_config, read_header, save_weights
from dalle.sampling.drawing import read_drawing
from tests.conftest import ROOT

N = 4
OPTIONS = ["--n", str(N), "--keep", "2", "--blur_radii", "[0, 1]", "--most", "12", "--sampling.chunk", "4"]


@pytest.fixture(scope="module")
def evaluated(models, shapes_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "evaluation"
    given = ["--model", str(models), "--reference", f"{shapes_folder}/valid-000.tar"]
    evaluate([*given, "--train", f"{shapes_folder}/train-000.tar", *OPTIONS, "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def metrics(evaluated) -> dict:
    return json.loads((evaluated / "metrics.json").read_text())


@pytest.fixture(scope="module")
def pairs(shapes_folder):
    return list(read_pairs(f"{shapes_folder}/valid-000.tar", Images(augmentation="none"), 32))[:12]


def _frechet(one_NE, other_NE):
    """The definition, by a general square root."""
    from scipy.linalg import sqrtm

    means = [x.mean(axis=0) for x in (one_NE, other_NE)]
    covariances = [np.cov(x, rowvar=False) for x in (one_NE, other_NE)]
    root = sqrtm(covariances[0] @ covariances[1])
    return ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * np.trace(root).real


def test_the_page_names_every_part_and_what_tables_need_of_each(metrics):
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([^`]+)`", page[page.index("## What `metrics.json` holds") : page.index("## Drawn data")]))
    told |= {f"{way}_r{k}" for way in ("image_to_caption", "caption_to_image") for k in (1, 5, 10)}
    assert {re.sub("^distances_.*", "distances_NAME", key) for key in metrics} <= told
    (at, *_), (prior,) = metrics["distances_efficientnet-lite0"]["by_radius"], metrics["stage_two"]["priors"].values()
    named = "class_score (efficientnet-lite0)"
    assert {key for key in at if not key.startswith(named)} - {"radius_px"} <= told
    assert set(metrics["judged"]["samples"]) | {*prior["image"], "rows", "cut_captions", "text_weight"} <= told
    for key in ("psnr_db", "ssim", "lpips", "codes_used", "perplexity", "distances"):
        assert key in metrics["stage_one"] and key in told
    for key in ("auc", "auc_within_captions", "expected_error", "share_right"):
        assert key in metrics["calibration"] and key in told
    for key in ("atoms", "captions", "by_number_of_atoms", "skills", "skills_mean"):
        assert key in metrics["compositional"] and key in told
    for key in ("share_nearer", "real_first_percentile", "sample_nearest", "sample_median"):
        assert key in metrics["memorised"] and key in told
    for key in ("clip_score", "reranked", "any_right", "tapers_at"):
        assert key in metrics["ranking"] and key in told


def test_the_distance_is_that_of_the_first_images(evaluated, metrics, pairs):
    network = features("efficientnet-lite0")
    firsts = np.stack([read_image(each.samples[0]) for each in read_layout(evaluated / "samples")])
    reals = np.stack([pair.image for pair in pairs])
    seen = [network(images).features_BE.astype(np.float64) for images in (firsts, reals)]
    found = metrics["distances_efficientnet-lite0"]["by_radius"][0]["frechet_distance"]
    # the covariances have rank 11 of 1,280, which a general square root meets with little more than half its digits
    assert found == pytest.approx(_frechet(*seen), rel=1e-4)
    # the end of the curve is the same images, in other batches, whose convolutions round otherwise
    assert metrics["ranking"]["frechet_distance (efficientnet-lite0)"][str(N)] == pytest.approx(found, rel=1e-5)


def test_retrieval_and_score_are_those_of_a_plain_loop(evaluated, metrics, models, pairs):
    clip = load_clip(str(models / "clip"), "cpu")
    captions = [pair.captions[0] for pair in pairs]
    with torch.inference_mode():
        texts = clip.embed_texts(clip.tokens(captions)).numpy()
        for name, images in (
            ("samples", [read_image(each.samples[0]) for each in read_layout(evaluated / "samples")]),
            ("real images", [pair.image for pair in pairs]),
        ):
            embedded = clip.embed_images(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)).numpy()
            cosines = embedded @ texts.T
            ranks = [
                sum(cosines[i, j] >= cosines[i, i] for j in range(len(captions)) if captions[j] != captions[i])
                for i in range(len(captions))
            ]
            found = metrics["judged"][name]
            assert found["image_to_caption_r5"] == pytest.approx(np.mean([rank < 5 for rank in ranks]))
            score = 100 * np.maximum(0, np.diag(cosines)).mean()
            assert found["clip_score"] == pytest.approx(score, rel=1e-5)  # fp32 sums in another order
    assert metrics["judged"]["judge_is_reranker"] is True


def test_the_curve_over_n_is_judged_by_the_checker(evaluated, metrics):
    read = read_layout(evaluated / "samples")
    right = [shows(read_image(each.samples[0]), Claim.from_json(each.metadata["scene"])) for each in read]
    assert metrics["ranking"]["reranked"][str(N)] == pytest.approx(np.mean(right))
    assert set(metrics["ranking"]["reranked"]) == {"1", "2", "4"}
    assert metrics["compositional"]["images"] == len(read)  # the reranker's choice, not all that are kept


def test_every_part_is_there(evaluated, metrics):
    parts = ("ranking", "judged", "compositional", "calibration", "memorised", "stage_one", "stage_two")
    assert all(part in metrics for part in parts), metrics.keys()
    text = (evaluated / "report.html").read_text()
    for part in ("samples", *parts, "made"):
        assert f'<section id="{part}">' in text
    for name in text.split('src="')[1:]:
        assert (evaluated / name.split('"')[0]).is_file()


def test_a_manifest_makes_the_same_digits(evaluated, metrics, tmp_path, capsys):
    evaluate(["--manifest", str(evaluated / "manifest.json"), "--output", str(tmp_path / "again")])
    assert "all figures are those of the manifest" in capsys.readouterr().out
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == metrics


def test_where_things_lie_decides_no_digit(evaluated, metrics, models, shapes_folder, tmp_path, capsys):
    """Models in another folder, real images in a shard of another name, and drawn again from nothing."""
    shutil.copytree(models, tmp_path / "elsewhere")
    shutil.copy(shapes_folder / "valid-000.tar", tmp_path / "renamed.tar")
    given = ["--model", str(tmp_path / "elsewhere"), "--reference", str(tmp_path / "renamed.tar")]
    evaluate(["--manifest", str(evaluated / "manifest.json"), *given, "--output", str(tmp_path / "again")])
    assert "all figures are those of the manifest" in capsys.readouterr().out
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == metrics


def test_other_training_images_are_another_evaluation(evaluated, shapes_folder, tmp_path):
    given = ["--train", f"{shapes_folder}/train-001.tar", "--output", str(tmp_path / "again")]
    with pytest.raises(ValueError, match=r"was made with another train\.(bytes|hash)"):
        evaluate(["--manifest", str(evaluated / "manifest.json"), *given])


def test_real_images_are_known_by_their_pixels(models, shapes_folder, tmp_path):
    """Captions of a shard whose names are those of the reference, and whose images are others."""
    (tmp_path / "other").mkdir()
    shutil.copy(shapes_folder / "train-000.tar", tmp_path / "other" / "valid-000.tar")
    given = ["--model", str(models), "--reference", f"{shapes_folder}/valid-000.tar", "--most", "3", "--n", "1"]
    given += ["--sampling.chunk", "4", "--features", f"clip:{models}/clip", "--blur_radii", "[0]"]
    evaluate([*given, "--captions", f"{tmp_path}/other/valid-000.tar", "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "real images" not in found["judged"]
    assert next(iter(found["stage_two"]["priors"].values()))["images"] == 3  # no more than the reference has


def test_overwrite_takes_only_what_an_evaluation_drew(models, shapes_folder, tmp_path):
    given = ["--model", str(models), "--reference", f"{shapes_folder}/valid-000.tar", "--most", "2", "--n", "2"]
    given += ["--features", f"clip:{models}/clip", "--blur_radii", "[0]"]
    evaluate([*given, "--output", str(tmp_path / "out")])
    (tmp_path / "out" / "samples" / "photo.png").write_bytes(b"mine")
    (tmp_path / "out" / "samples" / "00001" / "note.txt").write_text("mine")
    (tmp_path / "out" / "samples" / "request.json").unlink()  # of drawings without it nobody knows what they are
    with pytest.raises(ValueError, match="holds samples of another evaluation"):
        evaluate([*given, "--output", str(tmp_path / "out")])
    evaluate([*given, "--seed", "7", "--overwrite", "--output", str(tmp_path / "out")])
    assert (tmp_path / "out" / "samples" / "photo.png").read_bytes() == b"mine"
    assert (tmp_path / "out" / "samples" / "00001" / "note.txt").read_text() == "mine"
    drawn = read_drawing(tmp_path / "out" / "samples" / "00001" / "samples" / "0000.png")
    assert 9 <= drawn.seed <= 10
    assert drawn.settings["chunk"] == 2  # as many as are asked for: of a CPU's 64 most would be thrown away


def test_several_priors_of_one_dvae_stand_beside_each_other(evaluated, metrics, models, shapes_folder, tmp_path):
    header = read_header(models / "prior")
    links = {name: value for name, value in header.items() if name.endswith("_hash")}
    tensors = {name: 0.9 * value for name, value in load_prior(models / "prior").state_dict().items()}
    shutil.copytree(models / "prior", tmp_path / "other")
    save_weights(tmp_path / "other", "prior", tensors, read_config(models / "prior", "prior"), links)
    shutil.copytree(evaluated / "samples", tmp_path / "out" / "samples")
    given = ["--model", str(models), "--reference", f"{shapes_folder}/valid-000.tar", *OPTIONS]
    given += ["--features", f"clip:{models}/clip", "--overwrite"]
    evaluate([*given, "--priors", str(tmp_path / "other"), "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["stage_two"]["priors"]
    name = f"prior:{header['hash'][:8]}"
    assert len(found) == 2 and found[name] == metrics["stage_two"]["priors"][name]
    with pytest.raises(ValueError, match="each once"):
        evaluate([*given, "--priors", f"{models}/prior", "--output", str(tmp_path / "out")])


def _images(folder, *sizes):
    for number, size in enumerate(sizes):
        (folder / f"{number:05}" / "samples").mkdir(parents=True)
        Image.new("RGB", size).save(folder / f"{number:05}" / "samples" / "0000.png")
        (folder / f"{number:05}" / "metadata.jsonl").write_text('{"prompt": "a"}')


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ([(32, 32), (48, 48)], r"mixed sizes: .*00000.*0000\.png has 32×32 px, .*00001.*0000\.png has 48×48"),
        ([(64, 32), (64, 32)], r"00000.samples.0000\.png: is 64×32 px"),
        ([(32, 32)], "measures of a set need two or more, and there is 1"),
    ],
)
def test_images_that_make_no_set_are_named_before_anything_is_measured(sizes, told, tmp_path):
    _images(tmp_path / "images", *sizes)
    with pytest.raises(ValueError, match=told):
        evaluate(["--images", str(tmp_path / "images"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_prompts_with_fewer_images_than_others_are_told(tmp_path):
    """Such as of a folder that was copied in part."""
    _images(tmp_path / "images", *[(32, 32)] * 3)
    config = Evaluate(output=str(tmp_path / "out"), images=str(tmp_path / "images"))
    assert find_sources(config, tmp_path, None, "cpu").notes == ()
    samples = tmp_path / "images" / "00001" / "samples"
    shutil.copy(samples / "0000.png", samples / "0001.png")
    told = "images .*: 2 of 3 prompts have fewer than the 2 images of others, 00000 for one; see whether all of them are there"
    with pytest.warns(UserWarning, match=told):
        (note,) = find_sources(config, tmp_path, None, "cpu").notes
    assert re.match(told, note)


def test_what_reads_codes_judges_no_pictures(codes_clip, tmp_path):
    _images(tmp_path / "images", (32, 32), (32, 32))
    given = ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    for option in (["--judge", str(codes_clip)], ["--features", f"clip:{codes_clip}"]):
        with pytest.raises(ValueError, match="reads codes of a dVAE, not pictures"):
            evaluate([*given, *option])


def test_features_that_stand_twice_are_refused(models, tmp_path):
    _images(tmp_path / "images", (32, 32), (32, 32))
    shutil.copytree(models / "clip", tmp_path / "copy")
    given = ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"clip:\w{8} is there twice"):
        evaluate([*given, "--features", f"clip:{models}/clip clip:{tmp_path}/copy"])


def test_a_page_holds_no_control_characters():
    text = page("a\x00b\x1b[31m", "<script>", {"<b>": "\x07"}, [])
    assert "a\ufffdb\ufffd[31m" in text and "<script>" not in text and "\x07" not in text


def test_a_figure_that_is_another_one_is_named(evaluated, tmp_path, capsys):
    manifest = json.loads((evaluated / "manifest.json").read_text())
    manifest["figures"]["stage_one"]["psnr_db"] += 1e-9
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    again = tmp_path / "again"
    shutil.copytree(evaluated, again)  # drawn before: only the figures are made anew
    with pytest.raises(SystemExit) as stopped:
        evaluate(["--manifest", str(tmp_path / "manifest.json"), "--output", str(again)])
    assert stopped.value.code == 1
    assert "1 figures are not those of the manifest: stage_one.psnr_db" in capsys.readouterr().out


def test_a_manifest_of_another_model_is_refused(evaluated, models, tmp_path):
    manifest = json.loads((evaluated / "manifest.json").read_text())
    manifest["identities"]["models"]["prior"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"was made with another models\.prior \(0000000000000000 there"):
        evaluate(["--manifest", str(tmp_path / "manifest.json"), "--output", str(tmp_path / "again")])
    assert not (tmp_path / "again").exists()


def test_images_from_elsewhere_get_the_same_figures(evaluated, metrics, shapes_folder, models, tmp_path):
    """The images alone: without candidates there is no curve, without a model there are no stages."""
    images = tmp_path / "images"
    for each in read_layout(evaluated / "samples"):
        (images / f"{each.number:05}" / "samples").mkdir(parents=True)
        shutil.copy(each.samples[0], images / f"{each.number:05}" / "samples" / "0000.png")
        (images / f"{each.number:05}" / "metadata.jsonl").write_text(json.dumps(each.metadata))
    given = ["--images", str(images), "--reference", f"{shapes_folder}/valid-000.tar", "--most", "12"]
    given += ["--judge", str(models / "clip"), "--blur_radii", "[0, 1]", "--output", str(tmp_path / "out")]
    evaluate(given)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["distances_efficientnet-lite0"] == metrics["distances_efficientnet-lite0"]
    assert found["judged"]["samples"] == metrics["judged"]["samples"]
    assert not {"ranking", "stage_one", "stage_two"} & set(found)


def test_an_exclusion_list_leaves_out_image_and_caption(evaluated, metrics, shapes_folder, models, pairs, tmp_path):
    (tmp_path / "exclude.txt").write_text(f"valid-000.tar/{pairs[2].key}\n{pairs[5].key}\nnone-such\n")
    given = ["--model", str(models), "--reference", f"{shapes_folder}/valid-000.tar", *OPTIONS]
    folder = tmp_path / "out"
    for part in ("samples", "train-index"):
        shutil.copytree(evaluated / part, folder / part)
    given += ["--train", f"{shapes_folder}/train-000.tar", "--exclude", str(tmp_path / "exclude.txt")]
    evaluate([*given, "--output", str(folder), "--overwrite"])
    found = json.loads((folder / "metrics.json").read_text())
    assert found["distances_efficientnet-lite0"] == metrics["distances_efficientnet-lite0"]
    without = found["distances_efficientnet-lite0_excluding"]
    assert without["num_images"] == without["num_reference"] == 10
    assert found["memorised"]["real_images"] == 10  # or the limit would be that of the copies
    assert "1 of 3 names of the exclusion list are of no reference image" in (folder / "report.html").read_text()


def test_samples_of_another_request_are_refused(evaluated, models, shapes_folder):
    given = ["--model", str(models), "--reference", f"{shapes_folder}/valid-000.tar", *OPTIONS, "--seed", "1"]
    with pytest.raises(ValueError, match=r"holds samples of another evaluation \(seed differs\).*--overwrite"):
        evaluate([*given, "--output", str(evaluated)])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "model: is missing; give --model FOLDER, or --images FOLDER"),
        ({"model": "m", "images": "i"}, "model and images: give one of them"),
        ({"model": "m"}, "captions: are missing"),
        ({"images": "i", "captions": "c.txt"}, "captions and images"),
        ({"images": "i", "exclude": "e"}, "name --reference"),
        ({"images": "i", "blur_radii": (1, 2)}, "must ascend from 0"),
        ({"images": "i", "features": " "}, "features: name at least one"),
        ({"manifest": "m.json", "n": 5}, "manifest and n: the manifest tells all"),
    ],
)
def test_what_cannot_be_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Evaluate(output="out", **options)


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("request.features", 3, "features"),
        ("request.n", 2.5, r"\bn\b"),
        ("request.seed", 0.5, "seed"),
        ("request.reference", 7, "reference"),
        ("request.none_such", 1, "none_such"),
        ("versions", [1], "versions"),
        ("captions", [], "captions"),
        ("captions", [{"prompt": 3}], "prompt"),
        ("identities", {}, "was made with another"),
        ("identities", "x", "identities"),
    ],
)
def test_a_manifest_that_was_changed_is_one_line(part, value, told, evaluated, tmp_path):
    manifest = json.loads((evaluated / "manifest.json").read_text())
    *way, last = part.split(".")
    (manifest[way[0]] if way else manifest)[last] = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=told) as said:
        evaluate(["--manifest", str(tmp_path / "manifest.json"), "--output", str(tmp_path / "again")])
    assert "\n" not in str(said.value) and not (tmp_path / "again").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"program": "dalle-evaluate"}', '{"program": "other"}'])
def test_a_damaged_manifest_is_named(content, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json: is"):
        manifests.read_manifest(path)


def test_a_model_without_a_reranker_draws_what_it_keeps(models, shapes_folder, tmp_path):
    """And none of it is ranked, without anybody having said so."""
    for part in ("dvae", "prior"):
        shutil.copytree(models / part, tmp_path / "plain" / part)
    given = ["--model", f"{tmp_path}/plain", "--reference", f"{shapes_folder}/valid-000.tar"]
    evaluate([*given, *OPTIONS, "--most", "4", "--output", f"{tmp_path}/out"])
    firsts = read_layout(tmp_path / "out/samples")
    assert [read_drawing(path).score for path in firsts[0].samples] == [None, None]  # two are kept
    assert json.loads((tmp_path / "out/manifest.json").read_text())["request"]["rerank"] is False
