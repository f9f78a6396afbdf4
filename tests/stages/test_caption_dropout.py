"""Caption dropout while training: never in validation, no division by zero, and resumed as it was."""

import json
from dataclasses import replace

import pytest
import torch

from dalle.cli import arguments
from dalle.cli.train import train
from dalle.cluster.topology import World
from dalle.config import PriorModel, TrainPrior
from dalle.config import PriorObjective as PriorObjectiveConfig
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective
from dalle.stages.prior import count_text_targets, stage
from dalle.text import PAD
from tests.conftest import TINY_PRIOR

ALONE = World(0, 1, torch.device("cpu"))
TEXT = torch.tensor([[1, 2, PAD], [3, PAD, PAD]])
NONE = torch.full((2, 3), PAD)
CODES = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]])


def _micro_batches(*texts):
    batches = [{"text_BU": text, "codes_BI": CODES} for text in texts]
    count_text_targets(batches, 0, ALONE)
    return batches


def test_the_text_loss_is_the_mean_over_the_tokens_there_are():
    assert [b["text_targets"].item() for b in _micro_batches(TEXT, NONE)] == [1.5, 1.5]
    # fewer than one token a micro-batch is a mean like any other
    one = torch.tensor([[7, PAD, PAD]])
    assert [b["text_targets"].item() for b in _micro_batches(one, NONE, NONE, NONE)] == [0.25] * 4
    assert [b["text_targets"].item() for b in _micro_batches(NONE, NONE)] == [1, 1]


def test_a_batch_without_captions_has_a_finite_loss_of_its_images_alone():
    config = PriorModel(text_slots=4, grid=2, text_vocabulary=9, codebook_size=7, width=8, depth=1, heads=1)
    torch.manual_seed(0)
    objective = PriorObjective(Prior(config), PriorObjectiveConfig())
    (batch,) = _micro_batches(NONE)
    loss, metrics = objective(batch)
    loss.backward()
    assert metrics["text_nats"].item() == 0
    assert loss.item() == pytest.approx(7 / 8 * metrics["image_nats"].item())
    assert metrics["image_nats"].item() > 1
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    assert objective.model.text_pads.weight.grad[1:].abs().sum() > 0
    assert objective.model.text_head.weight.grad.abs().sum() == 0


def _arguments(models, output, *more: str) -> list[str]:
    inputs = ["--dvae", f"{models}/dvae", "--tokenizer", f"{models}/prior/tokenizer.json"]
    return [*TINY_PRIOR, "--data", f"{models}/tokens/train", *inputs, "--output", str(output), *more]


def _lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_drops_nearly_all_is_finite_and_resumes(models, tmp_path):
    def run(name, steps, *more):
        more = ["--caption_dropout", "0.9", "--run.steps", str(steps), *more]
        train("prior", TrainPrior, _arguments(models, tmp_path / name, *more))
        return [line["loss"] for line in _lines(tmp_path / name) if "loss" in line]

    whole = run("whole", 6)
    assert all(0 < loss < 10 for loss in whole)
    text = [line["text_nats"] for line in _lines(tmp_path / "whole") if "text_nats" in line]
    # of batches of 8 pairs four in ten have no caption at all
    assert 0 in text
    assert any(text)
    run("parts", 3)
    assert run("parts", 6, "--resume") == whole
    # as BPE dropout, which may be changed as well
    assert len(run("parts", 8, "--resume", "--caption_dropout", "0", "--bpe_dropout", "0")) == 8


def test_validation_drops_no_captions(models, tmp_path):
    valid = ["--valid_data", f"{models}/tokens/valid", "--run.steps", "1"]
    config = arguments.parse(TrainPrior, "test", _arguments(models, tmp_path, *valid))
    found = []
    for rate in (0.0, 0.97):
        made = stage(replace(config, caption_dropout=rate), ALONE)
        with torch.no_grad():
            found.append((made.validate(), next(iter(made.loader))["text_BU"]))
    (figures, text_BU), (same, dropped_BU) = found
    assert figures == same
    assert figures["text_nats"] > 1
    assert (dropped_BU == PAD).sum() > (text_BU == PAD).sum(), "the training batches are others"


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_refused_rates(rate):
    inputs = ["--data", "x", "--output", "x", "--dvae", "x", "--tokenizer", "x", *TINY_PRIOR, "--run.steps", "1"]
    with pytest.raises(ValueError, match=rf"caption_dropout {rate}: must lie in \[0, 1\)"):
        arguments.parse(TrainPrior, "test", [*inputs, f"--caption_dropout={rate}"])
