"""A training step of the prior in tokens/s, and its attention kinds alone in calls/s, against dense causal attention.

Cases: "prior train", against the same transformer with PyTorch's dense causal kernel, compiled (`dense_compiled`), and
DALLE-pytorch where it is installed (`dalle_pytorch`); "prior attention KIND grid G", forward and backward together, against
the dense kernel on the same tensors (`dense`). The limit is the measured rate of a bf16 matrix product over the operations
that the sparse masks leave, without recomputation: `fraction_of_limit` of a step is its model FLOPs utilisation.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import peers_prior
from benchmarks.sides import DEVICE, Side, best_rate, case, matrix_product, running, seconds

if TYPE_CHECKING:
    from dalle.masks import Kind

ATTENTION_KINDS: tuple[Kind, ...] = ("row", "column", "conv")
_PASSES = ("both", "forward", "backward")
_WARMUP = 2  # the optimizer's state comes with the second call


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that this benchmark alone has."""
    parser.set_defaults(repeats=10, compile=True)
    parser.add_argument("--only", choices=("train", "attention"), help="leave the other cases out")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--text_slots", type=int, default=256)
    parser.add_argument("--text_vocabulary", type=int, default=16384)
    parser.add_argument("--codebook_size", type=int, default=8192)
    several = "of the training step; with several there is a case for each, against dense_compiled alone"
    parser.add_argument("--train_grids", type=int, nargs="+", default=[32], metavar="G", help=several)
    parser.add_argument(
        "--attention_grids", type=int, nargs="+", default=[16, 32, 48, 64], metavar="G", help="of attention alone"
    )


def run(options: argparse.Namespace) -> list[dict]:
    """The training cases, then the attention cases."""
    cases = []
    if options.only != "attention":
        cases += [_train_case(_config(options, grid), options) for grid in options.train_grids]
    if options.only != "train":
        cases += [
            result for grid in options.attention_grids for result in _attention_cases(_config(options, grid), options)
        ]
    return cases


def _config(options: argparse.Namespace, grid: int):
    from dalle.config import PriorModel

    sizes = ("text_slots", "text_vocabulary", "codebook_size", "width", "depth", "heads")
    return PriorModel(grid=grid, **{name: getattr(options, name) for name in sizes})


# ---- a training step


def _train_case(config, options: argparse.Namespace) -> dict:
    from dalle.models.flops import prior_flops

    batch, growth = options.batch_size, len(options.train_grids) > 1
    builds = {
        "ours": partial(_train_ours, config, batch, options.compile, options.recompute),
        "dense_compiled": partial(_train_dense, config, batch, True),
    }
    missing = peers_prior.why_no_dalle_pytorch(config)
    if missing and not growth:
        print(f"dalle_pytorch is left out: {missing}", file=sys.stderr)
    elif not growth:
        builds["dalle_pytorch"] = partial(_train_dalle_pytorch, config, batch)
    keep = options.same_allocator
    sides = {name: partial(Side, name, build, name == "ours" or keep) for name, build in builds.items()}
    rate = best_rate(*matrix_product(torch.bfloat16))
    with running(sides) as built:
        calls = {name: partial(side.call, "train") for name, side in built.items()}
        taken_s = seconds(calls, options.repeats, _WARMUP)
        peaks = {name: side.peak_memory_bytes for name, side in built.items()}
    rate = max(rate, best_rate(*matrix_product(torch.bfloat16)))
    flops = prior_flops(config)
    return case(
        f"prior train grid {config.grid}" if growth else "prior train",
        "tokens/s",
        {name: [batch * config.slots / value for value in values] for name, values in taken_s.items()},
        rate / flops * config.slots,
        peaks,
        {
            **_settings(config, options, "depth", "text_vocabulary", "codebook_size"),
            "recompute": options.recompute,
            "same_allocator": keep,
            "flops_per_sample": flops,
            "limit_flops_per_s": rate,
        },
    )


def _settings(config, options: argparse.Namespace, *sizes: str) -> dict:
    shared = {name: getattr(config, name) for name in ("width", "heads", "text_slots", "grid", "conv_kernel", *sizes)}
    return {**shared, **{name: getattr(options, name) for name in ("batch_size", "repeats", "compile")}}


def _inputs(config, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions that fill their slots, int64 [B, T − 1], without token 0, which to DALLE-pytorch is a pad; codes [B, I]."""
    text_BU = torch.randint(1, config.text_vocabulary, (batch, config.caption_tokens), device=DEVICE)
    return text_BU, torch.randint(0, config.codebook_size, (batch, config.image_slots), device=DEVICE)


def _train_ours(config, batch: int, compile: bool, recompute: bool) -> dict[str, Callable]:
    """The bare step: no loader, no EMA, no DeepSpeed around it. AdamW as the engine sets it."""
    from dalle.config import Optimizer, PriorObjective, Schedule
    from dalle.models.prior import Prior
    from dalle.models.wrapping import recompute_blocks
    from dalle.objectives import prior as objectives
    from dalle.optim import optimizer as optimizers

    prior = Prior(config).to(DEVICE)
    objective = objectives.PriorObjective(prior, PriorObjective())
    optimizer = optimizers.build(objective, Optimizer(Schedule(1e-4, 1e-4)))
    if recompute:
        recompute_blocks(prior)
    if compile:
        objective.compile()
    text_BU, codes_BI = _inputs(config, batch)
    targets = torch.tensor(float(text_BU.numel()), device=DEVICE)
    inputs = {"text_BU": text_BU, "codes_BI": codes_BI, "text_targets": targets}
    return _step(lambda: objective(inputs)[0], optimizer)


def _train_dense(config, batch: int, compile: bool) -> dict[str, Callable]:
    gpt = peers_prior.GPT(config)
    if compile:
        gpt.compile()
    return _train_peer(gpt, config, batch)


def _train_dalle_pytorch(config, batch: int) -> dict[str, Callable]:
    return _train_peer(peers_prior.DALLEPytorch(config), config, batch)


def _train_peer(model: nn.Module, config, batch: int) -> dict[str, Callable]:
    model = model.to(DEVICE)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    return _step(partial(model, *_inputs(config, batch)), optimizer)


def _step(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Callable]:
    def train() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"train": train}


# ---- attention alone


def _attention_cases(config, options: argparse.Namespace) -> list[dict]:
    """A case for each kind, from one run: all kinds and the dense kernel in turns, and all keep their freed memory."""
    from dalle.models.flops import attention_flops

    batch = options.batch_size
    builds = {kind: partial(_attention_ours, kind, config, batch, options.compile) for kind in ATTENTION_KINDS}
    builds["dense"] = partial(_attention_dense, config, batch)
    rate = best_rate(*matrix_product(torch.bfloat16))
    with running({name: partial(Side, name, build, True) for name, build in builds.items()}) as built:
        calls = {f"{name} {what}": partial(side.call, what) for name, side in built.items() for what in _PASSES}
        taken_s = seconds(calls, options.repeats, _WARMUP)
        peaks = {name: side.peak_memory_bytes for name, side in built.items()}
    rate = max(rate, best_rate(*matrix_product(torch.bfloat16)))
    cases = []
    for kind in ATTENTION_KINDS:
        flops = 3 * batch * attention_flops(kind, config)
        names = {"ours": kind, "dense": "dense"}
        apart = {
            f"{what}_s": {side: statistics.median(taken_s[f"{name} {what}"]) for side, name in names.items()}
            for what in ("forward", "backward")
        }
        cases.append(
            case(
                f"prior attention {kind} grid {config.grid}",
                "calls/s",
                {side: [1 / value for value in taken_s[f"{name} both"]] for side, name in names.items()},
                rate / flops,
                {side: peaks[name] for side, name in names.items()},
                {**_settings(config, options), **apart, "flops_per_call": flops, "limit_flops_per_s": rate},
            )
        )
    return cases


def _attention_ours(kind: Kind, config, batch: int, compile: bool) -> dict[str, Callable]:
    from dalle.models.attention import MaskedAttention

    pattern = MaskedAttention(kind, config.text_slots, config.grid, config.conv_kernel).to(DEVICE)
    if compile:
        pattern.compile()
    return _attention_calls(pattern, config, batch)


def _attention_dense(config, batch: int) -> dict[str, Callable]:
    return _attention_calls(partial(F.scaled_dot_product_attention, is_causal=True), config, batch)


def _attention_calls(pattern: Callable, config, batch: int) -> dict[str, Callable]:
    """Both passes, and each alone (a backward pass after its forward pass), in bf16. q, k and v are views of one fused
    projection, and the gradient comes from a merge of the heads, as in the model."""
    shape = (batch, config.slots, config.heads, config.width // config.heads)
    options: dict[str, Any] = {"device": DEVICE, "dtype": torch.bfloat16}
    qkv_BSE = torch.randn(batch, config.slots, 3 * config.width, **options, requires_grad=True)
    gradient_BHSK = torch.randn(shape, **options).transpose(1, 2)
    held = []

    def forward() -> None:
        qkv_BSzHK = qkv_BSE.unflatten(-1, (3, config.heads, -1))
        held.append(pattern(*(x_BSHK.transpose(1, 2) for x_BSHK in qkv_BSzHK.unbind(2))))

    def backward() -> None:
        held.pop().backward(gradient_BHSK)
        qkv_BSE.grad = None

    def both() -> None:
        forward()
        backward()

    return {"both": both, "forward": forward, "backward": backward}
