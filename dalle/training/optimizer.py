"""AdamW as the paper uses it (appendices A.2 and B.2), and Muon beside it for trainings of minutes."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

from dalle.config import Optimizer

_RESBLOCKS = ("layers.", "resblocks.")  # where the prior and CLIP keep them


def build(model: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """Fused AdamW, or Muon with AdamW where the configuration asks for it. Weight decay is for matrices and kernels, not
    for gains and biases (our choice: the paper is silent)."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    muon = {n: p for n, p in parameters.items() if config.muon_step_size_factor and _is_resblock_matrix(n, p)}
    rest = [p for name, p in parameters.items() if name not in muon]
    groups = [
        {
            "params": list(muon.values()),
            "weight_decay": config.weight_decay,
            "muon_factor": config.muon_step_size_factor,
        },
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    return (MuonAdamW if muon else torch.optim.AdamW)(
        [g for g in groups if g["params"]],
        lr=config.step_size(0),
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def _is_resblock_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and any(part in name for part in _RESBLOCKS)


class MuonAdamW(torch.optim.AdamW):
    """Muon (Jordan et al., 2024) for the groups that name a `muon_factor`, AdamW for the others.

    Muon moves a matrix along its momentum with all singular values set to about 1, so that every direction is learnt at
    the same pace. The step size of such a group is `lr · muon_factor · √max(1, rows / columns)`. A fused q·k·v
    projection counts as three matrices. Matrices of one shape are orthogonalised together: `torch.optim.Muon` takes
    them one by one and, for the demo's prior on a CPU, 2.5 times as long.
    """

    MOMENTUM = 0.95

    @torch.no_grad()
    def step(self, closure=None):
        """One update. Muon's matrices lose their gradient, so that AdamW passes them over."""
        for group in self.param_groups:
            if "muon_factor" in group:
                self._orthogonal_step(group)
        return super().step(closure)

    def _orthogonal_step(self, group: dict) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for p in parameters:
            if "exp_avg" not in self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
        gradients, momenta = [p.grad for p in parameters], [self.state[p]["exp_avg"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - self.MOMENTUM)
        # Nesterov: look one step ahead
        ahead = torch._foreach_lerp(gradients, momenta, self.MOMENTUM)
        same_shape: dict[tuple, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for p, direction in zip(parameters, ahead, strict=True):
            num_matrices = 3 if p.shape[0] == 3 * p.shape[1] else 1
            for weight, part in zip(p.chunk(num_matrices), direction.chunk(num_matrices), strict=True):
                same_shape[tuple(weight.shape)].append((weight, part))
            p.grad = None
        step = group["lr"] * group["muon_factor"]
        for (rows, columns), pairs in same_shape.items():
            directions = orthogonalized(torch.stack([part for _, part in pairs]))
            for (weight, _), direction in zip(pairs, directions, strict=True):
                weight.mul_(1 - step * group["weight_decay"])
                weight.add_(direction, alpha=-step * max(1, rows / columns) ** 0.5)


def orthogonalized(matrices_NRC: torch.Tensor) -> torch.Tensor:
    """Each matrix with its singular values brought near 1 (0.7 to 1.2), by five Newton–Schulz iterations in bf16 with the
    coefficients of Jordan et al.

    Args:
        matrices_NRC: [N, R, C]

    Returns:
        float32 [N, R, C]
    """
    if matrices_NRC.shape[1] > matrices_NRC.shape[2]:  # the smaller gram matrix is the cheaper one
        return orthogonalized(matrices_NRC.mT).mT
    x = matrices_NRC.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.float()
