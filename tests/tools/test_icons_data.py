"""Which images may be trained on for weights that are given away, by what their json says."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from dalle.config import Images
from dalle.data.samples import read_pairs
from tests.conftest import ROOT
from tests.data.pictures import encoded, gradient, write_shard

sys.path.insert(0, str(ROOT / "tools"))
import icons_data

LICENCES = [
    "MIT",
    "CC BY-SA 4.0",
    "Apache-2.0 (flags: public domain/exempt)",
    "CC BY 4.0",
    "GPL-2",
    None,
    "public domain",
]


@pytest.fixture
def shards(tmp_path):
    samples = []
    for number, licence in enumerate(LICENCES):
        about = {"captions": [f"caption {number}"], "source": f"source {number % 2}"}
        about |= {} if licence is None else {"licence": licence}
        samples.append({"png": encoded(gradient(16, 16)), "json": json.dumps(about).encode()})
    write_shard(tmp_path / "all.tar", samples)
    return tmp_path / "all.tar"


def test_what_asks_for_more_than_a_name_is_left_out(shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(icons_data, "_PER_SHARD", 3)
    icons_data.main(["--data", str(shards), "--valid_data", str(shards), "--output", str(tmp_path / "icons")])
    pairs = list(read_pairs(f"{tmp_path}/icons/train-*.tar", Images(augmentation="none"), 16))
    assert [pair.captions[0] for pair in pairs] == [f"caption {number}" for number in (0, 2, 3, 6)]
    assert sorted(path.name for path in (tmp_path / "icons").iterdir()) == [
        "ATTRIBUTION.md",
        *(f"train-00{i}.tar" for i in range(2)),
        *(f"valid-00{i}.tar" for i in range(2)),
    ]
    told = capsys.readouterr().out
    assert "train: 4 images" in told and "2 images under GPL-2" in told and "2 images under no licence" in told
    said = (tmp_path / "icons" / "ATTRIBUTION.md").read_text()
    assert "source 0: 1 images, MIT" in said and "source 1: 1 images, CC BY 4.0" in said and "SA" not in said


def test_a_folder_of_something_else_is_left_alone(shards, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(SystemExit):
        icons_data.main(["--data", str(shards), "--valid_data", str(shards), "--output", str(tmp_path / "mine")])
    assert "is not empty" in capsys.readouterr().err


def test_margins_and_mirror_images_keep_captions_true(tmp_path):
    arrow = Image.new("RGB", (16, 16), "white")
    arrow.paste("black", (0, 0, 8, 16))
    abouts = [
        {"group": "animals & nature", "captions": ["a cow"]},
        {"group": "animals & nature", "captions": ["a cow", "a cow facing left"]},
        {"group": "symbols", "captions": ["a cross"]},
    ]
    samples = [{"png": encoded(arrow), "json": json.dumps({**about, "licence": "MIT"}).encode()} for about in abouts]
    write_shard(tmp_path / "all.tar", samples)
    options = ["--margin_px", "4", "--mirror", "--output", str(tmp_path / "icons")]
    icons_data.main(["--data", f"{tmp_path}/all.tar", "--valid_data", f"{tmp_path}/all.tar", *options])
    raw = Images(augmentation="none")
    train = list(read_pairs(f"{tmp_path}/icons/train-*.tar", raw, 24))
    assert [pair.captions[0] for pair in train] == ["a cow", "a cow", "a cow", "a cross"]
    assert len(list(read_pairs(f"{tmp_path}/icons/valid-*.tar", raw, 24))) == 3
    straight, mirrored = (np.asarray(pair.image).astype(int) for pair in train[:2])
    assert straight.shape == (24, 24, 3) and np.abs(straight[:, ::-1] - mirrored).max() < 30  # WebP's loss
    assert straight[12, 6].max() < 30 and straight[12, 17].min() > 225 and straight[2, 6].min() > 225
