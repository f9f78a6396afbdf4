"""AdamW as the paper uses it (appendices A.2 and B.2)."""

from __future__ import annotations

import torch
from torch import nn

from dalle.config import Optimizer


def build(model: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """Fused AdamW. Weight decay is for matrices and kernels, not for gains and biases (our choice: the paper is silent)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.step_size(0),
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
