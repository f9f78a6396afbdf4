"""What the training loop is given: a stage's objective, its data, and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from dalle.cluster.topology import World
from dalle.config import Optimizer
from dalle.data.counts import Counts


@dataclass(frozen=True)
class Start:
    """A finished model that a training starts from.

    Args:
        folder: of the model
        links: what the header of the trained weights tells of it, beside the stage's own
        reads: whether its weights are read; a resumed run has them in its checkpoint
        takes: whether a weight, by its name, is taken from it; the others begin anew
    """

    folder: str
    links: dict[str, str]
    reads: bool
    takes: Callable[[str], bool] = lambda name: True


@dataclass(frozen=True)
class Opponent:
    """A player that the model is trained against, and that learns as the model does.

    Args:
        objective: module with a `model`; called with a batch it returns (loss, metrics)
        optimizer: its own
    """

    objective: nn.Module
    optimizer: Optimizer


@dataclass
class Stage:
    """What is trained, and on what.

    Args:
        kind: "dvae", "prior", "clip", "stackgan" or "text-encoder"
        objective: module with a `model`; called with a batch it returns (loss, metrics)
        opponents: who else learns, by name, each moving before the model in every update; {} where it learns alone
        loader: endless batches of this rank, with `state_dict`, and `load_state_dict` that takes the union of all ranks'
        unit: what is counted, "images" or "tokens"
        units_per_sample: how many of them a sample has
        model_config: sizes, written beside the weights
        flops_per_sample: floating-point operations of training on one; null where they are not counted
        prepare: makes an update's micro-batches ready: schedules, tokens, counts over all ranks
        validate: figures of the (averaged) model on held-out data, called on every rank, whose means they become; null
            where there is none. A stage whose weights are never sharded may do with the first rank alone
        draw: pictures of what the (averaged) model does, called on the first rank
        check: from the logged figures to plain warnings
        give_up: asked after each log line, on every rank: why the run should end although its numbers are finite, on all ranks alike;
            null goes on
        conclude: lines that are said at the end, called on every rank
        samples: what happened to the samples so far, those of this rank, by the setting that names the data; {} where another
            rank tells, or where nothing can be left out
        derive: from the means, since the last log line and over all ranks, of metrics that are vectors to figures
        highlights: names of the figures that the progress bar shows beside loss and step size
        data: the files of training data, by which a resumed run tells whether they are those of before
        links: hashes of what it is trained with
        start: the finished model that it starts from; null begins with random weights
        trained_on: the same in a few words
        next_command: what a user would run with the trained model
        is_alone: whether it tells at its end what a user would run; not where another command runs it
        warnings: what is to be said once, at the start
        facts: of the training, that whoever loads the weights has to know; written into their header beside the links, but
            a resumed run may change them
        files: what belongs into the model's folder from the start, by its path in there: a text, or the file that is to be copied
    """

    kind: str
    objective: nn.Module
    loader: Any
    unit: str
    units_per_sample: int
    model_config: Any
    opponents: dict[str, Opponent] = field(default_factory=dict)
    flops_per_sample: int | None = None
    prepare: Callable[[list[dict], int, World], None] = lambda micro_batches, step, world: None
    validate: Callable[[], dict[str, float]] | None = None
    draw: Callable[[], dict[str, Image.Image]] | None = None
    check: Callable[[int, dict[str, float]], list[str]] = lambda step, values: []
    give_up: Callable[[], str | None] = lambda: None
    conclude: Callable[[], list[str]] = list
    samples: Callable[[], dict[str, Counts]] = dict
    derive: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda vectors: {}
    highlights: tuple[str, ...] = ()
    data: Sequence[str] = ()
    links: dict[str, str] = field(default_factory=dict)
    start: Start | None = None
    trained_on: str = ""
    next_command: str = ""
    is_alone: bool = True
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    files: Mapping[str, str | Path] = field(default_factory=dict)
