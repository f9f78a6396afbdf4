"""What the training loop is given: a stage's objective, its data, and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import nn

from dalle.cluster.topology import World


@dataclass
class Stage:
    """What is trained, and on what.

    Args:
        kind: "dvae", "prior" or "clip"
        objective: module with a `model`; called with a batch it returns (loss, metrics)
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
        derive: from the means, since the last log line and over all ranks, of metrics that are vectors to figures
        highlights: names of the figures that the progress bar shows beside loss and step size
        data: the files of training data, by which a resumed run tells whether they are those of before
        links: hashes of what it is trained with
        files: text files that belong into the model's folder, by name
    """

    kind: str
    objective: nn.Module
    loader: Any
    unit: str
    units_per_sample: int
    model_config: Any
    flops_per_sample: int | None = None
    prepare: Callable[[list[dict], int, World], None] = lambda micro_batches, step, world: None
    validate: Callable[[], dict[str, float]] | None = None
    draw: Callable[[], dict[str, Image.Image]] | None = None
    check: Callable[[int, dict[str, float]], list[str]] = lambda step, values: []
    derive: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda vectors: {}
    highlights: tuple[str, ...] = ()
    data: Sequence[str] = ()
    links: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
