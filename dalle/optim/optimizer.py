"""AdamW as the paper uses it (appendices A.2 and B.2), Muon beside it for trainings of minutes, and RMSprop for text encoders.

For the prior the paper clips the running variance and keeps the resblocks' matrices in 16 bits, and their moments as codes
of `lowbit`. Where neither is asked for, PyTorch's fused AdamW does it all.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from dalle.config import Optimizer
from dalle.gradients.lowbit import ONE_SIX_NINE, ZERO_SIX_TEN
from dalle.gradients.partition import Place, whole_shape
from dalle.models.prior import InputMajorLinear
from dalle.optim.rounding import key_of, random_bits, rounded

_RESBLOCKS = ("layers.", "resblocks.")  # where the prior and CLIP keep them

_PIECE = {"cpu": 2**16, "cuda": 2**24}
"""Parameters updated at a time, by device: what fits a core's cache, and what keeps a GPU busy for longer than it takes to
start the next piece."""


def build(model: nn.Module, config: Optimizer, weights: str = "fp32") -> torch.optim.Optimizer:
    """Fused AdamW; or with 16-bit weights or moments or a limit of the variance, `PaperAdamW`; or `MuonAdamW` where the
    configuration asks for Muon; or `RMSprop`. Weight decay is for matrices and kernels, not for gains and biases (our choice: the
    paper is silent).

    What is kept in different formats is in different groups, for ZeRO lays the parameters of a group end to end.

    Args:
        model: whose parameters are trained
        config: settings
        weights: `run.weights`, of the resblocks' matrices
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if config.method == "rmsprop":
        return RMSprop(parameters.values(), config.step_size.start, config.beta2, config.epsilon)
    matrices = {name: p for name, p in parameters.items() if _is_resblock_matrix(name, p)}
    input_major = {id(module.weight) for module in model.modules() if isinstance(module, InputMajorLinear)}
    muon = list(matrices.values()) if config.muon_step_size_factor else []
    in_16_bits = list(matrices.values()) if "16-bit" in (config.moments, weights) else []
    apart = {id(p) for p in [*muon, *in_16_bits]}
    rest = [p for p in parameters.values() if id(p) not in apart]
    orthogonal = {"weight_decay": config.weight_decay, "muon_factor": config.muon_step_size_factor}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in muon if id(p) not in input_major], "input_major": False, **orthogonal},
        {"params": [p for p in muon if id(p) in input_major], "input_major": True, **orthogonal},
        {"params": in_16_bits, "weight_decay": config.weight_decay, "moments": config.moments},
        {"params": [p for p in rest if len(whole_shape(p)) >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if len(whole_shape(p)) < 2], "weight_decay": 0.0},
    ]
    papers = in_16_bits or config.variance_limit is not None
    kind = MuonAdamW if muon else PaperAdamW if papers else torch.optim.AdamW
    return kind(
        [{"moments": "fp32", "variance_limit": config.variance_limit, **g} for g in groups if g["params"]],
        lr=config.step_size.start,  # the engine sets it before each update
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def _is_resblock_matrix(name: str, parameter: nn.Parameter) -> bool:
    return len(whole_shape(parameter)) == 2 and any(part in name for part in _RESBLOCKS)


class PaperAdamW(torch.optim.AdamW):
    """AdamW whose groups may have three things more, in whatever they are handed to it: whole parameters, or the flat parts
    that ZeRO makes of them.

    - `variance_limit`: the running variance is clipped by value before use, and is kept clipped; None clips nothing.
    - `moments`: "16-bit" keeps the running mean as 1-6-9 codes and the running variance as 0-6-10 codes, in int16 tensors
      of the parameter's shape; 4 bytes a parameter in all. The update is made with the moments before they are rounded.
      A variance just under 16 is the largest that can be kept. Rounding to the nearest code leaves a moment as it is when
      it would change by less than about a thousandth; so beta1 and beta2 have to stay below 0.999 or so.
    - parameters in bfloat16 or float16, which `rounding` rounds after an update in fp32. Of these `places` has to say what they
      are parts of, and before each update `gradients` has their gradients, fp32, by name.

    Groups with neither are PyTorch's fused AdamW's. As there, a one in `found_inf`, a float tensor of no dimensions on the
    parameters' device, skips the update, without a word to the host: parameters, moments and step counts stay.
    """

    found_inf: torch.Tensor | None = None

    def __init__(self, params: Iterable, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.seed = 0
        """Of the roundings"""
        self.places: dict[torch.Tensor, list[Place]] = {}
        """Of what is in 16 bits: the parameters, or the parts of them, that lie in it end to end"""
        self.gradients: dict[str, torch.Tensor] = {}
        # torch.amp.GradScaler has to divide the gradients by its scale itself
        self._step_supports_amp_scaling = False

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for p in group["params"]:
                if group["moments"] == "16-bit" and p in self.state:
                    # `load_state_dict` has made fp32 of the codes, which loses nothing
                    codes = {name: value.to(torch.int16) for name, value in self.state[p].items() if name != "step"}
                    self.state[p].update(codes)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure is ever given
        """One update. What is updated here loses its gradient, so that PyTorch's AdamW passes it over."""
        for group in self.param_groups:
            in_16_bits = any(p.dtype != torch.float32 for p in group["params"])
            if in_16_bits or group["moments"] == "16-bit" or group["variance_limit"] is not None:
                self._paper_step(group)
        super().step()

    def _paper_step(self, group: dict) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        in_16_bits, device = group["moments"] == "16-bit", parameters[0].device
        for p in parameters:
            if not self.state[p]:
                zeros = functools.partial(torch.zeros_like, p, dtype=torch.int16 if in_16_bits else torch.float32)
                self.state[p].update(step=torch.zeros((), device=device), exp_avg=zeros(), exp_avg_sq=zeros())
        steps = [self.state[p]["step"] for p in parameters]
        skip = None if self.found_inf is None else self.found_inf.to(device) > 0
        # a list, since a single tensor would be waited for
        torch._foreach_add_(steps, 1.0 if skip is None else [(~skip).float()] * len(steps))
        # in double precision: 1 − 0.999 in fp32 has four digits
        beta1, beta2 = group["betas"]
        counts = torch.stack(steps).double()
        step_sizes = (group["lr"] / (1 - beta1**counts)).float().unbind()
        roots = (1 - beta2**counts).sqrt().float().unbind()
        # made on the device: a number that changes would be compiled anew, and one sent there would be waited for
        decay = torch.full((), 1 - group["lr"] * group["weight_decay"], device=device)
        constants = (beta1, beta2, group["eps"], group["variance_limit"])
        update: Callable[..., None] = _compiled_update() if device.type == "cuda" else _update
        for p, step_size, root, step in zip(parameters, step_sizes, roots, steps, strict=True):
            # before the update: a compiler that meets a 16-bit parameter gives its stand-in the gradient, and fails at fp32
            gradient, p.grad = p.grad, None
            for tensors, rounding in self._pieces(p, gradient, step):
                update(*tensors, step_size, root, decay, skip, rounding, *constants)

    def _pieces(
        self, p: torch.Tensor, gradient: torch.Tensor | None, step: torch.Tensor
    ) -> Iterator[tuple[tuple, tuple | None]]:
        """Parts of a parameter, its gradient and its moments; and, of what is in 16 bits, what tells its random bits: the
        parameter's key, the update and the position."""
        moments = self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]
        if p.dtype == torch.float32:
            assert gradient is not None
            yield from ((tensors, None) for tensors in _pieces(p, gradient, *moments))
            return
        for place in self.places[p]:
            held = [t.view(-1).narrow(0, place.offset, place.piece.size) for t in (p, *moments)]
            key = torch.full((), key_of(self.seed, place.name), device=p.device)
            position = place.piece.start
            own = self.gradients[place.name].reshape(-1)
            for tensors in _pieces(held[0], own, *held[1:]):
                yield tensors, (key, step, torch.full((), position, device=p.device))
                position += tensors[0].numel()


def _update(
    p: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    step_size: torch.Tensor,
    root: torch.Tensor,
    decay: torch.Tensor,
    skip: torch.Tensor,
    rounding: tuple | None,
    beta1: float,
    beta2: float,
    epsilon: float,
    limit: float | None,
) -> None:
    """AdamW in place on a piece of a parameter and its moments, which are fp32 or codes. `step_size` and `root` have the
    bias corrections in them, `rounding` what `random_bits` wants to know of a piece in 16 bits."""
    in_16_bits = mean.dtype == torch.int16
    new_mean = torch.lerp(ONE_SIX_NINE.decode(mean) if in_16_bits else mean, gradient, 1 - beta1)
    new_variance = (ZERO_SIX_TEN.decode(variance) if in_16_bits else variance) * beta2
    new_variance = new_variance.addcmul_(gradient, gradient, value=1 - beta2)
    if limit is not None:
        new_variance = new_variance.clamp_(max=limit)
    new_p = p.float() * decay - step_size * new_mean / (new_variance.sqrt() / root + epsilon)
    if rounding is not None:
        key, step, position = rounding
        new_p = rounded(new_p, random_bits(key, step, position, p.numel()).view(p.shape), p.dtype)
    if in_16_bits:
        new_mean, new_variance = ONE_SIX_NINE.encode(new_mean), ZERO_SIX_TEN.encode(new_variance)
    for old, new in ((p, new_p), (mean, new_mean), (variance, new_variance)):
        old.copy_(new if skip is None else torch.where(skip, old, new))


@functools.cache
def _compiled_update() -> Callable[..., None]:
    """One kernel, in which the moments are decoded, used and encoded without ever being in memory as fp32."""
    return torch.compile(_update, dynamic=True, fullgraph=True)


def _pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Flat tensors of one shape, a piece at a time; those whose memory is in another order, which kernels may be, whole."""
    if not all(t.is_contiguous() for t in tensors):
        return iter([tensors])
    return zip(*(t.view(-1).split(_PIECE[t.device.type]) for t in tensors), strict=True)


class MuonAdamW(PaperAdamW):
    """Muon (Jordan et al., 2024) for the groups that name a `muon_factor`, AdamW for the others.

    Muon moves a matrix along its momentum with all singular values set to about 1, so that every direction is learnt at
    the same pace. The step size of such a group is `lr · muon_factor · √max(1, rows / columns)`, rows being outputs; in a
    group with `input_major` they are stored as columns. A fused q·k·v projection counts as three matrices. Matrices of one
    shape are orthogonalised together: `torch.optim.Muon` takes them one by one and, for the demo's prior on a CPU, 2.5
    times as long.
    """

    MOMENTUM = 0.95

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure is ever given
        """One update. Muon's matrices lose their gradient, so that AdamW passes them over."""
        # Asking the host is the price of one branch in place of one for every tensor; Muon is for trainings of minutes.
        if self.found_inf is not None and self.found_inf.item():
            return
        for group in self.param_groups:
            if "muon_factor" in group:
                self._orthogonal_step(group)
        super().step()

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
            whole, direction = (p.mT, direction.mT) if group["input_major"] else (p, direction)
            num_matrices = 3 if whole.shape[0] == 3 * whole.shape[1] else 1
            for weight, part in zip(whole.chunk(num_matrices), direction.chunk(num_matrices), strict=True):
                same_shape[tuple(weight.shape)].append((weight, part))
            p.grad = None
        step = group["lr"] * group["muon_factor"]
        for (rows, columns), pairs in same_shape.items():
            directions = orthogonalized(torch.stack([part for _, part in pairs]))
            for (weight, _), direction in zip(pairs, directions, strict=True):
                weight.mul_(1 - step * group["weight_decay"])
                weight.add_(direction, alpha=-step * max(1, rows / columns) ** 0.5)


class RMSprop(torch.optim.Optimizer):
    """θ ← θ − lr · g / (√v + ε), v ← β v + (1 − β) g² from 0 on: PyTorch's RMSprop without momentum, but that its state has
    AdamW's names, by which checkpoints know it, and that a one in `found_inf` skips the update, as in PyTorch's fused AdamW.

    Args:
        parameters: to be updated
        lr: the step size, which the engine sets before each update
        beta: decay of the running variance
        eps: added to its root
    """

    found_inf: torch.Tensor | None = None

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, beta: float, eps: float):
        super().__init__(list(parameters), {"lr": lr, "beta": beta, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure is ever given
        """One update."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(step=torch.zeros((), device=p.device), exp_avg_sq=torch.zeros_like(p))
                skip = None if self.found_inf is None else self.found_inf.to(p.device) > 0
                variance = torch.lerp(p.grad.square(), state["exp_avg_sq"], group["beta"])
                new = p - group["lr"] * p.grad / (variance.sqrt() + group["eps"])
                for old, value in ((p, new), (state["exp_avg_sq"], variance), (state["step"], state["step"] + 1)):
                    old.copy_(value if skip is None else torch.where(skip, old, value))


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
