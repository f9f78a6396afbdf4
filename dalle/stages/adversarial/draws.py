"""What is drawn at random in an update of a GAN beside its noise: seeds and labels.

Each row's is a function of (seed, update, row of the global batch), so that neither processes nor a resumed run change them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dalle.config import StackGANObjective
from dalle.training.seeds import derived_seed

_KINDS = ("real", "wrong", "fake")


def labels(config: StackGANObjective, seeds: Iterable[int]) -> dict[str, torch.Tensor]:
    """`real_labels_B`, `wrong_labels_B` and `fake_labels_B`, on the CPU: smoothed, and in a share of the rows those of the real and the
    drawn image changed for one another.

    Args:
        config: which labels there are
        seeds: one for each row
    """
    generator = torch.Generator()
    uniform_BN = torch.stack([torch.rand(len(_KINDS) + 1, generator=generator.manual_seed(seed)) for seed in seeds])
    found = {}
    for column, kind in enumerate(_KINDS):
        choices = torch.tensor(config.real_labels if kind == "real" else config.fake_labels)
        found[kind] = choices[(uniform_BN[:, column] * len(choices)).long()]
    flipped_B = uniform_BN[:, -1] < config.flipped
    real_B, fake_B = found["real"], found["fake"]
    found["real"], found["fake"] = torch.where(flipped_B, fake_B, real_B), torch.where(flipped_B, real_B, fake_B)
    return {f"{kind}_labels_B": found[kind] for kind in _KINDS}


def row_seeds(seed: int, step: int, rows: range) -> list[int]:
    """Seeds of some rows of an update."""
    return [derived_seed(seed, step, row) for row in rows]
