"""The command on planted copies, and what it writes."""

import io
import json
import re
import sys
import types

import numpy as np
import pytest
from PIL import Image

from dalle.cli.evaluation.dedup import dedup
from dalle.evaluation.overlap.exclusions import read_exclusions
from dalle.evaluation.overlap.threshold import cosines_of_copies, suggested
from tests.data.pictures import encoded, write_shard
from tests.evaluation.overlap.tiny import Tiny, drawing

pytest.importorskip("faiss")

COPIES = {3: "JPEG", 8: "resized", 12: "cropped", 17: "the same"}
"""Evaluation image 10 + i is a copy of training image i."""


def _altered(image: Image.Image, how: str) -> bytes:
    if how == "JPEG":
        return encoded(image, "JPEG", quality=40)
    if how == "resized":
        return encoded(image.resize((40, 40), Image.Resampling.BICUBIC))
    if how == "cropped":
        return encoded(image.crop((2, 1, 62, 61)))
    return encoded(image)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 training images in two shards, 20 evaluation images of which four are copies, one broken image in each set; no
    captions but one."""
    folder = tmp_path_factory.mktemp("data")
    train = [{"png": encoded(drawing(i))} for i in range(40)]
    train[12]["txt"] = b"a <b>bold</b> picture"
    write_shard(folder / "train-0.tar", train[:20])
    write_shard(folder / "train-1.tar", [*train[20:], {"png": b"broken"}])
    valid = [{"png": encoded(drawing(1000 + i))} for i in range(10)]
    valid += [{"jpg" if how == "JPEG" else "png": _altered(drawing(i), how)} for i, how in COPIES.items()]
    valid += [{"png": encoded(drawing(2000 + i))} for i in range(6)]
    write_shard(folder / "valid.tar", [*valid, {"png": b"broken"}])
    return folder


@pytest.fixture
def networks(monkeypatch):
    """What `features` of the command gives; the last it gave stands last."""
    made = []

    def features(spec, device="cpu"):
        made.append(Tiny(spec.ljust(64, "0")))
        return made[-1]

    module = types.ModuleType("dalle.evaluation.features.named")
    module.features = features
    monkeypatch.setitem(sys.modules, "dalle.evaluation.features.named", module)
    return made


def _run(data, output, *more):
    dedup(
        [
            *("--data", f"{data}/train-*.tar", "--evaluation", f"{data}/valid.tar", "--output", str(output)),
            *("--size_px", "64", "--images.max_bad_fraction", "0.1", *more),
        ]
    )
    return [json.loads(line) for line in (output / "pairs.jsonl").read_text().splitlines()]


def test_planted_copies_are_found_first_and_listed(data, tmp_path, networks, capsys):
    pairs = _run(data, tmp_path / "out")
    assert len(pairs) == 20
    copies = {f"{10 + n:04d}": (f"train-{i // 20}.tar", f"{i % 20:04d}") for n, i in enumerate(COPIES)}
    found = {p["evaluation"]["key"]: (p["train"]["shard"], p["train"]["key"]) for p in pairs[:4]}
    assert found == copies
    cosines = [p["cosine"] for p in pairs]
    assert cosines == sorted(cosines, reverse=True) and cosines[0] > 0.9999 and cosines[3] > cosines[4] + 0.1
    assert read_exclusions(tmp_path / "out/exclude.txt") == {f"valid.tar/{key}" for key in copies}
    assert [p["excluded"] for p in pairs] == [True] * 4 + [False] * 16
    header = [line for line in (tmp_path / "out/exclude.txt").read_text().splitlines() if line.startswith("# ")]
    assert "4 of 20 evaluation images" in header[0] and "suggestion" in header[1] and "tiny" in header[2]
    printed = capsys.readouterr().out
    assert "evaluation: of 21 samples 20 were used, 0 filtered out, 1 broken" in printed
    assert "train: of 41 samples 40 were used" in printed and "4 of 20 evaluation images" in printed


def test_the_page_shows_the_pairs_with_their_pictures(data, tmp_path, networks):
    pairs = _run(data, tmp_path / "out", "--threshold", "0.9", "--shown", "6")
    page = (tmp_path / "out/index.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 12 and all(source.startswith("pictures/") for source in sources)
    assert {f"pictures/{path.name}" for path in (tmp_path / "out/pictures").iterdir()} == set(sources)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|http://www.w3.org/\S*|"http://purl\S*', "", page)
    assert page.count('class="pair marked"') == 4 and page.count('class="pair"') == 2
    shown = re.findall(r"(\d+) · cosine ([0-9.]+)", page)
    assert shown == [(str(rank), f"{pair['cosine']:.4f}") for rank, pair in enumerate(pairs[:6], 1)]
    assert "16 pairs, of which 2 are shown" in page and page.index('id="excluded"') < page.index('id="kept"')
    assert "a &lt;b&gt;bold&lt;/b&gt; picture" in page and "<b>bold" not in page
    assert "1 × image does not decode" in page and 'loading="lazy"' in page
    # the pictures are the images: left of the first card the exact copy, right the original
    left, right = (np.asarray(Image.open(tmp_path / "out" / source)) for source in sources[:2])
    assert np.array_equal(left, np.asarray(drawing(17))) and np.array_equal(right, left)


def test_another_threshold_embeds_nothing_again(data, tmp_path, networks):
    _run(data, tmp_path / "out", "--threshold", "0.9")
    pairs = _run(data, tmp_path / "out", "--threshold", "-1", "--shown", "3")
    assert networks[-1].calls == [] and all(pair["excluded"] for pair in pairs)
    assert len(read_exclusions(tmp_path / "out/exclude.txt")) == 20
    assert len(list((tmp_path / "out/pictures").iterdir())) <= 6
    at = pairs[7]["cosine"]
    assert sum(p["excluded"] for p in _run(data, tmp_path / "out", "--threshold", str(at + 1e-6))) == 7


def test_two_runs_write_the_same_bytes(data, tmp_path, networks):
    for name in ("a", "b"):
        _run(data, tmp_path / name)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert len(files) > 40
    for file in files:
        if file.name not in (".dalle-lock",):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_features_of_another_network_are_refused_or_written_over(data, tmp_path, networks):
    _run(data, tmp_path / "out")
    with pytest.raises(ValueError, match=r"features: hash was .*--overwrite"):
        _run(data, tmp_path / "out", "--features", "other")
    _run(data, tmp_path / "out", "--features", "other", "--overwrite")
    assert sum(networks[-1].calls) >= 60


def test_a_folder_of_something_else_is_left_alone(data, tmp_path, networks):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(ValueError, match=r"not empty: it holds thesis\.txt"):
        _run(data, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir() if not path.name.startswith(".")] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "words"), [(["--threshold", "1.5"], "threshold 1.5: a cosine"), (["--shown", "0"], "shown 0")]
)
def test_impossible_settings(data, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        _run(data, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_the_suggested_threshold_is_where_the_hardest_copies_lie():
    """By hand: of 100 cosines 0.900 … 0.999 five are below 0.905; the other alteration is easier."""
    hard = 0.9 + np.arange(100) / 1000
    assert suggested({"hard": np.random.default_rng(0).permutation(hard) + 1e-9, "easy": hard + 0.05}) in (0.904, 0.905)
    assert suggested({"one": np.array([0.98765])}) == 0.987


def test_altered_copies_are_those_of_the_names():
    """The cosines of each alteration, against copies that the test makes in its own way."""
    images, features = [np.asarray(drawing(i)) for i in range(5)], Tiny()
    found = cosines_of_copies(images, features, batch_size=2)
    assert [len(values) for values in found.values()] == [5, 5, 5] and features.calls[0] == 2
    buffer = io.BytesIO()
    Image.fromarray(images[4]).save(buffer, "JPEG", quality=50)
    jpeg = np.asarray(Image.open(buffer))
    rows = Tiny()(np.stack([images[4], jpeg])).features_BE.astype(np.float64)
    expected = rows[0] @ rows[1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1])
    # float64 sums of 192 products in another order
    assert abs(found["written as JPEG of quality 50"][4] - expected) < 1e-12
    for values in found.values():
        assert (values < 1).all() and (values > 0.8).all()
