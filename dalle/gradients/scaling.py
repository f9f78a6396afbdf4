"""Training in fp16 with gradient scales: one for each resblock (appendix D), or one for the whole model.

Gradients of activations shrink from the first resblock to the last, the more the deeper and wider the model, and fp16 spans
but 40 powers of two. So each resblock multiplies the gradient that comes in by a scale of its own and divides what goes out
by it; the identity path between them is fp32 and never scaled. Within a resblock all but the layer norm is fp16;
embeddings, unembeddings and logits stay fp32.

A sample's gradient is divided by the whole batch, so M, the micro-batches of an update over all replicas, is a factor of
every scale and of its bounds: the rule is written for one micro-batch. As long as the batch stays what it is, so do a
sample's gradient and the scale that suits it, whatever number of replicas shares the batch: M is that of the run's
beginning, for ever. Scales live on the device, and nothing here waits for it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dalle.cluster.topology import World
from dalle.cluster.watch_hub import spans
from dalle.config import Run
from dalle.gradients.partition import whole_shape
from dalle.models.wrapping import wrap


@dataclass(frozen=True)
class Rule:
    """How a scale follows what it does. The first three are per micro-batch of an update.

    Args:
        start: the scale at first
        least: never below
        greatest: never above
        growth: factor after `finite_updates` updates in a row with finite gradients only
        back_off: factor after an update with a gradient that is not finite
        finite_updates: see `growth`
        window_updates: updates from one division of a scale to the next that is allowed
    """

    start: float
    least: float
    greatest: float
    growth: float
    back_off: float
    finite_updates: int = 1
    window_updates: int = 1

    @property
    def longest_descent_updates(self) -> int:
        """The most updates in a row that may be skipped before a scale that is always too large has come from its greatest
        value to its least: longer than that the rule never takes."""
        if self.back_off == 1:
            return 1
        # rounded, for 17 powers of two are 34 divisions by √2 and not 34.0000001
        divisions = math.ceil(round(math.log(self.greatest / self.least) / -math.log(self.back_off), 6))
        return 1 + max(0, divisions - 1) * self.window_updates


PER_BLOCK = Rule(2**13, 2**7, 2**24, growth=2 ** (1 / 1000), back_off=2**-0.5, window_updates=125)
"""Appendix D."""
OVERALL = Rule(2**16, 1, 2**24, growth=2, back_off=1 / 2, finite_updates=2000)
"""The usual dynamic loss scale."""


def static(scale: float) -> Rule:
    """A scale that never changes: what `tools/underflow.py` sets beside the two rules."""
    return Rule(scale, scale, scale, growth=1, back_off=1)


class GradientScales:
    """The scales of a model, and the fp16 passes that they keep alive.

    Args:
        parts: the parameters that each scale belongs to
        rule: of all scales
        replicas: processes that share the batch, over which the gradients are averaged
        device: of the model
        reduce_factor: what the gradients of the parts' matrices, which are the ones computed in fp16, are multiplied by
            before they are communicated, and divided by in `unscale`: a constant chosen by hand so that sums over ranks
            in 16 bits neither overflow nor underflow
        accumulation_steps: micro-batches that each replica takes for an update
    """

    def __init__(
        self,
        parts: Sequence[Iterable[nn.Parameter]],
        rule: Rule,
        replicas: int,
        device: torch.device,
        reduce_factor: float = 1.0,
        accumulation_steps: int = 1,
    ):
        self.rule, self.replicas, self.reduce_factor = rule, replicas, reduce_factor
        self._micro_batches = torch.full((), float(replicas * accumulation_steps), device=device)  # M
        self._scale = torch.full((len(parts),), float(rule.start), device=device)  # without M
        self._since_division = torch.full_like(self._scale, rule.window_updates, dtype=torch.int32)
        self._finite_updates = torch.zeros_like(self._since_division)
        self.failures = torch.zeros(len(parts) + 1, dtype=torch.int32, device=device)
        """Updates with a gradient that was not finite, of each scale's parameters and of all others, since it was zeroed"""
        self.falling = torch.zeros((), dtype=torch.bool, device=device)
        """Whether a scale was too large for the last update and can still become smaller"""
        self.scales = self._scale * self._micro_batches
        """fp32 [number of scales], with their factor M"""
        # that take each scale out, the last none
        self._factors = torch.full((len(parts) + 1,), float(replicas), device=device)
        self._set()
        self._of_loss: torch.Tensor | float = 1.0
        # by parameter the number of its scale, and whether the constant before the reduce is for it
        self._places = {p: (number, len(whole_shape(p)) > 1) for number, part in enumerate(parts) for p in part}
        if reduce_factor != 1:
            for parameter, (_, is_matrix) in self._places.items():
                if is_matrix:
                    parameter.register_hook(partial(torch.mul, other=reduce_factor))

    @classmethod
    def per_block(
        cls, blocks: Sequence[nn.Module], replicas: int, device: torch.device, rule: Rule = PER_BLOCK, **options: Any
    ) -> GradientScales:
        """A scale for each resblock, whose forward pass runs in fp16 from now on.

        Args:
            blocks: modules without their identity path, fp32 in and out; their first argument is what they change
            replicas, device, rule, options: see the class
        """
        scales = cls([list(block.parameters()) for block in blocks], rule, replicas, device, **options)
        for block, scale in zip(blocks, scales.scales, strict=True):  # views: each follows its scale
            wrap(block, _scaled, scale)
        return scales

    @classmethod
    def overall(
        cls, objective: nn.Module, replicas: int, device: torch.device, rule: Rule = OVERALL, **options: Any
    ) -> GradientScales:
        """One scale, by which the loss is multiplied. All of the objective runs under fp16 autocast from now on."""
        trained = [p for p in objective.parameters() if p.requires_grad]
        scales = cls([trained], rule, replicas, device, **options)
        wrap(objective, _autocast, device.type)
        scales._of_loss = scales.scales[0]
        return scales

    def _set(self) -> None:
        """What follows from scales and M."""
        self.scales.copy_(self._scale * self._micro_batches)
        torch.div(self.replicas, self.scales, out=self._factors[:-1])

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """What the backward pass starts from: the loss divided by the replicas, times the scale if there is but one. Who
        accumulates divides by the micro-batches besides, as DeepSpeed does."""
        return loss * (self._of_loss / self.replicas)

    @torch.no_grad()
    def unscale(self, gradients: Iterable[tuple[nn.Parameter, torch.Tensor]]) -> torch.Tensor:
        """Take scales and the constant out of gradients, in place, and multiply them by the replicas, which makes a mean over
        them of what has been averaged over them.

        Args:
            gradients: with their parameters; fp32, of any shape, for they may be a rank's parts

        Returns:
            whether all were finite, bool [number of scales + 1]: of the parameters of each scale, and of all others
        """
        groups = defaultdict(list)
        for parameter, gradient in gradients:
            groups[self._places.get(parameter, (len(self.scales), False))].append(gradient)
        not_finite = self.scales.new_zeros(len(self.scales) + 1)
        for (number, is_matrix), tensors in groups.items():
            factor = self._factors[number] / self.reduce_factor if is_matrix else self._factors[number]
            # what PyTorch's own GradScaler is made of: all tensors in one kernel
            torch._amp_foreach_non_finite_check_and_unscale_(tensors, not_finite[number : number + 1], factor)
        return not_finite == 0

    @torch.no_grad()
    def update(self, finite: torch.Tensor) -> torch.Tensor:
        """Grow the scales whose gradients were finite, divide the others.

        Args:
            finite: as `unscale` gives it, but over all ranks

        Returns:
            whether the weights are to be updated, bool []: only when all was finite
        """
        rule, fine = self.rule, finite[:-1]
        # a thousandth more than the least: divisions are rounded, and to fall so far takes a window, too, and helps nobody
        self.falling.copy_((~fine & (self._scale > 1.001 * rule.least)).any())
        self.failures += ~finite
        self._since_division += 1
        self._finite_updates.add_(1).mul_(fine)
        grow = self._finite_updates >= rule.finite_updates
        divide = ~fine & (self._since_division >= rule.window_updates)
        self._finite_updates.masked_fill_(grow, 0)
        self._since_division.masked_fill_(divide, 0)
        factor = torch.where(grow, rule.growth, torch.where(divide, rule.back_off, 1.0))
        self._scale.mul_(factor).clamp_(rule.least, rule.greatest)
        self._set()
        return finite.all()

    def blame(self) -> str:
        """What was not finite since `failures` was zeroed, in words."""
        *blocks, elsewhere = self.failures.tolist()
        reasons = []
        if blamed := [number for number, count in enumerate(blocks) if count]:
            log2 = self.scales.log2()[blamed]
            what = f"resblocks {spans(blamed)}" if len(blocks) > 1 else "the model"
            least = math.log2(self.rule.least * self._micro_batches.item())
            reasons.append(
                f"gradients of {what} were not finite in fp16, with scales of 2^{log2.min():.1f} to 2^{log2.max():.1f}, of which "
                f"2^{least:.1f} is the least"
            )
        if elsewhere:
            reasons.append("gradients of weights that have no gradient scale were not finite")
        return " and ".join(reasons) or "the norm of the averaged gradients was not finite"

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Part of the training state: scales without M, M, and what the rule remembers."""
        state = {"scale": self._scale, "since_division": self._since_division, "finite_updates": self._finite_updates}
        return {name: tensor.clone() for name, tensor in (state | {"micro_batches": self._micro_batches}).items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from where `state_dict` was taken, on any number of replicas and micro-batches of the same batch: the scales, M
        included, stay. Raises ValueError when it has another number of scales."""
        if len(state["scale"]) != len(self._scale):
            raise ValueError(
                f"the checkpoint holds {len(state['scale'])} gradient scales, this run has {len(self._scale)}: set "
                "run.precision back to what it was"
            )
        self._scale.copy_(state["scale"])
        self._since_division.copy_(state["since_division"])
        self._finite_updates.copy_(state["finite_updates"])
        self._micro_batches.copy_(state["micro_batches"])
        self._set()


def gradient_scales(objective: nn.Module, run: Run, world: World) -> GradientScales | None:
    """Those that the precision of a run asks for; None in fp32 and bf16."""
    options: dict[str, Any] = {
        "replicas": world.size,
        "accumulation_steps": run.accumulation_steps,
        "device": world.device,
        "reduce_factor": run.reduce_factor,
    }
    if run.precision == "fp16":
        return GradientScales.overall(objective, **options)
    if run.precision == "fp16-per-block":
        model: Any = objective.model
        return GradientScales.per_block(model.resblocks(), **options)
    return None


def _scaled(scale: torch.Tensor, forward: Callable, x_BSD: torch.Tensor, *rest: Any) -> torch.Tensor:
    """A resblock in fp16. Autocast keeps its layer norm in fp32 and casts what comes of that."""
    with torch.autocast(x_BSD.device.type, torch.float16):
        return _Leave.apply(forward(_Enter.apply(x_BSD, scale), *rest), scale)


def _autocast(device: str, forward: Callable, *inputs: Any) -> Any:
    with torch.autocast(device, torch.float16):
        return forward(*inputs)


class _Enter(torch.autograd.Function):
    """From the identity path into a resblock; its gradient comes out unscaled and filtered."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (scale,) = ctx.saved_tensors
        return _filtered(gradient / scale), None


class _Leave(torch.autograd.Function):
    """From a resblock to the identity path, fp32; its gradient goes in scaled, filtered and in the resblock's dtype.

    The filter comes before the cast: what is not finite here is another's overflow, and leaves this scale alone. What
    overflows in the cast is this scale's doing, and reaches the gradients of the parameters.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scale)
        ctx.dtype = x.dtype
        return x.float()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (scale,) = ctx.saved_tensors
        return _filtered(gradient * scale).to(ctx.dtype), None


def _filtered(x: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
