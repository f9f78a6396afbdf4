"""Refusals of models, of checkpoints and of what they are trained with that no other test is about."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dalle.__main__ import listing
from dalle.checkpoints import checkpoint, rank_file
from dalle.cli import export
from dalle.cli.data.draw_shapes import draw_shapes
from dalle.cli.data.train_tokenizer import train_tokenizer
from dalle.cli.publish import publish
from dalle.cluster import topology, watch
from dalle.cluster.watch_hub import Hub
from dalle.config import CharCNNRNNModel, CLIPModel, DVAEModel, PriorModel, Run
from dalle.data.counts import Broken, Counts
from dalle.decoding import native
from dalle.models.folder import check_links, save_weights
from dalle.models.text_encoders import cache, clip
from dalle.models.text_encoders.names import open_text_encoder
from dalle.own.start import read_start
from dalle.reporting.samples import SamplesLog
from dalle.sampling import again, gallery
from dalle.stages import clip as clip_stage
from dalle.stages import prior as prior_stage
from dalle.stages import stackgan, text_encoder
from dalle.stages.best_of import drawing
from tests.errors.refused import refused


def test_commands(tmp_path):
    refused("unexpected 'help'; call `dalle` alone, which lists the commands", listing, ["help"])
    skills = ["--skills", f"{tmp_path}/a.json"]
    refused(
        f"skills {tmp_path}/a.json: must end in .jsonl, by which dalle-sample knows what it holds", draw_shapes, skills
    )
    refused(f"output {tmp_path} is a folder; name a file, such as {tmp_path}/tokenizer.json",
            train_tokenizer, ["--data", "d", "--output", str(tmp_path)])  # fmt: skip
    refused(f"folder {tmp_path}/gone: no such folder; name that of a model, with prior/ and dvae/ in it",
            publish, [f"{tmp_path}/gone", "--dry_run"])  # fmt: skip


def test_checkpoints(tmp_path):
    fragment = SimpleNamespace(name="w", values=torch.zeros(2, dtype=torch.complex64), start=0, shape=(2,))
    refused(
        "w is of dtype torch.complex64, which checkpoints do not hold",
        rank_file.write_fragments,
        tmp_path / "a",
        [fragment],
    )
    fragment.values = torch.zeros(2)
    refused("two fragments of w begin at 0", rank_file.write_fragments, tmp_path / "a", [fragment, fragment])
    refused("w is F32 [2] and, in b, F32 [3]", checkpoint._complete, *_files(tmp_path))
    folder = tmp_path / "step-0000001"
    folder.mkdir()
    tensor, file = {"shape": [1], "dtype": "none", "parts": [["a", "w@0", 0, 1]]}, "rank-00000.safetensors"
    state = {"tensors": {"w": tensor}, "files": {file: {}}, "step": 1, "values": {}}
    for changed, said in (
        ({}, "w is of no known dtype or in no known file"),
        ({"files": {"../a": {}}}, "it names the file '../a', which is of another place"),
        ({"values": None}, "values is missing, or of another kind"),
    ):
        told = state | changed
        (folder / checkpoint.STATE).write_text(json.dumps(told | {"sha256": checkpoint.state_hash(told)}))
        refused(f"checkpoint {folder} is damaged: state.json: {said}; start anew", checkpoint._read_index, folder)
    found = SimpleNamespace(path="c", values={"export": {"kind": "song", "config": {}, "links": {}}})
    refused("checkpoint c is of a model of kind song: known are ", export._identity, found)


def _files(folder: Path) -> tuple:
    """Two files of a checkpoint that differ in the shape of a tensor."""
    partial, files = folder / "partial", {}
    partial.mkdir()
    for file, size in (("a", 2), ("b", 3)):
        part = SimpleNamespace(name="w", values=torch.zeros(1), start=size - 2, shape=(size,))
        files[file] = rank_file.write_fragments(partial / file, [part])
    return partial, folder / "target", 1, {}, files


def test_processes(monkeypatch):
    run = Run(steps=1, batch_size=4)
    for name in topology._LOCAL_SIZES:
        monkeypatch.delenv(name, raising=False)
    world = SimpleNamespace(size=4, gather=lambda mine: [("a", None), ("b", None)] * 2)
    refused("a runs an unknown number of processes, b runs an unknown number of processes: start as many processes",
            topology._ranks_per_machine, run, world)  # fmt: skip
    monkeypatch.setenv(topology._LOCAL_SIZES[0], "3")
    world.gather = lambda mine: [("a", 3)] * 4
    refused(
        "4 processes on 1 machines, 3 on each: start as many processes on every machine",
        topology._ranks_per_machine,
        run,
        world,
    )
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    told = {"host": "a", "process": 7, "port": 1, "token": "t"}
    member = SimpleNamespace(world=SimpleNamespace(rank=1, size=2, gather=lambda mine: [told, told]))
    refused("rank 1 (host a, process 7) cannot reach rank 0 (host a, process 7) at 127.0.0.1:1 ([Errno 111] Connection refused): open the ports",
            watch.Watch._join, member)  # fmt: skip
    hub = SimpleNamespace(_ranks={}, token="t")
    refused("a stranger", Hub._hear, hub, None, {"token": "x"})


def test_text_encoders(tmp_path):
    refused(
        "ViT-B-32 names no weights: add a tag or a file, such as ViT-B-32/openai",
        clip.open_clip_text,
        "ViT-B-32",
        "cpu",
    )
    refused("text encoder clip:ViT-B-32: ViT-B-32 names no weights", open_text_encoder, "clip:ViT-B-32")
    file = tmp_path / "a.pt"
    torch.save({"a": SimpleNamespace()}, file)
    refused(
        f"{file} holds no weights that can be read safely; name another", clip.open_clip_text, f"ViT-B-32/{file}", "cpu"
    )
    stored = tmp_path / "embeddings.safetensors"
    encoder = SimpleNamespace(width=2, hash="h" * 64, name="e")
    save_file({"keys": torch.zeros(1)}, stored)
    refused(f"{stored} is no file of embeddings: name another", cache._Stored.read, stored, encoder)
    about = {"kind": cache._KIND, "encoder": "e", "encoder_hash": "h" * 64, "checksums": '{"keys": "x", "a": "x"}'}
    save_file({"keys": torch.zeros(1, dtype=torch.int64), "a": torch.zeros(1, 2)}, stored, about)
    refused(
        f"{stored} is damaged: remove it, and its embeddings are computed anew", cache._Stored.read, stored, encoder
    )


def test_models_of_another_kind(tmp_path):
    dvae = DVAEModel(image_size_px=32, codebook_size=16, encoder_width=8, decoder_input_width=8)
    weights = {f"w{number}": torch.zeros(1) for number in range(9)}
    save_weights(tmp_path, "dvae", weights, dvae, {})
    refused(f"{tmp_path} holds a dvae, not a prior; name one", check_links, tmp_path, tmp_path, None)
    for kind, config in (("dvae", dvae), ("prior", PriorModel(grid=4, text_slots=8, width=32, depth=1, heads=1))):
        save_weights(tmp_path / "all" / kind, kind, weights, config, {})
    refused(f"start_from x: {tmp_path}/all/prior has no tokenizer.json, which its captions need; put it there",
            read_start, "x", tmp_path / "all", None)  # fmt: skip


def test_sizes_of_stages(monkeypatch):
    found = SimpleNamespace(config=DVAEModel(image_size_px=32, codebook_size=16))
    config = SimpleNamespace(model=CLIPModel(reads="codes", image_size_px=8, patch_px=2), dvae="v")
    refused("model.image_size_px 8: the dVAE v has 4×4 codes of 16 for an image; set model.image_size_px to 4",
            clip_stage._check_codes, config, found)  # fmt: skip
    monkeypatch.setattr(prior_stage, "codes_hash", lambda dvae: "h")
    shards = SimpleNamespace(meta=SimpleNamespace(grid=4, codebook_size=16, dvae_hash="h"))
    config = SimpleNamespace(dvae="v", data="d", tokenizer="t", model=PriorModel(grid=8, text_vocabulary=9))
    tokenizer = SimpleNamespace(vocabulary=10, hash="h")
    refused("model.grid 8: the tokens in d have 4; set it to that", prior_stage._check, config, shards, None, tokenizer)
    config.model = PriorModel(grid=4, codebook_size=16, text_vocabulary=9)
    refused(
        "model.text_vocabulary 9: the tokenizer t has 10 tokens; set it to that",
        prior_stage._check,
        config,
        shards,
        None,
        tokenizer,
    )
    refused(
        "stage_one: nowhere holds no trained model",
        stackgan._stage_one,
        SimpleNamespace(stage_one="nowhere"),
        "h",
        None,
    )
    network = SimpleNamespace(name="tiny", width=5)
    monkeypatch.setattr(text_encoder, "features", lambda *_: network)
    monkeypatch.setattr(text_encoder, "expand", lambda *_: [])
    monkeypatch.setattr(
        text_encoder, "read_classes", lambda *_: SimpleNamespace(names=["a", "b"], classes_N=np.array([0, 0, 1, 1]))
    )
    config = SimpleNamespace(
        features="f", data="d", images=SimpleNamespace(pipes=False), class_key="k", run=SimpleNamespace(batch_size=3),
        model=CharCNNRNNModel(image_width=7),
    )  # fmt: skip
    refused("run.batch_size 3: a batch is of so many different classes, and the data has 2 by class_key k; set it to 2 or less",
            text_encoder.stage, config, SimpleNamespace(device="cpu"))  # fmt: skip
    config.run.batch_size = 2
    refused(
        "model.image_width 7: tiny has 5 numbers; leave it out",
        text_encoder.stage,
        config,
        SimpleNamespace(device="cpu"),
    )


def test_metadata_of_drawings():
    settings = {
        "temperature": 1.0, "top_k": None, "top_p": None, "guidance": 1.0, "chunk": 8, "place": 0, "device": "cpu", "processor": "p",
        "torch": "2", "kernels": "none", "precision": "fp32",
    }  # fmt: skip
    for change, said in (
        ({"temperature": "1.0"}, "temperature 1.0: is text"),
        ({"chunk": None}, "chunk is none"),
        ({"place": 8}, "place 8: must lie between 0 and 7"),
        ({"torch": 2}, "torch 2: must be text"),
    ):
        refused(
            f"a.png: its metadata are damaged: {said}; take another copy",
            again._check_settings,
            "a.png",
            settings | change,
        )
    told = SimpleNamespace(settings=settings | {"place": 9, "captions_together": 1}, caption="a", seed=9)
    refused(
        "the metadata are damaged: its place in the chunk is not in the chunk; take another copy",
        again.draw_again,
        None,
        told,
    )
    refused(
        "results.jsonl, line 1 is damaged; name another folder with --output",
        gallery._checked,
        b"{}",
        "results.jsonl, line 1",
    )


def test_warnings(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="no compiler: sampling uses PyTorch's own operations, which take longer"):
        native._warn("no compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_is_ours", lambda *_: False)
    with pytest.raises(PermissionError, match="it is another user's, a link, or others may write to it: remove it"):
        native._folder()
    said = []
    counts = Counts()
    counts.add({"__url__": "a.tar", "__key__": "0"}, Broken("no image"))
    SamplesLog(tmp_path, said.append).take({"data": counts})
    assert said == ["data: of 1 samples 0 were used, 0 filtered out, 1 broken (1 × no image: 0 of a.tar)"]
    models = SimpleNamespace(prior_config=PriorModel(text_slots=3), tokenizer=SimpleNamespace(encode=list))
    with pytest.warns(UserWarning, match="best_of: 1 of "):
        drawing._warn_of_cuts(["abcdefgh"], models)
