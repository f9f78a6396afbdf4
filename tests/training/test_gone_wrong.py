"""Runs whose numbers go wrong: how long they go on, what they say, and with what exit code they end."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dalle.checkpoints.checkpoint import Fragment
from dalle.cli import arguments
from dalle.cli.train import train
from dalle.cluster.topology import World
from dalle.config import TrainDVAE, TrainPrior
from dalle.config.checks import Hopeless
from dalle.objectives.dvae import DVAEObjective
from dalle.objectives.prior import PriorObjective
from dalle.stages import dvae
from dalle.training import loop, saving
from dalle.training.engine import Engine
from tests.conftest import TINY_DVAE, TINY_PRIOR
from tests.processes import ON_CPU, run_processes


def _arguments(models: Path, output: Path, *more: str) -> list[str]:
    inputs = ["--dvae", f"{models}/dvae", "--tokenizer", f"{models}/prior/tokenizer.json"]
    return [*TINY_PRIOR, "--data", f"{models}/tokens/train", *inputs, "--output", str(output), *more]


def _warnings(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["warning"] for line in lines if "were skipped" in line.get("warning", "")]


def _spoil_gradients(monkeypatch, calls) -> None:
    """Let the gradients of some updates be infinite, whose losses are not."""
    whole, count = PriorObjective.forward, iter(range(10**9))

    def spoilt(objective, batch):
        loss, metrics = whole(objective, batch)
        if objective.training and next(count) in calls:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss, metrics

    monkeypatch.setattr(PriorObjective, "forward", spoilt)


def _updates_that_fail(monkeypatch, failing: list[bool], calls: range) -> None:
    """In place of updates: what `before_step` says when resblocks' gradients are not finite in fp16. Training a prior to there
    would take minutes."""
    whole, seen, count = Engine.update, {}, iter(range(10**9))

    def update(engine, micro_batches, step, *more):
        if not seen:
            seen.update(whole(engine, micro_batches, step, *more))
        bad = next(count) in calls
        engine.scales.update(torch.tensor([not (bad and fails) for fails in failing]))
        told = {"skipped": torch.tensor(float(bad)), "hopeless": (~engine.scales.falling).float() * bad}
        return {**seen, **told}

    monkeypatch.setattr(Engine, "update", update)


def test_scales_have_all_the_time_that_appendix_d_takes(models, tmp_path, monkeypatch):
    """From 2¹³ down to 2⁷ are 12 divisions by √2, 125 updates apart: 1,376 updates without one that is applied."""
    precision = ["--run.precision", "fp16-per-block", "--run.log_every_steps", "50", "--run.steps", "1500"]
    failing = [False, False, True, False, False, True, False, False, False]
    with monkeypatch.context() as patched:
        _updates_that_fail(patched, failing, range(1376))
        assert train("prior", TrainPrior, _arguments(models, tmp_path / "in time", *precision))
    with monkeypatch.context() as patched:
        _updates_that_fail(patched, failing, range(10**9))
        told = (
            r"^the last 1400 updates up to 1400 were skipped: gradients of resblocks 2, 5 were not finite in fp16, with scales "
            r"of 2\^7\.0 to 2\^7\.0, of which 2\^7\.0 is the least\. Weights and moments"
        )
        with pytest.raises(loop.NotFinite, match=told):
            train("prior", TrainPrior, _arguments(models, tmp_path / "too late", *precision))
    assert len(_warnings(tmp_path / "too late")) == 1400 / 50  # one line a log interval
    assert list((tmp_path / "too late/checkpoints").glob("step-*"))


def _figures(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_the_norm_of_gradients_is_over_the_updates_that_had_one(models, tmp_path, monkeypatch):
    found = {}
    for steps in ("1", "4"):
        with monkeypatch.context() as patched:
            _spoil_gradients(patched, {1, 2})
            more = ["--run.steps", "4", "--run.log_every_steps", steps]
            train("prior", TrainPrior, _arguments(models, tmp_path / steps, *more))
        found[steps] = [line["gradient_norm"] for line in _figures(tmp_path / steps)]
    assert found["1"][1:3] == [None, None]
    assert found["4"] == [pytest.approx((found["1"][0] + found["1"][3]) / 2)]


def test_figures_of_the_codebook_are_of_losses_that_are_finite(shapes_folder, tmp_path, monkeypatch):
    """Of a codebook of 16 no more than 16 codes are used, and one of which nothing is known has not collapsed."""
    whole, count = DVAEObjective.forward, iter(range(10**9))

    def spoilt(objective, batch):
        loss, metrics = whole(objective, batch)
        if objective.training and next(count) in {1, 3, 4, 5, 6, 7}:
            loss = loss * math.nan
        return loss, metrics | {"loss": loss.detach()}

    monkeypatch.setattr(DVAEObjective, "forward", spoilt)
    monkeypatch.setattr(dvae, "_FIRST_STEPS", 4)  # from which on it would be told
    more = ["--run.steps", "8", "--run.log_every_steps", "4", "--output", str(tmp_path / "run")]
    train("dvae", TrainDVAE, [*TINY_DVAE, "--data", f"{shapes_folder}/train-*.tar", *more])
    first, second = _figures(tmp_path / "run")
    assert 1 <= first["codes_used"] <= 16 and 1 <= first["perplexity"] <= 16
    assert first["codes_used"] == round(first["codes_used"])
    unknown = ("loss", "psnr_db", "perplexity", "codes_used", "gradient_norm")
    assert [second[name] for name in unknown] == [None] * 5
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert not any("collapsed" in json.loads(line).get("warning", "") for line in lines)


@pytest.mark.parametrize(("skipped", "blamed"), [(4, False), (5, True)])
def test_losses_of_several_processes_explain_all_that_they_do(skipped, blamed):
    """Two that are bad on each of two processes, in other updates, explain four skips, and not a fifth."""
    by_rank = [torch.tensor([False, False, True, True, True]), torch.tensor([True, True, False, False, True])]
    said = []
    training = SimpleNamespace(
        world=SimpleNamespace(gather=lambda _: by_rank),
        engine=SimpleNamespace(scales=None),
        telemetry=SimpleNamespace(warn=said.append),
        step=5,
    )
    loop._Training._explain(training, list(by_rank[0]), skipped, 0, 0)
    assert said[0].startswith(
        f"{skipped} of the 5 updates up to 5 were skipped: the loss was not finite on rank 0 in 2, rank 1 in 2"
    )
    assert ("; the norm of the gradients was not finite" in said[0]) == blamed


def test_usual_skips_are_no_warning(models, tmp_path, monkeypatch):
    """Up to a fifth of a log interval's, where losses are finite."""
    _spoil_gradients(monkeypatch, {1, 11, 12, 13})
    more = ["--run.steps", "20", "--run.log_every_steps", "10"]
    train("prior", TrainPrior, _arguments(models, tmp_path / "some", *more))
    found = _warnings(tmp_path / "some")
    assert found == ["3 of the 10 updates up to 20 were skipped: the norm of the gradients was not finite"]


def test_gradients_that_no_scale_mends_end_the_run(models, tmp_path, monkeypatch):
    """With no scale at once, as losses do that are not finite; with one for the model when it cannot become smaller."""
    for name, precision, ended, why in (
        ("plain", "fp32", 13, "the norm of the gradients was not finite"),
        # 16 halvings from 2¹⁶ to 1
        ("scaled", "fp16", 3 + 16 + 10, r"gradients of the model were not finite in fp16, with scales of 2\^0\.0"),
    ):
        with monkeypatch.context() as patched:
            _spoil_gradients(patched, range(3, 10**9))
            with pytest.raises(Hopeless, match=f"^the last {ended - 3} updates up to {ended} were skipped: {why}"):
                train(
                    "prior",
                    TrainPrior,
                    _arguments(models, tmp_path / name, "--run.steps", "99", "--run.precision", precision),
                )


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("3", 0)])
def test_the_command_says_it_once_and_has_its_own_exit_code(monkeypatch, capsys, rank, lines):
    """All ranks fail alike; Slurm's script does not go on after this code (`tests/test_launch.py`)."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("DALLE_DEBUG", raising=False)

    def fail():
        raise loop.NotFinite("the last 10 updates were skipped")

    with pytest.raises(SystemExit) as ended:
        arguments.run(fail, "dalle-train-prior")
    assert ended.value.code == 3
    told = capsys.readouterr().err.splitlines()
    assert told == ["dalle-train-prior (rank 0): the last 10 updates were skipped"] * lines


def test_a_difference_between_processes_ends_the_run_on_all(models, tmp_path):
    """With one line and exit code 3, and without a checkpoint of what differs."""
    script = f"""
import contextlib, io, json, sys
import torch
from safetensors.torch import load_file
from dalle.cli.train import train_prior
from dalle.training.engine import Engine

whole = Engine.update

def update(engine, micro_batches, step, *more):
    told = whole(engine, micro_batches, step, *more)
    if step == 3 and engine.world.rank == 1:
        with torch.no_grad():
            next(engine.model.parameters()).view(-1)[0] += 2**-20
    return told

Engine.update = update
sys.argv = ["dalle-train-prior", *{_arguments(models, tmp_path / "run", "--run.steps", "9")!r}]
with contextlib.redirect_stderr(io.StringIO()) as said:
    try:
        train_prior()
    except SystemExit as ended:
        print(json.dumps([ended.code, said.getvalue()]))
"""
    code, said = json.loads(run_processes(script, 2, 2, environment=ON_CPU).splitlines()[-1])
    assert code == 3
    # of two nobody knows which is right: the first is taken for it
    told = [line for line in said.splitlines() if "the weights of rank 1 of 2 differ from those of others" in line]
    assert len(told) == 1 and told[0].startswith("dalle-train-prior (rank 0): ")
    assert not (tmp_path / "run/checkpoints").exists()


_NOT_FINITE = (
    "the weights {} are not finite after {} updates, so nothing is written of them: {} a smaller optimizer.step_size"
)
_EARLIER = "go on from the checkpoint before with --resume and"


def _spoil_weights(monkeypatch, step: int, averages: bool) -> None:
    """Let a weight, or an average, be infinite after the update of this number."""
    whole = Engine.update

    def update(engine, micro_batches, number, step_size, ema):
        told = whole(engine, micro_batches, number, step_size, ema)
        held = ema.averages if averages else engine.model.state_dict()
        if number == step:
            held["image_head.weight"].view(-1)[-1] = math.inf
        return told

    monkeypatch.setattr(Engine, "update", update)


@pytest.mark.parametrize(("averages", "name"), [(False, "image_head.weight"), (True, "ema/image_head.weight")])
def test_weights_that_are_not_finite_replace_nothing(models, tmp_path, monkeypatch, averages, name):
    """The checkpoints before them stay, there is no model, and the run goes on from the last of these."""
    run, often = tmp_path / "run", ["--run.checkpoint_every_minutes", "1e-9", "--run.ema_decay", "0.9"]
    with monkeypatch.context() as patched:
        _spoil_weights(patched, 2, averages)
        with pytest.raises(Hopeless) as ended:
            train("prior", TrainPrior, _arguments(models, run, "--run.steps", "6", *often))
    assert str(ended.value) == _NOT_FINITE.format(name, 3, _EARLIER)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-0000001", "step-0000002"]
    assert not (run / "model.safetensors").exists()
    train("prior", TrainPrior, _arguments(models, run, "--run.steps", "6", *often, "--resume"))
    assert all(w.isfinite().all() for w in load_file(run / "model.safetensors").values())


def test_weights_that_are_not_finite_at_the_end_make_no_model(models, tmp_path, monkeypatch):
    _spoil_weights(monkeypatch, 2, averages=False)
    with pytest.raises(Hopeless) as ended:
        train("prior", TrainPrior, _arguments(models, tmp_path / "run", "--run.steps", "3"))
    assert str(ended.value) == _NOT_FINITE.format("image_head.weight", 3, "begin once more with")
    assert not list((tmp_path / "run").glob("model*")) and not (tmp_path / "run/checkpoints").exists()


def test_a_shard_that_is_not_finite_ends_the_run_on_all(models, tmp_path):
    """Sharded weights are looked at by who holds them, here the second process; both end alike, and nothing is written."""
    script = f"""
import contextlib, io, json, sys
import torch
from dalle.cli.train import train_prior
from dalle.training.engine import Engine

whole = Engine.update

def update(engine, micro_batches, step, step_size, ema):
    told = whole(engine, micro_batches, step, step_size, ema)
    if step == 1 and engine.world.rank == 1:
        held = [ema.averages[name] for name, piece in ema.pieces.items() if engine.writes(name, piece)]
        held[0].view(-1)[-1:] = torch.inf
    return told

Engine.update = update
often = ["--run.checkpoint_every_minutes", "1e-9", "--run.zero_stage", "3", "--run.ema_decay", "0.9"]
sys.argv = ["dalle-train-prior", *{_arguments(models, tmp_path / "run", "--run.steps", "4")!r}, *often]
with contextlib.redirect_stderr(io.StringIO()) as said:
    try:
        train_prior()
    except SystemExit as ended:
        print(json.dumps([ended.code, said.getvalue()]))
"""
    code, said = json.loads(run_processes(script, 2, 2, environment=ON_CPU).splitlines()[-1])
    assert code == 3
    told = [line for line in said.splitlines() if "are not finite" in line]
    assert len(told) == 1 and told[0].startswith("dalle-train-prior (rank 0): the weights ema/")
    assert told[0].endswith(_NOT_FINITE.partition("finite")[2].format(2, _EARLIER))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-0000001"]
    assert not (tmp_path / "run/model.safetensors").exists()


def test_weights_of_an_opponent_count_and_moments_do_not():
    """A moment may be infinite for a while, whose weights stay as they are."""
    training = SimpleNamespace(world=World(0, 1, torch.device("cpu")), folder=Path("nowhere"))
    infinite = torch.tensor([1.0, math.inf])
    moment = Fragment("discriminator/exp_avg_sq/w", (2,), 0, infinite)
    saving.Saver._check_finite(training, 4, [moment, Fragment("model/w", (2,), 0, torch.ones(2))])
    with pytest.raises(Hopeless, match=r"^the weights discriminator/w are not finite after 4 updates"):
        saving.Saver._check_finite(training, 4, [moment, Fragment("discriminator/model/w", (2,), 0, infinite)])


def test_weights_are_compared_before_the_first_update_and_at_every_log_line(models, tmp_path, monkeypatch):
    calls, whole = [], Engine.check_replicas
    plain_update = Engine.update
    monkeypatch.setattr(Engine, "check_replicas", lambda engine: (calls.append("compared"), whole(engine)))
    monkeypatch.setattr(Engine, "update", lambda *given: (calls.append("update"), plain_update(*given))[1])
    train("prior", TrainPrior, _arguments(models, tmp_path / "run", "--run.steps", "4", "--run.log_every_steps", "2"))
    assert calls == ["compared", "update", "update", "compared", "update", "update", "compared"]


def test_a_norm_of_gradients_counts_where_nobody_skipped():
    """Of two players, too, of whom the discriminator has moved when the generator's update is skipped."""
    metrics = {name: torch.tensor(5.0) for name in ("loss", "gradient_norm", "discriminator_gradient_norm")}
    for skipped, norm in ((0.0, 5.0), (1.0, 0.0)):
        told = loop._finite_only(metrics | {"skipped": torch.tensor(skipped), "hopeless": torch.tensor(0.0)})
        assert told["gradient_norm"] == told["discriminator_gradient_norm"] == norm and told["loss"] == 5


def test_a_resumed_run_may_skip_its_first_update(shapes_folder, tmp_path, monkeypatch):
    """What it puts back are the statistics of the checkpoint."""
    whole = DVAEObjective.forward

    def trained(name: str, steps: str, skipped: set[int], *more: str) -> dict[str, torch.Tensor]:
        count = iter(range(10**9))

        def spoilt(objective, batch):
            loss, metrics = whole(objective, batch)
            return (loss * math.nan if objective.training and next(count) in skipped else loss), metrics

        options = ["--model.logit_norm_gain", "3", "--run.steps", steps, "--run.ema_decay", "null", *more]
        with monkeypatch.context() as patched:
            patched.setattr(DVAEObjective, "forward", spoilt)
            data = ["--data", f"{shapes_folder}/train-*.tar", "--output", str(tmp_path / name)]
            train("dvae", TrainDVAE, [*TINY_DVAE, *data, *options])
        return load_file(tmp_path / name / "model.safetensors")

    undisturbed = trained("whole", "6", {4})
    trained("parts", "4", set())
    (tmp_path / "parts/model.safetensors").unlink()
    resumed = trained("parts", "6", {0}, "--resume")
    assert any("running_mean" in name for name in undisturbed)
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)
    # nor does one that begins with finished weights lose theirs
    begun = trained("begun", "1", {0}, "--start_from", str(tmp_path / "whole"))
    assert all(torch.equal(begun[name], undisturbed[name]) for name in undisturbed if "num_batches" not in name)
