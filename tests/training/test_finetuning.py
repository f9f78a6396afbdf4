"""Trainings that start from finished models: they begin with the very weights, whatever each process holds of them, and
tell where they began; decoders that are trained alone leave the codes as they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dalle.cli.export import export
from dalle.cli.train import _start_of_best_of, train
from dalle.config import TrainCLIP, TrainDVAE, TrainPrior
from dalle.data.tokens import Meta, TokenWriter
from dalle.models.folder import codes_hash, read_config, read_header, save_weights
from tests.conftest import ROOT, TINY_CLIP, TINY_DVAE, TINY_PRIOR
from tests.processes import ON_CPU, run_processes

STILL = ["--optimizer.step_size.start", "0", "--optimizer.step_size.end", "0"]
"""Updates that change nothing, not even by weight decay, which is a multiple of the step size."""


def _without_sizes(options: list[str]) -> list[str]:
    return options[options.index("--optimizer.step_size.start") :]


def _prior(models: Path, output: Path, *more: str) -> list[str]:
    inputs = ["--dvae", f"{models}/dvae", "--tokenizer", f"{models}/prior/tokenizer.json"]
    data = ["--data", f"{models}/tokens/train", "--valid_data", f"{models}/tokens/valid"]
    return [*_without_sizes(TINY_PRIOR), *data, *inputs, "--run.steps", "2", "--output", str(output), *more]


def _dvae(shapes_folder: Path, output: Path, *more: str) -> list[str]:
    data = ["--data", f"{shapes_folder}/train-*.tar", "--output", str(output)]
    return [*_without_sizes(TINY_DVAE), *data, "--run.steps", "2", *more]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _metrics(folder: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def _differing(first: Path, second: Path) -> set[str]:
    a, b = _weights(first), _weights(second)
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


def _of_decoder(folder: Path) -> set[str]:
    return {name for name in _weights(folder) if name.startswith("decoder.")}


def _started(kind: str, processes: int, *arguments: str) -> None:
    script = f"import runpy; runpy.run_path({str(ROOT / f'launch/train_{kind}.py')!r}, run_name='__main__')"
    run_processes(script, processes, processes, arguments=arguments, environment=ON_CPU)


@pytest.fixture(scope="module")
def sharpened(models, shapes_folder, tmp_path_factory) -> Path:
    """The dVAE of `models`, its decoder trained further for two updates, with averages and a heavy weight decay."""
    folder = tmp_path_factory.mktemp("sharpened") / "dvae"
    options = ["--from", f"{models}/dvae", "--freeze", "encoder", "--optimizer.weight_decay", "10"]
    train("dvae", TrainDVAE, _dvae(shapes_folder, folder, *options))
    return folder


# --- where a training begins


@pytest.mark.parametrize(
    "more",
    [
        ["--run.zero_stage", "0", "--run.ema_decay", "null"],
        ["--run.zero_stage", "1", "--optimizer.moments", "16-bit", "--optimizer.beta2", "0.96"],
        ["--run.zero_stage", "2", "--optimizer.variance_limit", "5"],
        ["--run.zero_stage", "3"],
    ],
    ids=" ".join,
)
def test_a_prior_begins_with_the_very_weights(models, tmp_path, more):
    """Those of the averages and those of the optimiser, which are others from stage 1 on: what was not given to it would
    come back with its first update."""
    train("prior", TrainPrior, _prior(models, tmp_path / "own", "--from", f"{models}/prior", *STILL, *more))
    assert _differing(models / "prior", tmp_path / "own") == set()
    assert read_config(tmp_path / "own", "prior") == read_config(models / "prior", "prior")
    header, before = read_header(tmp_path / "own"), read_header(models / "prior")
    assert header["started_from_hash"] == before["hash"]
    # how it wants to be drawn with is taken over where nothing else is asked for
    told = ("caption_dropout", "sampling_temperature", "sampling_guidance")
    assert [header[name] for name in told] == [before[name] for name in told] == ["0.1", "0.9", "1.0"]
    told = json.loads((tmp_path / "own/run.json").read_text())["started_from"]
    assert told == {"folder": f"{models}/prior", "started_from_hash": before["hash"]}


def test_processes_share_what_one_reads(models, tmp_path):
    """Two of them hold a half each, and the first alone opens the weights."""
    shutil.copytree(models / "prior", tmp_path / "start")
    more = ["--from", f"{tmp_path}/start", *STILL, "--run.zero_stage", "3"]
    script = f"""
import os, runpy
from pathlib import Path
from dalle.models import weights
if os.environ["RANK"] == "1":
    fill = weights.WeightsFile.read
    def read(*_): raise AssertionError("weights are read twice")
    weights.WeightsFile.read = read
runpy.run_path({str(ROOT / "launch/train_prior.py")!r}, run_name="__main__")
"""
    run_processes(script, 2, 2, arguments=_prior(models, tmp_path / "own", *more), environment=ON_CPU)
    assert _differing(models / "prior", tmp_path / "own") == set()


def test_a_clip_begins_with_the_very_weights(models, shapes_folder, tmp_path):
    data = ["--data", f"{shapes_folder}/train-*.tar", "--tokenizer", f"{models}/prior/tokenizer.json"]
    options = [*_without_sizes(TINY_CLIP), *data, "--run.steps", "1", "--from", f"{models}/clip"]
    train("clip", TrainCLIP, [*options, *STILL, "--output", f"{tmp_path}/own"])
    assert _differing(models / "clip", tmp_path / "own") == set()
    assert read_header(tmp_path / "own")["started_from_hash"] == read_header(models / "clip")["hash"]


def test_a_whole_dvae_goes_on_and_its_codes_are_others(models, shapes_folder, sharpened, tmp_path):
    train("dvae", TrainDVAE, _dvae(shapes_folder, tmp_path / "still", "--from", str(sharpened), *STILL))
    # the statistics of the logits follow the data also where nothing is learned
    assert {name.split(".")[0] for name in _differing(sharpened, tmp_path / "still")} == {"logit_norm"}
    train("dvae", TrainDVAE, _dvae(shapes_folder, tmp_path / "on", "--from", str(sharpened)))
    assert codes_hash(tmp_path / "on") == read_header(tmp_path / "on")["hash"]


def test_a_finetuned_prior_begins_at_its_loss_and_goes_below(models, tmp_path):
    more = ["--optimizer.step_size.start", "6e-3", "--optimizer.step_size.end", "6e-3", "--run.ema_decay", "0.5"]
    train("prior", TrainPrior, [*TINY_PRIOR, *_prior(models, tmp_path / "first", "--run.steps", "15", *more)])
    (before,) = _metrics(tmp_path / "first", "valid/loss")
    begin = ["--from", f"{tmp_path}/first", "--bpe_dropout", "0"]
    train("prior", TrainPrior, _prior(models, tmp_path / "still", *begin, *STILL))
    assert _metrics(tmp_path / "still", "valid/loss") == [pytest.approx(before, abs=1e-6)]  # the same sums
    train("prior", TrainPrior, _prior(models, tmp_path / "on", "--run.steps", "15", *begin, *more))
    (after,) = _metrics(tmp_path / "on", "valid/loss")
    untrained = _metrics(tmp_path / "first")[0]
    # 15 updates took it from 3.2 to 2.4 or so; as many more take it on by a tenth of that at least
    assert before < untrained - 0.3 and after < before - 0.03
    assert abs(_metrics(tmp_path / "on")[0] - before) < 0.1 * (untrained - before) + 0.1


@pytest.mark.parametrize("kind", ["prior", "dvae"])
def test_a_resumed_run_needs_no_start(models, shapes_folder, tmp_path, kind):
    """Nor reads it once more."""
    start = tmp_path / "start"
    shutil.copytree(models / kind, start)

    def options(name: str, *more: str) -> list[str]:
        made = _prior(models, tmp_path / name) if kind == "prior" else _dvae(shapes_folder, tmp_path / name)
        own = ["--from", str(start), *(["--freeze", "encoder"] if kind == "dvae" else [])]
        return [*made, *own, *more]

    cls = {"prior": TrainPrior, "dvae": TrainDVAE}[kind]
    train(kind, cls, options("whole", "--run.steps", "4"))
    train(kind, cls, options("parts"))
    header = read_header(tmp_path / "parts")
    shutil.rmtree(start)
    with pytest.raises(ValueError, match=r"made with start_from \".*start\", not \".*prior\": leave it out"):
        train(kind, cls, ["--output", f"{tmp_path}/parts", "--resume", "--from", f"{models}/prior"])
    train(kind, cls, ["--output", f"{tmp_path}/parts", "--resume", "--run.steps", "4"])
    assert _metrics(tmp_path / "parts") == _metrics(tmp_path / "whole")
    assert _differing(tmp_path / "parts", tmp_path / "whole") == set()
    names = {"started_from_hash", *(["codes_of_hash"] if kind == "dvae" else [])}
    for folder in ("parts", "whole"):
        found = read_header(tmp_path / folder)
        assert {name: found.get(name) for name in names} == {name: header[name] for name in names}
        told = json.loads((tmp_path / folder / "run.json").read_text())["started_from"]
        assert told == {"folder": str(start), **{name: header[name] for name in names}}


@pytest.mark.parametrize("name", ["tiny", "tiny/prior"])
def test_models_are_named_as_everywhere(models, tmp_path, monkeypatch, name):
    """Ready weights by their names, whole or in part, do what their folders do; the run remembers the names."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/tiny").symlink_to(models)
    monkeypatch.setattr("dalle.ready.names.weights_folder", lambda: tmp_path / "weights")
    train("prior", TrainPrior, _prior(models, tmp_path / "paths", "--from", f"{models}/prior"))
    named = ["--from", name, "--dvae", "tiny", "--tokenizer", name, "--run.steps", "1"]
    train("prior", TrainPrior, [*_prior(models, tmp_path / "names"), *named])
    recorded = yaml.safe_load((tmp_path / "names/config.yaml").read_text())
    assert [recorded[key] for key in ("start_from", "dvae", "tokenizer")] == [name, "tiny", name]
    train("prior", TrainPrior, ["--output", f"{tmp_path}/names", "--resume", "--run.steps", "2"])
    assert _differing(tmp_path / "paths", tmp_path / "names") == set()


def test_who_learns_from_its_own_candidates_starts_from_who_draws_them(models):
    """Said as a folder, by name, or as a repository of the Hub, which has no paths below it."""

    def start(*words: str) -> list[str]:
        return _start_of_best_of([word for word in words if word])

    assert start("--best_of.model", str(models)) == ["--start_from", f"{models}/prior"]
    assert start("--best_of.model=icons") == ["--start_from", "icons"]
    assert start("--best_of.model", "owner/name@main") == ["--start_from", "owner/name@main"]
    assert start("--best_of.model", "icons", "--start_from", "shapes") == []
    assert start("--best_of.model", "icons", "--best_of", "null") == []


# --- what is refused


def _refused(match: str, kind: str, argv: list[str]) -> None:
    cls = {"prior": TrainPrior, "dvae": TrainDVAE, "clip": TrainCLIP}[kind]
    with pytest.raises(ValueError, match=match) as refusal:
        train(kind, cls, argv)
    assert "\n" not in str(refusal.value)


def test_starts_that_cannot_be(models, shapes_folder, sharpened, tmp_path):
    prior, dvae = models / "prior", models / "dvae"
    out = tmp_path / "out"
    shutil.copytree(prior, tmp_path / "stopped")
    (tmp_path / "stopped/model.safetensors").unlink()
    unfinished = (
        f"start_from {tmp_path}/stopped: holds no finished model .*dalle-export {tmp_path}/stopped --output MODEL"
    )
    _refused(unfinished, "prior", _prior(models, out, "--from", f"{tmp_path}/stopped"))
    _refused(
        "^start_from gone: no such folder, and no such ready model", "prior", _prior(models, out, "--from", "gone")
    )
    _refused("^dvae gone: no such folder, and no such ready", "prior", [*_prior(models, out), "--dvae", "gone"])
    _refused("^tokenizer gone: no such folder, and no such", "prior", [*_prior(models, out), "--tokenizer", "gone"])
    _refused("^no such tokenizer file: gone.json", "prior", [*_prior(models, out), "--tokenizer", "gone.json"])
    _refused("holds a dvae, not a prior", "prior", _prior(models, out, "--from", str(dvae)))
    other_depth = rf"model\.depth 2: start_from {prior} has 4; leave it out"
    _refused(other_depth, "prior", _prior(models, out, "--from", str(prior), "--model.depth", "2"))
    _refused(
        "freeze encoder: .*name a finished dVAE with --from", "dvae", _dvae(shapes_folder, out, "--freeze", "encoder")
    )
    frozen = _dvae(shapes_folder, out, "--from", str(dvae), "--freeze", "encoder")
    _refused(
        r"model\.encoder_width 16: .* has 8; leave it out, for only these may differ: decoder_input_width",
        "dvae",
        [*frozen, "--model.encoder_width", "16"],
    )
    unfrozen = _dvae(shapes_folder, out, "--from", str(dvae), "--model.decoder_width", "16")
    _refused(r"model\.decoder_width 16: .* has None; leave it out", "dvae", unfrozen)
    _refused("must be one of encoder", "dvae", [*frozen, "--freeze", "decoder"])
    assert not out.exists()


def test_a_start_of_other_codes_or_tokens_is_refused(models, shapes_folder, codes_clip, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("a b c d e f g h\n" * 9)
    from dalle.cli.data.train_tokenizer import train_tokenizer

    other = tmp_path / "tokenizer.json"
    train_tokenizer(["--data", str(words), "--output", str(other), "--vocabulary", "290"])
    said = "start_from .*prior was trained with another tokenizer than this training has: expected"
    _refused(said, "prior", [*_prior(models, tmp_path / "out", "--from", f"{models}/prior"), "--tokenizer", str(other)])
    pairs = ["--data", f"{shapes_folder}/train-*.tar", "--output", f"{tmp_path}/out", "--run.steps", "1"]
    clip = [*_without_sizes(TINY_CLIP), *pairs, "--from", f"{models}/clip", "--tokenizer", str(other)]
    _refused("start_from .*clip was trained with another tokenizer", "clip", clip)
    # of another dVAE, of the same sizes, with tokens of its own
    weights = {n: 1.5 * t if t.is_floating_point() else t for n, t in _weights(models / "dvae").items()}
    digest = save_weights(tmp_path / "dvae", "dvae", weights, read_config(models / "dvae", "dvae"), {})
    with TokenWriter(
        tmp_path / "tokens", Meta(grid=4, codebook_size=16, dvae_hash=digest), pairs_per_shard=9
    ) as writer:
        for _ in range(9):
            writer.add(torch.zeros(16).numpy(), ["a red circle"])
        writer.close()
    options = ["--from", f"{models}/prior", "--dvae", f"{tmp_path}/dvae", "--data", f"{tmp_path}/tokens"]
    said = "start_from .*prior was trained with another dVAE than this training has: expected"
    _refused(said, "prior", [*_prior(models, tmp_path / "out"), "--valid_data", "null", *options])
    reader = [*_without_sizes(TINY_CLIP), *pairs, "--tokenizer", f"{models}/prior/tokenizer.json"]
    _refused(
        "start_from .*codes-clip was trained with another dVAE",
        "clip",
        [*reader, "--from", str(codes_clip), "--dvae", f"{tmp_path}/dvae"],
    )
    # what reads pixels may see what another dVAE makes of them
    train("clip", TrainCLIP, [*reader, "--from", f"{models}/clip", "--dvae", f"{tmp_path}/dvae"])


@pytest.mark.parametrize("spoil", ["values", "cut off"])
def test_a_damaged_start_is_told_by_name(models, tmp_path, spoil):
    shutil.copytree(models / "prior", tmp_path / "start")
    path = tmp_path / "start/model.safetensors"
    data = bytearray(path.read_bytes())
    data = data[:-8] if spoil == "cut off" else data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    path.write_bytes(data)
    _refused(
        "model.safetensors (is damaged: the values of|cannot be read: it is cut off)",
        "prior",
        _prior(models, tmp_path / "out", "--from", f"{tmp_path}/start"),
    )


# --- the decoder alone


def test_gradients_of_16_bits_are_of_the_decoder_alone(models, shapes_folder, tmp_path):
    half = ["--run.precision", "fp16", "--run.reduce_factor", "8"]
    more = ["--from", f"{models}/dvae", "--freeze", "encoder", *half]
    train("dvae", TrainDVAE, _dvae(shapes_folder, tmp_path / "dvae", *more))
    assert _differing(models / "dvae", tmp_path / "dvae") == _of_decoder(tmp_path / "dvae")


@pytest.mark.parametrize("stage", ["0", "1", "2"])
def test_codes_stay_and_the_decoder_learns(models, shapes_folder, sharpened, tmp_path, stage):
    """Whatever is sharded, with averages and a weight decay that would halve what it reaches."""
    folder = sharpened
    if stage != "0":
        folder = tmp_path / "dvae"
        more = ["--from", f"{models}/dvae", "--freeze", "encoder", "--run.zero_stage", stage]
        train("dvae", TrainDVAE, _dvae(shapes_folder, folder, *more, "--optimizer.weight_decay", "10"))
        assert _metrics(folder) == pytest.approx(_metrics(sharpened), abs=1e-6)
    assert _differing(models / "dvae", folder) == _of_decoder(folder)
    header = read_header(folder)
    assert header["started_from_hash"] == header["codes_of_hash"] == read_header(models / "dvae")["hash"]
    assert codes_hash(folder) == codes_hash(models / "dvae") != header["hash"]


def test_two_processes_train_the_decoder_of_one(models, shapes_folder, sharpened, tmp_path):
    more = [
        "--from",
        f"{models}/dvae",
        "--freeze",
        "encoder",
        "--optimizer.weight_decay",
        "10",
        "--run.zero_stage",
        "2",
    ]
    _started("dvae", 2, *_dvae(shapes_folder, tmp_path / "two", *more))
    assert _differing(models / "dvae", tmp_path / "two") == _of_decoder(sharpened)
    # the same sums over the batch in another order
    assert _metrics(tmp_path / "two") == pytest.approx(_metrics(sharpened), abs=1e-5)


def test_a_learned_prior_over_codes_stays_too(shapes_folder, tmp_path):
    learned = ["--model.code_prior", "learned", "--run.steps", "3"]
    train("dvae", TrainDVAE, [*TINY_DVAE, *_dvae(shapes_folder, tmp_path / "first", *learned)])
    assert _weights(tmp_path / "first")["code_prior_K"].abs().max() > 0
    more = ["--from", f"{tmp_path}/first", "--freeze", "encoder"]
    train("dvae", TrainDVAE, _dvae(shapes_folder, tmp_path / "on", *more))
    assert _differing(tmp_path / "first", tmp_path / "on") == _of_decoder(tmp_path / "on")


def test_a_larger_decoder_begins_anew_behind_the_same_encoder(models, shapes_folder, tmp_path):
    more = ["--from", f"{models}/dvae", "--freeze", "encoder"]
    larger = ["--model.decoder_width", "16", "--model.decoder_blocks_per_group", "2", *STILL]
    train("dvae", TrainDVAE, _dvae(shapes_folder, tmp_path / "larger", *more, *larger))
    before, after = _weights(models / "dvae"), _weights(tmp_path / "larger")
    same = {name for name in before if not name.startswith("decoder.")}
    assert all(torch.equal(before[name], after[name]) for name in same)
    assert {name for name in after if not name.startswith("decoder.")} == same
    assert after["decoder.blocks.output.conv.weight"].shape == (6, 16, 1, 1)
    assert "decoder.blocks.group_4.block_2.res_path.conv_4.weight" in after
    assert codes_hash(tmp_path / "larger") == codes_hash(models / "dvae")
    # a lower floor under ln b is no other decoder: its weights go on
    train("dvae", TrainDVAE, _dvae(shapes_folder, tmp_path / "floor", *more, "--model.min_ln_b", "-2", *STILL))
    assert _differing(models / "dvae", tmp_path / "floor") == set()
    assert read_config(tmp_path / "floor", "dvae").min_ln_b == -2


def test_an_exported_decoder_still_reads_the_codes(models, sharpened, tmp_path):
    export([str(sharpened), "--output", f"{tmp_path}/exported"])
    assert _differing(sharpened, tmp_path / "exported") == set()
    for name in ("codes_of_hash", "started_from_hash"):
        assert read_header(tmp_path / "exported")[name] == read_header(models / "dvae")["hash"]
