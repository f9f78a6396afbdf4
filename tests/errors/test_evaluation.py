"""Refusals of what is evaluated that no other test is about."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.cli.evaluation import evaluate
from dalle.config import Evaluate, Images, StackGANModel
from dalle.evaluation import accuracy, stage_two
from dalle.evaluation.calibration import calibration
from dalle.evaluation.compositional import results
from dalle.evaluation.compositional.skills import skill_captions
from dalle.evaluation.features import images as feature_images
from dalle.evaluation.features.efficientnet import efficientnet_lite0
from dalle.evaluation.features.inception import inception
from dalle.evaluation.features.towers import trained_tower
from dalle.evaluation.layout import load, read_image, read_layout, read_metadata
from dalle.evaluation.measures.collector import Collected, Collector
from dalle.evaluation.measures.comparison import _check_alike
from dalle.evaluation.overlap import index, stream
from dalle.evaluation.overlap.exclusions import read_exclusions
from dalle.evaluation.overlap.memorised import memorised
from dalle.evaluation.overlap.nearest import nearest
from dalle.evaluation.steps import drawn, manifest, sources
from dalle.evaluation.study.design import read_design
from dalle.models.folder import save_weights
from tests.errors.refused import refused
from tests.evaluation.tiny_features import TinyFeatures, pictures


def test_measures_of_a_set():
    source = SimpleNamespace(name="tiny", width=6)

    def collected(num_images=4, radii_px=(0,), seed=0, sample=2):
        return Collected(source, num_images, radii_px, seed, sample)

    refused("1 images: measures of a set need at least 2; give more", collected, 1)
    refused("blur radii [0, 0]: they must be different, in pixels, and at least 0", collected, radii_px=[0, 0])
    refused("sample 1: must be at least 2, to compare", collected, sample=1)
    refused("only 0 of 4 images were added; add all of them", collected().check_complete)
    refused(
        "collected with tiny, (5, 0, [0.0], [2]), which cannot join tiny, (4, 0, [0.0], [2])",
        collected().merge,
        collected(5),
    )
    some = collected()
    some.place((8, 8), np.array([0]))
    refused(
        "images of 4×8 px after some of 8×8 px: resize or crop all to one size first", some.place, (8, 4), np.array([1])
    )
    refused("images 1 to 9 of 4: they must differ and be in 0 to 3", some.place, (8, 8), np.array([1, 9]))
    refused("image 0 was added twice; add each once", some.place, (8, 8), np.array([0]))
    refused("2 indices of 1 images; give one for each", Collector(TinyFeatures(), 4).add, pictures(1), [0, 1])
    refused("images: only 0 of 4 images were added", _check_alike, collected(), collected())
    refused(
        "features of 3 numbers cannot be compared with features of 2", nearest, np.zeros((1, 3)), [np.zeros((1, 2))]
    )


def test_images_of_networks(tmp_path):
    refused("images of shape [1, 2, 3]: they must be [B, Y, X, 3] and at least one",
            feature_images.check_images, np.zeros((1, 2, 3), np.uint8))  # fmt: skip
    gone = tmp_path / "gone.pth"
    refused(f"{gone} is missing: pip install --force-reinstall efficientnet-lite0", efficientnet_lite0, file=gone)
    refused(f"features inception:{gone}: no such file; take it from https://", inception, gone)
    refused(f"features clip:{gone}: clip {gone}: no such folder", trained_tower, str(gone))


def test_folders_of_images(tmp_path):
    refused(f"images {tmp_path}/gone: is no folder; name one", read_layout, tmp_path / "gone")
    for number, size in ((0, 8), (1, 9)):
        samples = tmp_path / f"all/0000{number}/samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text('{"prompt": "a"}')
        Image.new("RGB", (size, size)).save(samples / "0000.png")
    found = read_layout(tmp_path / "all")
    refused("images of mixed sizes: ", lambda: list(load(found)))
    refused("images of mixed sizes: ", sources._side, found)
    (first,) = found[0].samples
    Image.new("RGB", (8, 9)).save(first)
    refused(f"{first}: is 8×9 px; bring it to a square, as real images are", sources._side, found)
    first.write_bytes(b"x")
    refused(f"{first}: image does not decode", sources._side, found)
    refused(f"{first}: image does not decode: ", read_image, first)
    first.unlink()
    refused(f"{first}: No such file or directory; see that it may be read", read_image, first)
    refused(f"{first.parent}: holds no image; repeat the run of dalle-sample", read_layout, tmp_path / "all")


def test_lists_and_indices(tmp_path):
    listed = tmp_path / "exclude.txt"
    listed.write_bytes(b"\xff")
    refused(
        f"exclusion list {listed}: is not UTF-8 text (invalid start byte); save it as such", read_exclusions, listed
    )
    listed.write_text("a.tar/\n")
    refused(f"exclusion list {listed}, line 1: 'a.tar/' ", read_exclusions, listed)
    (tmp_path / index.HEADER).write_text('{"version": 0}')
    refused(f"{tmp_path / index.HEADER}: is damaged (of another version of this program); remove {tmp_path}",
            index._read_header, tmp_path)  # fmt: skip
    (tmp_path / index.PLACES).write_text("3\n")
    found = SimpleNamespace(folder=tmp_path)
    refused(
        f"{tmp_path / index.PLACES}, line 1, is damaged; remove {tmp_path} to begin anew",
        index.Index.places,
        found,
        [0],
    )
    header = SimpleNamespace(rows=3, features={"width": 2}, dtype="float16", places_bytes=1)
    refused(f"{tmp_path / index.FEATURES}: 0 bytes, where {index.HEADER} speaks of 12: it is damaged; remove",
            index._check_sizes, tmp_path, header)  # fmt: skip
    train = SimpleNamespace(folder="t", header=SimpleNamespace(features={"hash": "h", "name": "other"}))
    refused("t: was embedded by other, of another hash; embed it with these features",
            memorised, [], [], train, None, TinyFeatures(), tmp_path, 1, 0, 1)  # fmt: skip


def test_a_shard_that_was_changed(shapes_folder, tmp_path):
    shard = tmp_path / "a.tar"
    shard.write_bytes((shapes_folder / "valid-000.tar").read_bytes())
    place = stream.Place(0, "gone", ())
    refused(f"{shard}: has no image gone any more: the shard was changed; embed it anew",
            lambda: list(stream.pictures([str(shard)], Images(), 32, [place])))  # fmt: skip
    refused("captions 99: the shards hold only ", accuracy.distinct, str(shard), 32, 99)


def test_what_was_drawn_is_told_in_files(tmp_path):
    path = drawn._path(tmp_path, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    refused(f"{path}: is damaged: delete it, and its caption is drawn again", drawn.read_candidates, tmp_path, 0)
    file = tmp_path / "manifest.json"
    refused(f"manifest {file}: No such file or directory; name one of dalle-evaluate", manifest.read_manifest, file)
    whole = {
        "program": "dalle-evaluate",
        "request": {},
        "captions": [{}],
        "identities": {},
        "machine": {},
        "figures": {},
    }
    for change, said in (
        ({"program": "x"}, "is none of dalle-evaluate; name one"),
        ({"versions": 3}, "is damaged: its versions are none; take a whole copy"),
        ({"captions": []}, "is damaged: it has no captions; take a whole copy"),
        ({"figures": 1}, "is damaged: it has no figures; take a whole copy"),
        ({}, "is damaged: one of its captions has no prompt; take a whole copy"),
    ):
        file.write_text(json.dumps(whole | change))
        refused(f"manifest {file}: {said}", manifest.read_manifest, file)
    file.write_text("{")
    refused(f"manifest {file}: is damaged, or no JSON; name one of dalle-evaluate", manifest.read_manifest, file)
    bare = SimpleNamespace(spec="s", keys=["a", "b"], captions=["c", ""])
    refused(
        "s: 1 images have no caption, b for one: give --captions FILE",
        sources._captions,
        Evaluate("o", model="m", reference="s"),
        bare,
    )


def test_figures_of_candidates(monkeypatch):
    pytest.importorskip("sklearn")
    refused(
        "score nan: not finite, so the reranker is broken; train it again",
        calibration,
        [[0.1, np.nan]],
        [[True, False]],
    )
    refused("skill_captions 0: must be from 1 to 100, for the vocabulary has few words", skill_captions, 0, 0)


def test_a_loss_takes_a_batch_and_a_prior(tmp_path):
    refused("batch_size 0: must be at least 1", stage_two.held_out_loss, "p", None, batch_size=0)
    save_weights(tmp_path, "stackgan", {"w": torch.zeros(1)}, StackGANModel(), {})
    refused(f"{tmp_path} holds a stackgan, not a prior; name one", stage_two._belonging, tmp_path, None)


def test_a_prompt_without_a_scene(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "judge_images", lambda *_: (_ for _ in ()).throw(ValueError("no rules")))
    monkeypatch.setattr(
        results, "load", lambda drawn: [SimpleNamespace(prompted=drawn[0], path=tmp_path / "a", image_YX3=None)]
    )
    prompted = SimpleNamespace(number=3, metadata={"scene": {}}, samples=())
    refused(f"prompt 3 in {tmp_path}: no rules", results.judge, [prompted])


def test_files_beside_images(tmp_path):
    file = tmp_path / "metadata.jsonl"
    refused(f"{file}: No such file or directory; put one there for each prompt", read_metadata, file)
    refused(
        f"output {tmp_path}: no study.json there; make a study with --images, or name its folder",
        read_design,
        tmp_path / "study.json",
    )


def test_a_manifest_of_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "read_manifest", lambda path: {})
    monkeypatch.setattr(manifest, "settings_of", lambda manifest, config, parse: config)
    monkeypatch.setattr(manifest, "other_machine", lambda manifest: ["threads was 1, is 2"])
    monkeypatch.setattr("dalle.evaluation.steps.run.run", lambda *_: [])
    with pytest.warns(UserWarning, match="this machine may round otherwise: threads was 1, is 2"):
        evaluate.evaluate(["--manifest", "m.json", "--output", str(tmp_path / "out")])
