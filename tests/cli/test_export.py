"""`dalle-export`: what a checkpoint of two ranks holds becomes a model that loads, and bad input one line."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import weakref
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import dalle
from dalle.checkpoints import checkpoint
from dalle.checkpoints.checkpoint import Fragment
from dalle.cli.export import export
from dalle.cluster.topology import World
from dalle.config import DVAEModel, PriorModel, Sampling
from dalle.models.dvae import DVAE
from dalle.models.folder import codes_hash, content_hash, load_dvae, load_prior, read_config, read_header, save_weights
from dalle.models.prior import Prior
from dalle.sampling.model_set import find_models
from tests.conftest import clean_environment

PRIOR = PriorModel(
    text_slots=8, grid=4, text_vocabulary=300, codebook_size=16, width=32, depth=2, heads=2, conv_kernel=3
)
DVAE_SIZES = DVAEModel(
    image_size_px=32,
    codebook_size=16,
    encoder_width=8,
    width_multipliers=(1, 2, 2, 2),
    blocks_per_group=1,
    decoder_input_width=8,
)
LINKS = {"dvae_hash": "d" * 64, "tokenizer_hash": "e" * 64}
ALONE = World(0, 1, torch.device("cpu"))


def _save(run: Path, step: int, kind: str, sizes, links: dict, tensors: dict[str, torch.Tensor]) -> Path:
    """As a run would have it, every tensor in two pieces."""
    fragments = []
    for name, tensor in tensors.items():
        flat, middle = tensor.flatten(), tensor.numel() // 2
        pieces = [(0, flat[:middle]), (middle, flat[middle:])]
        fragments += [Fragment(name, tuple(tensor.shape), start, values) for start, values in pieces]
    values = {"export": {"kind": kind, "config": asdict(sizes), "links": links}}
    return checkpoint.save(run, step, fragments, values, keep=5, world=ALONE)


def _tensors(model: nn.Module, averages: bool = True) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    tensors = {f"model/{name}": tensor for name, tensor in state.items()}
    tensors |= {f"exp_avg/{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    if averages:
        tensors |= {f"ema/{name}": 2 * tensor for name, tensor in state.items() if tensor.is_floating_point()}
    return tensors


@pytest.fixture
def prior() -> Prior:
    torch.manual_seed(0)
    return Prior(PRIOR)


@pytest.fixture
def run(tmp_path, prior) -> Path:
    """The folder of a run with checkpoints after 3 and 7 updates; at 3 all weights are 1."""
    folder = tmp_path / "run"
    ones = {name: torch.ones_like(tensor) for name, tensor in _tensors(prior).items()}
    _save(folder, 3, "prior", PRIOR, LINKS, ones)
    _save(folder, 7, "prior", PRIOR, LINKS, _tensors(prior))
    (folder / "config.yaml").write_text("model: {}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "metrics.jsonl").touch()
    return folder


@pytest.mark.parametrize(("weights", "factor"), [(None, 2), ("averaged", 2), ("trained", 1)])
def test_exported_weights_load_and_are_the_checkpoints(run, prior, tmp_path, capsys, weights, factor):
    output = tmp_path / "out"
    export([str(run), "--output", str(output), *(["--weights", weights] if weights else [])])
    exported = load_prior(output).state_dict()
    assert exported.keys() == prior.state_dict().keys()
    for name, tensor in prior.state_dict().items():
        assert torch.equal(exported[name], factor * tensor), name
    assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "model.safetensors", "tokenizer.json"]
    # the same header, hash and sizes as when the loop writes its model at the end
    save_weights(tmp_path / "written", "prior", {n: factor * t for n, t in prior.state_dict().items()}, PRIOR, LINKS)
    assert read_header(output) == read_header(tmp_path / "written")
    count = sum(tensor.numel() for tensor in prior.state_dict().values())
    name = "trained" if factor == 1 else "averaged"
    assert f"prior, {name} weights after 7 updates, {count:,} numbers in fp32" in capsys.readouterr().out


def test_tensors_are_read_one_after_the_other(run, prior, tmp_path, monkeypatch):
    """Each once, and the one before it is let go: a model need not fit main memory."""
    read, read_whole = checkpoint.Checkpoint.read, []

    def watched(self, name, start=0, stop=None):
        tensor = read(self, name, start, stop)
        if stop is None:
            assert sum(earlier() is not None for _, earlier in read_whole) <= 1, name
            read_whole.append((name, weakref.ref(tensor)))
        return tensor

    monkeypatch.setattr(checkpoint.Checkpoint, "read", watched)
    export([str(run), "--output", str(tmp_path / "out"), "--weights", "trained"])
    assert sorted(name for name, _ in read_whole) == sorted(f"model/{name}" for name in prior.state_dict())


def test_one_named_checkpoint(run, tmp_path):
    export([str(run / "checkpoints/step-0000003"), "--output", str(tmp_path / "out")])
    assert all(bool((tensor == 1).all()) for tensor in load_prior(tmp_path / "out").state_dict().values())
    assert (tmp_path / "out/tokenizer.json").is_file()


def test_a_dvae(tmp_path):
    """Among its sizes is a list, which JSON has in place of a tuple."""
    torch.manual_seed(0)
    dvae = DVAE(DVAE_SIZES)
    _save(tmp_path / "run", 1, "dvae", DVAE_SIZES, {}, _tensors(dvae))
    export([str(tmp_path / "run"), "--output", str(tmp_path / "out")])
    exported = load_dvae(tmp_path / "out")
    assert exported.config == DVAE_SIZES
    for name, tensor in dvae.state_dict().items():
        assert torch.equal(exported.state_dict()[name], 2 * tensor), name


@pytest.mark.parametrize(("dtype", "stored"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_sixteen_bits_on_disk(run, prior, tmp_path, dtype, stored):
    """But for what counts, which is not averaged either."""
    _save(run, 9, "prior", PRIOR, LINKS, _tensors(prior) | {"model/counter": torch.tensor(2**40 + 1)})
    export([str(run), "--output", str(tmp_path / "out"), "--dtype", dtype])
    held = load_file(tmp_path / "out/model.safetensors")
    assert held.pop("counter") == 2**40 + 1
    for name, tensor in prior.state_dict().items():
        assert held[name].dtype == stored
        assert torch.equal(held[name], (2 * tensor).to(stored))


def _refused(*arguments: str, words: list[str]) -> None:
    """As the real command: one line, exit code 2."""
    command = [sys.executable, "-c", "from dalle.cli.export import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean_environment())
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = done.stderr.strip().splitlines()
    for word in ["dalle-export: ", *words]:
        assert word in line, line


def test_a_damaged_checkpoint_is_one_line(run, tmp_path):
    file = run / "checkpoints/step-0000007/rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    words = [
        "step-0000007 is damaged: rank-00000.safetensors: bytes",
        "not those that were written; delete it to go on from",
        "step-0000003",
    ]
    _refused(str(run), "--output", str(tmp_path / "out"), words=words)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_finished_is_taken_away(run, tmp_path):
    """A limit on files, below the 190 kB of weights, stands for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"out was not written .*File too large"):
            export([str(run), "--output", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()


def test_bad_input(run, prior, tmp_path):
    output = tmp_path / "out"

    def refused(source: Path, *arguments: str, match: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            export([str(source), "--output", str(output), *arguments])
        assert "\n" not in str(caught.value)
        assert [p.name for p in output.glob("*")] == (["notes.txt"] if output.exists() else [])

    refused(tmp_path / "gone", match="run .*gone: no such folder")
    (tmp_path / "empty/checkpoints/step-0000001.partial").mkdir(parents=True)
    refused(tmp_path / "empty", match="empty holds no complete checkpoint")
    refused(tmp_path / "empty/checkpoints/step-0000001.partial", match="not a complete checkpoint")
    refused(run, "--dtype", "int8", match="dtype int8: must be one of fp32, bf16, fp16")

    (other := tmp_path / "other").mkdir()
    _save(other, 1, "diffusion", PRIOR, {}, _tensors(prior))
    refused(other, match="kind diffusion: known are dvae, prior, clip")
    checkpoint.save(other, 2, [], {}, keep=5, world=ALONE)
    refused(other, match="does not say what model it is of")
    _save(other, 3, "prior", PRIOR, {}, _tensors(prior, averages=False))
    refused(other, "--weights", "averaged", match="weights averaged: .*step-0000003 holds trained ones only")
    partly = _tensors(prior)
    del partly["ema/" + next(iter(prior.state_dict()))]
    _save(other, 4, "prior", PRIOR, {}, partly)
    refused(other, match="holds no tensor ema/")
    large = _tensors(prior)
    for tensor in large.values():
        tensor.view(-1)[-1:] = 1e5  # one value of each tensor
    _save(other, 5, "prior", PRIOR, {}, large)
    refused(other, "--dtype", "fp16", match="dtype fp16: .* has values beyond its range")
    name = max(prior.state_dict())
    _save(other, 6, "prior", PRIOR, {}, large | {f"ema/{name}": torch.full_like(large[f"model/{name}"], torch.nan)})
    refused(
        other, match=f"the weights {name} are not finite: the model is broken; export an earlier checkpoint, or train"
    )
    shutil.rmtree(other / "checkpoints/step-0000006")
    state = json.loads((other / "checkpoints/step-0000005/state.json").read_text())
    assert state["step"] == 5  # what was refused is left alone

    output.mkdir()
    (output / "notes.txt").write_text("mine")
    refused(run, match="output .*out is not empty")
    assert (output / "notes.txt").read_text() == "mine"


# ---- whole models


def test_a_whole_model_in_16_bits_draws_and_knows_its_parts(models, codes_clip, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    for part in ("prior", "dvae", "clip"):
        shutil.copytree(models / part, whole / part, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(codes_clip, whole / "codes-clip")
    (whole / "README.md").write_text("a card")
    (whole / "notes.txt").write_text("not a model's")
    (whole / "dvae/config.yaml").write_text("data: /home/secret/shards/train-000.tar\n")
    export([str(whole), "--output", str(out), "--dtype", "fp16"])
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    files = ("config.yaml", "model.safetensors", "tokenizer.json", "tokenizer.words.json")
    there = [f"{part}/{name}" for part in ("clip", "codes-clip", "dvae", "prior") for name in files]
    assert names == ["README.md", *(name for name in there if (whole / name).is_file())]
    assert (out / "dvae/config.yaml").read_text() == "data: shards/train-000.tar\n"
    for part in ("prior", "dvae", "clip", "codes-clip"):
        before, after = load_file(whole / part / "model.safetensors"), load_file(out / part / "model.safetensors")
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            wanted = tensor.half() if tensor.is_floating_point() else tensor
            assert torch.equal(after[name], wanted) and after[name].dtype == wanted.dtype, name
        told, kept = read_header(out / part), read_header(whole / part)
        assert told["config"] == kept["config"] and told["hash"] == content_hash(after) != kept["hash"]
        for name in ("tokenizer_hash", "caption_dropout", "sampling_temperature"):
            assert told.get(name) == kept.get(name)
        assert told.get("dvae_hash") == (read_header(out / "dvae")["hash"] if "dvae_hash" in kept else None)
    said = capsys.readouterr().out
    assert (
        "dvae/: dvae, " in said and "; codes-clip/: clip, " in said and " numbers in fp16; " in said and " MB: " in said
    )
    pipeline = dalle.load(out, device="cpu", precision="fp32", shortlist=True)
    sampling = Sampling(chunk=2, precision="fp32")
    (drawing,) = pipeline.generate("a red circle", n=2, keep=1, sampling=sampling, shortlist=1)
    assert drawing.score is not None
    with pytest.raises(ValueError, match=r"is not empty"):
        export([str(whole), "--output", str(out), "--dtype", "fp16"])
    export([str(out), "--output", str(tmp_path / "again"), "--dtype", "fp16"])  # nothing is lost a second time
    assert read_header(tmp_path / "again/prior") == read_header(out / "prior")


@pytest.fixture
def sharper(models, codes_clip, tmp_path) -> Path:
    """A whole model whose dVAE's decoder alone was trained further, and so is known by the codes of another."""
    whole = tmp_path / "sharper"
    for part in ("prior", "clip"):
        shutil.copytree(models / part, whole / part, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(codes_clip, whole / "codes-clip")
    tensors = load_file(models / "dvae/model.safetensors")
    for name in tensors:
        tensors[name] *= 1.1 if name.startswith("decoder.") else 1
    first = read_header(models / "dvae")["hash"]
    links = {"started_from_hash": first, "codes_of_hash": first}
    save_weights(whole / "dvae", "dvae", tensors, read_config(models / "dvae", "dvae"), links)
    return whole


def test_what_reads_anothers_codes_in_16_bits_has_codes_of_its_own(models, sharper, tmp_path):
    out, first = tmp_path / "out", read_header(models / "dvae")["hash"]
    assert read_header(sharper / "prior")["dvae_hash"] == codes_hash(sharper / "dvae") == first
    export([str(sharper), "--output", str(out), "--dtype", "fp16"])
    told = read_header(out / "dvae")
    assert "codes_of_hash" not in told and told["started_from_hash"] == first
    assert told["hash"] not in (first, read_header(sharper / "dvae")["hash"])
    for part in ("prior", "codes-clip"):
        assert read_header(out / part)["dvae_hash"] == told["hash"] == codes_hash(out / "dvae")
    pipeline = dalle.load(out, device="cpu", precision="fp32", shortlist=True)
    (drawing,) = pipeline.generate("a red circle", n=2, keep=1, sampling=Sampling(chunk=2), shortlist=1)
    assert drawing.settings["models"]["dvae"] == told["hash"] and "codes" not in drawing.settings["models"]
    # it is no other name of the first: neither takes the other's codes
    for folder, dvae in ((sharper, out / "dvae"), (out, models / "dvae")):
        with pytest.raises(ValueError, match="was trained with another dVAE"):
            find_models(folder, dvae=dvae)
    again = tmp_path / "again"
    export([str(out), "--output", str(again), "--dtype", "fp16"])
    assert all(read_header(again / part) == read_header(out / part) for part in ("dvae", "prior", "codes-clip"))


def test_what_reads_anothers_codes_in_its_own_precision_still_does(models, sharper, tmp_path, recwarn):
    export([str(sharper), "--output", str(tmp_path / "out")])
    for part in ("dvae", "prior", "clip", "codes-clip"):
        assert read_header(tmp_path / "out" / part) == read_header(sharper / part)
    find_models(tmp_path / "out", dvae=models / "dvae")
    export([str(sharper / "dvae"), "--output", str(tmp_path / "dvae")])
    assert read_header(tmp_path / "dvae") == read_header(sharper / "dvae")
    assert not [each for each in recwarn if "other codes" in str(each.message)]


@pytest.mark.parametrize(("dtype", "kept"), [("fp32", True), ("bf16", False)])
def test_a_checkpoint_of_what_reads_anothers_codes(tmp_path, dtype, kept):
    torch.manual_seed(0)
    links = {"codes_of_hash": "c" * 64, "started_from_hash": "d" * 64}
    _save(tmp_path / "run", 1, "dvae", DVAE_SIZES, links, _tensors(DVAE(DVAE_SIZES)))
    export([str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--dtype", dtype])
    told = read_header(tmp_path / "out")
    assert told["started_from_hash"] == "d" * 64 and ("codes_of_hash" in told) == kept
    assert codes_hash(tmp_path / "out") == ("c" * 64 if kept else told["hash"])


def test_a_finished_single_model(models, tmp_path):
    finished = tmp_path / "finished"
    shutil.copytree(models / "prior", finished, ignore=shutil.ignore_patterns("checkpoints"))
    export([str(finished), "--output", str(tmp_path / "out"), "--dtype", "bf16"])
    before, after = load_file(finished / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(after[name], tensor.bfloat16()) for name, tensor in before.items())
    assert read_header(tmp_path / "out")["dvae_hash"] == read_header(finished)["dvae_hash"]
    shutil.copytree(models / "dvae", tmp_path / "dvae", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.warns(UserWarning, match="in bf16 this dVAE makes other codes"):
        export([str(tmp_path / "dvae"), "--output", str(tmp_path / "out-dvae"), "--dtype", "bf16"])
    with pytest.raises(ValueError, match=r"weights trained: .*finished holds no complete checkpoint"):
        export([str(finished), "--output", str(tmp_path / "two"), "--weights", "trained"])


def test_parts_that_do_not_belong_together_are_not_exported(models, codes_clip, tmp_path):
    whole = tmp_path / "whole"
    for part in ("prior", "dvae", "clip"):
        shutil.copytree(models / part, whole / part, ignore=shutil.ignore_patterns("checkpoints"))
    sizes = read_config(whole / "dvae", "dvae")
    tensors = {name: 2 * tensor for name, tensor in load_file(whole / "dvae/model.safetensors").items()}
    save_weights(whole / "dvae", "dvae", tensors, sizes, {})
    with pytest.raises(ValueError, match="was trained with another dVAE"):
        export([str(whole), "--output", str(tmp_path / "out")])
    shutil.rmtree(whole / "dvae")
    shutil.copytree(models / "dvae", whole / "dvae", ignore=shutil.ignore_patterns("checkpoints"))
    reader, links = load_file(codes_clip / "model.safetensors"), {**LINKS, "dvae_hash": "f" * 64}
    save_weights(whole / "codes-clip", "clip", reader, read_config(codes_clip, "clip"), links)
    with pytest.raises(ValueError, match=r"the reader of codes .* was trained for another dVAE"):
        export([str(whole), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
