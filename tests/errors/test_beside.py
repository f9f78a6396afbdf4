"""Refusals that other tests raise only within long runs, called directly."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from dalle.checkpoints import checkpoint, starting
from dalle.cli import arguments, train
from dalle.config import BestOf, Images, StackGANModel
from dalle.data.counts import Counts
from dalle.data.token_files import reading
from dalle.evaluation import accuracy, held_out_pairs
from dalle.evaluation.calibration import calibration
from dalle.evaluation.measures.collector import Collected, Source
from dalle.evaluation.measures.comparison import _check_alike
from dalle.evaluation.overlap import index, nearest
from dalle.evaluation.overlap.exclusions import read_exclusions
from dalle.evaluation.overlap.pairs import near_pairs
from dalle.evaluation.steps import reference, sources
from dalle.models import folder as models_folder
from dalle.models.weights import WeightsFile, load_weights
from dalle.outputs.ownership import check
from dalle.outputs.streams import kept_open
from dalle.own.gallery import _ROWS, read_rows
from dalle.own.plan_files import merged
from dalle.reporting.report import _OF_RUN, read_run
from dalle.stages import stackgan, text_encoder
from dalle.stages import starting as stages_starting
from dalle.training import saving
from tests.errors.refused import refused
from tests.evaluation.tiny_features import TinyFeatures


def test_weights(tmp_path):
    gone = tmp_path / "gone.safetensors"
    refused(
        f"{gone} cannot be read: No such file or directory; see that it is there and may be read", WeightsFile, gone
    )
    sizes = StackGANModel(image_size_px=8)
    models_folder.save_weights(tmp_path, "stackgan", {"w": torch.zeros(4)}, sizes, {})
    path = models_folder.weights_file(tmp_path)
    with WeightsFile(path) as file:
        refused(
            f"{path} holds 16 bytes of w; copy it or export it once more",
            file.read_bytes,
            "w",
            8,
            memoryview(bytearray(9)),
        )
        refused(f"{path} was cut off while it was read; copy it once more", file._fill, memoryview(bytearray(9)), 10**6)
    refused(f"{path} is of another model: ", load_weights, torch.nn.Linear(1, 1), path, "cpu")
    header = {"kind": "stackgan", "hash": "h", "config": "{"}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(models_folder, "read_header", lambda _: header)
        refused(f"{tmp_path}: the header of its weights tells no sizes; it is damaged, or not what it says: copy it once more",
                models_folder.read_config, tmp_path, "stackgan")  # fmt: skip
        header["config"] = '{"beauty": 3}'
        refused(f"{tmp_path} was written by another version: unknown sizes ['beauty']; read it with that one",
                models_folder.read_config, tmp_path, "stackgan")  # fmt: skip
    refused("start_from nowhere: holds no finished model (no model.safetensors); name the folder of a model",
            models_folder.read_start, "nowhere", "dvae")  # fmt: skip
    world = SimpleNamespace(is_main=True, size=1, gather=lambda mine: [mine])
    refused(f"{gone} cannot be read: No such file or directory", starting.fill_from_model, gone, {}, world)


def test_files_of_checkpoints(tmp_path, monkeypatch):
    found = SimpleNamespace(path=tmp_path, files={"a": {"bytes": 1, "sha256": "x"}})
    (tmp_path / checkpoint.STATE).write_text("")
    (tmp_path / "a").write_bytes(b"1")
    monkeypatch.setattr(checkpoint, "_read_index", lambda path: found)
    monkeypatch.setattr(checkpoint, "hashing", _forbidden)
    refused(f"checkpoint {tmp_path} is damaged: a: Input/output error; start anew, for there is no older one",
            lambda: list(checkpoint._proof(tmp_path, 0, 1)))  # fmt: skip


def _forbidden(path):
    raise OSError(5, "Input/output error")
    yield


def test_runs_that_are_there(tmp_path):
    resumable = train._check_resumable
    refused(f"--resume: {tmp_path} holds no checkpoint: leave --resume out", resumable, tmp_path, "dalle-train-dvae")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train, "read_mark", lambda folder, command: {} if command == "dalle-train-prior" else None)
        refused(f"--resume: {tmp_path} holds what dalle-train-prior made, not dalle-train-dvae: name the folder of such a run",
                resumable, tmp_path, "dalle-train-dvae")  # fmt: skip
    (tmp_path / "model.safetensors").write_text("")
    refused(
        f"{tmp_path} already holds a run: continue it with --resume, or name",
        train._check_run,
        tmp_path,
        "dalle-train-dvae",
        False,
    )
    (tmp_path / "config.yaml").write_text("start_from: a\n")
    config = SimpleNamespace(start_from="b", freeze=None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train, "asdict", vars)
        refused(
            f'--resume: {tmp_path} was made with start_from "a", not "b": leave it out',
            train._check_same_start,
            tmp_path,
            config,
        )
    (tmp_path / "file").write_text("")
    refused(
        f"output {tmp_path}/file is not writable: Not a directory; name another --output",
        check,
        tmp_path / "file",
        "dalle-x",
    )


def test_lost_words(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with open(tmp_path / "out", "w") as file:
        told = SimpleNamespace(write=full, flush=full, fileno=file.fileno, encoding="utf-8", errors="strict")
        monkeypatch.setattr(sys, "stdout", told)
        _say_and_lose()


def _say_and_lose():
    with pytest.raises(OSError, match="its work is done, its last words are lost; send it elsewhere"), kept_open():
        print("done")


def test_pairs(tmp_path, monkeypatch):
    def fails(name):
        raise SafetensorError("short")

    monkeypatch.setattr(reading, "look_at_shard", lambda *_: (SimpleNamespace(get_tensor=fails), None))
    refused(f"token shard {tmp_path} cannot be read (short): make it again", reading.load_shard, tmp_path, None, 0)
    monkeypatch.setattr(held_out_pairs, "TokenShards", lambda folder: [])
    refused("f holds no pair; name a folder of token shards that does", held_out_pairs.token_pairs, "f")
    bare = SimpleNamespace(key="k", scene=None, captions=["a"])
    monkeypatch.setattr(accuracy, "read_pairs", lambda *_: [bare])
    refused(
        "sample k says nothing of its scene: accuracy needs the drawn data set; name its shards",
        accuracy.distinct,
        "s",
        32,
        1,
    )
    bare.scene = {}
    refused("captions 2: the shards hold only 1 different ones; lower it to so many", accuracy.distinct, "s", 32, 2)
    monkeypatch.setattr(reference, "_pairs", lambda *_: iter(()))
    refused(
        "reference s: a distance needs two images or more, and there is 0; name more",
        reference.read_reference,
        "s",
        32,
        None,
    )
    monkeypatch.setattr(text_encoder, "_samples", lambda *_: iter(()))
    refused("s: no sample can be used: of 0 samples 0 were used, 0 filtered out, 0 broken; name shards",
            text_encoder.read_classes, None, "s", None, Counts())  # fmt: skip


def test_sets_that_differ():
    def collected(name="tiny", radii=(0,), size=(8, 8)):
        found = Collected(Source(name, "h" * 64, 6, "not at all"), 2, radii, 0, 2)
        found.place(size, np.array([0, 1]))
        return found

    refused("images were seen by tiny (hhhh", _check_alike, collected(), collected("other"))
    refused(
        "images have blur radii [0.0], the reference [0.0, 1.0]; take the same for both",
        _check_alike,
        collected(),
        collected(radii=(0, 1)),
    )
    refused("images are 8×8 px, the reference 9×9: blur radii are in pixels, so resize one",
            _check_alike, collected(radii=(0, 1)), collected(radii=(0, 1), size=(9, 9)))  # fmt: skip


def test_packages_of_the_extra_are_missing(monkeypatch):
    pytest.importorskip("sklearn")
    refused(
        "calibration needs candidates, and there are none: draw at least one for each caption", calibration, [[]], [[]]
    )
    monkeypatch.setitem(sys.modules, "sklearn", None)
    refused("calibration needs scikit-learn: pip install 'dalle[eval]'", calibration, [[0.5]], [[True]])
    monkeypatch.setitem(sys.modules, "faiss", None)
    refused("nearest neighbours need faiss: pip install 'dalle[eval]'", nearest._faiss)


def test_indices(tmp_path, monkeypatch):
    ours, theirs = (
        SimpleNamespace(folder=name, size_px=32, header=SimpleNamespace(features={"hash": name})) for name in ("a", "b")
    )
    refused("a and b: of different feature networks or image sizes; embed both alike", near_pairs, ours, theirs)
    refused(
        f"exclusion list {tmp_path}/gone: no such file; name one, such as the exclude.txt of",
        read_exclusions,
        tmp_path / "gone",
    )
    monkeypatch.setattr(index, "_read_header", lambda folder: object())
    monkeypatch.setattr(index, "_difference", lambda *_: "the features were others")
    monkeypatch.setattr(index, "identity", lambda shards: {})
    refused(f"{tmp_path}: holds features made with other settings (the features were others): name another folder, or write over them",
            index.embed, tmp_path, [], TinyFeatures(), 32, Images())  # fmt: skip


def test_what_is_evaluated(monkeypatch):
    network = SimpleNamespace(name="tiny")
    monkeypatch.setattr(sources, "features", lambda *_: network)
    config = SimpleNamespace(
        features="a b", train=None, model=None, images="i", most=None, reference="r", exclude="e", captions=None,
    )  # fmt: skip
    refused("features a b: tiny is there twice; name each once", sources.find_sources, config, None, None, "cpu")
    config.features = "a"
    monkeypatch.setattr(sources, "read_layout", lambda *_: [])
    monkeypatch.setattr(sources, "_side", lambda *_: 32)
    shown = SimpleNamespace(shards=["s"] * 2, keys=["a", "b"])
    monkeypatch.setattr(sources, "read_reference", lambda *_: _Sized(shown))
    monkeypatch.setattr(sources, "read_exclusions", lambda *_: {"a", "b"})
    monkeypatch.setattr(sources, "is_excluded", lambda *_: True)
    monkeypatch.setattr(sources, "unmatched", lambda *_: [])
    refused(
        "exclude e: leaves 0 reference images; leave it out, or name more --reference",
        sources.find_sources,
        config,
        None,
        None,
        "cpu",
    )


class _Sized:
    """A reference of two images."""

    def __init__(self, shown):
        self.shards, self.keys = shown.shards, shown.keys

    def __len__(self):
        return 2


def test_plans_and_runs(tmp_path, monkeypatch):
    refused(
        "prior.run 3: holds settings of its own, steps; set one of these",
        merged,
        {"run": {"steps": 1}},
        {"run": 3},
        "prior.",
    )
    (tmp_path / "gallery").mkdir()
    rows = tmp_path / "gallery" / _ROWS
    rows.write_text("{}")
    refused(f"{rows} is damaged: it holds no rows; delete it, and the captions are drawn again", read_rows, tmp_path)
    name = next(iter(_OF_RUN))
    (tmp_path / "run.json").write_text(json.dumps({name: {"x": [None]}}))
    refused(
        f"{tmp_path}/run.json is damaged: its {name} is none; delete it, which loses the run's name and speed",
        read_run,
        tmp_path,
    )
    monkeypatch.setattr(stackgan, "read_config", lambda *_: SimpleNamespace(stage=2))
    refused(
        "stage_one s: holds a stage 2; name the folder of a stage 1",
        stackgan._stage_one,
        SimpleNamespace(stage_one="s"),
        "h",
        None,
    )
    sizes = StackGANModel(image_size_px=8)
    monkeypatch.setattr(stages_starting, "read_start", lambda *_: sizes)
    config = SimpleNamespace(start_from="m", resume=False, model=StackGANModel(image_size_px=16))
    refused("model.image_size_px 16: start_from m has 8; leave it out, or start from another",
            stages_starting.start_of, config, "stackgan", None)  # fmt: skip


def test_what_is_resumed(monkeypatch):
    refused("w: missing: --model; give it here or in a --config", arguments.parse_model, BestOf, {}, "w: ")
    values = {"identity": {}, "export": {"links": {}}, "loaders": [], "run_steps": 1}
    opened = SimpleNamespace(values=values, shapes={"error_scales": (1,)}, step=3)
    monkeypatch.setattr(saving.checkpoint, "latest", lambda folder: "step-0000003")
    monkeypatch.setattr(saving.checkpoint, "verify", lambda *_: opened)
    monkeypatch.setattr(saving, "difference", lambda *_: None)
    loader = SimpleNamespace(load_state_dict=lambda state: None)
    saver = SimpleNamespace(
        world=SimpleNamespace(is_main=True, gather=lambda mine: [mine]), folder="f", run=SimpleNamespace(compression=None, steps=1),
        engine=SimpleNamespace(load_state=lambda *_: None), ema=None, plateau=None, notes=[], _identity=dict, _data=dict,
        stage=SimpleNamespace(facts={}, loader=loader),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="what the error buffers held back is dropped: this run does not compress"):
        assert saving.Saver.resume(saver) == 3
