"""A linear map whose weight may go between forward and backward pass, and come again elsewhere.

At ZeRO stage 3 weights are gathered for a pass and let go after it. PyTorch's product of a transposed weight keeps that very view for the
backward pass, and with it the gathered memory, whatever is let go. DeepSpeed has such a function for weights that lie as [outputs,
inputs], and puts it in the place of PyTorch's; this is the one for [inputs, outputs].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dalle.models.prior import InputMajorLinear
from dalle.models.wrapping import wrap


class GatheredLinear(torch.autograd.Function):
    """x · W + b with W [inputs, outputs]: `GatheredLinear.apply(x, weight, bias)`. The parameters themselves are kept, so that the
    backward pass finds what they hold by then."""

    @staticmethod
    def forward(x: torch.Tensor, weight_IO: torch.Tensor, bias_O: torch.Tensor) -> torch.Tensor:
        # of a parameter itself, and no view, autocast would keep its copy to the end of the pass
        found = x.matmul(weight_IO.view_as(weight_IO))
        found += bias_O
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x, weight_IO, _ = inputs
        device = x.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.save_for_backward(x, weight_IO)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_IO = ctx.saved_tensors
        device, dtype, enabled = ctx.autocast
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            of_x = gradient.matmul(weight_IO.t()) if ctx.needs_input_grad[0] else None
            rows_NI, gradient_NO = x.flatten(0, -2), gradient.flatten(0, -2)
            of_weight_IO = rows_NI.t().matmul(gradient_NO) if ctx.needs_input_grad[1] else None
            of_bias_O = gradient_NO.sum(0) if ctx.needs_input_grad[2] else None
        return of_x, of_weight_IO, of_bias_O


def put_gathered_linears(model: nn.Module) -> None:
    """Have a model's maps of weights that lie as [inputs, outputs] computed so."""
    for module in model.modules():
        if isinstance(module, InputMajorLinear):
            wrap(module, _map, module)


def _map(module: InputMajorLinear, _: Callable, x: torch.Tensor) -> torch.Tensor:
    return GatheredLinear.apply(x, module.weight, module.bias)
