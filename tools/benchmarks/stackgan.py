"""An update of both players of a StackGAN, and drawing, in images/s, against straightforward code of the same networks.

Cases: "stackgan stage N train" and "… draw". The limit is the rate of the dVAE's heaviest convolution in bf16 over the operations that
one image takes, counted as they run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import peers_stackgan
from benchmarks.sides import DEVICE, Side, best_rate, case, convolution, peak_memory_bytes, running, seconds

CALLS = ("train", "draw")
_KL_WEIGHT = 2.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that this benchmark alone has."""
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument(
        "--batch_size", type=int, default=128 if DEVICE == "cuda" else 16, help="of stage I; II has an eighth"
    )
    parser.add_argument("--channels", type=int, default=96, help="of the generator; the document's are 96")
    parser.add_argument("--discriminator_channels", type=int, default=96)
    parser.add_argument("--text_width", type=int, default=768)


def run(options: argparse.Namespace) -> list[dict]:
    """A case for each stage and call."""
    return [result for stage in options.stages for result in _cases(stage, options)]


def _cases(stage: int, options: argparse.Namespace) -> list[dict]:
    config, batch = _config(stage, options), max(2, options.batch_size // (8 if stage == 2 else 1))
    builds = {
        "ours": partial(_ours, config, batch),
        "eager_16bit": partial(_eager, config, batch, torch.bfloat16),
        "eager_fp32": partial(_eager, config, batch, torch.float32),
    }
    sides = {
        name: partial(Side, name, build, name == "ours" or options.same_allocator) for name, build in builds.items()
    }
    peaks = {what: {"ours": peak_memory_bytes(sides["ours"], what)} for what in CALLS}
    peaks["train"] |= {name: peak_memory_bytes(side, "train") for name, side in sides.items() if name != "ours"}
    flops = {what: operations(config, what) for what in CALLS}
    rate = best_rate(*convolution(torch.bfloat16))
    settings = {
        name: getattr(options, name) for name in ("channels", "discriminator_channels", "text_width", "repeats")
    }
    cases = []
    with running(sides) as built:
        for what in CALLS:
            taken_s = seconds({name: partial(side.call, what) for name, side in built.items()}, options.repeats)
            rate = max(rate, best_rate(*convolution(torch.bfloat16)))
            rates = {name: [batch / value for value in values] for name, values in taken_s.items()}
            now = {"batch_size": batch, "flops_per_image": flops[what], "limit_flops_per_s": rate}
            name = f"stackgan stage {stage} {what}"
            cases.append(case(name, "images/s", rates, rate / flops[what], peaks[what], {**settings, **now}))
    return cases


def _config(stage: Any, options: argparse.Namespace):
    from dalle.config import StackGANModel

    return StackGANModel(
        stage=stage,
        image_size_px=256 if stage == 2 else 64,
        text_width=options.text_width,
        channels=options.channels,
        discriminator_channels=options.discriminator_channels,
    )


def operations(config, what: str) -> int:
    """Floating-point operations of an image, counted while straightforward code runs on two of them, without values: of products and
    convolutions, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        batch = _batch(config, 2)
        calls = peers_stackgan.calls(config, batch, _KL_WEIGHT, torch.float32)
        with FlopCounterMode(display=False) as counter:
            calls[what]()
    return counter.get_total_flops() // 2


def _batch(config, size: int) -> dict[str, torch.Tensor]:
    side = config.image_size_px
    batch = {
        "images_BCYX": torch.randint(0, 256, (size, 3, side, side)).byte(),
        "text_BE": torch.randn(size, config.text_width),
        "wrong_text_BE": torch.randn(size, config.text_width),
        "noise_BZ": torch.randn(size, config.noise_width),
        "epsilon_BC": torch.randn(size, config.condition_width),
    }
    return batch | ({"low_BCYX": torch.randn(size, 3, side // 4, side // 4).tanh()} if config.stage == 2 else {})


def _ours(config, size: int) -> dict[str, Callable]:
    """Both players' bare steps: no loader, no EMA, no DeepSpeed around them. Channels last, 16-bit products and optimisers as the engine
    sets them."""
    from dalle.config import Optimizer, Schedule, StackGANObjective
    from dalle.models.stackgan.discriminator import Discriminator
    from dalle.models.stackgan.generators import generator
    from dalle.objectives.stackgan import DiscriminatorObjective, GeneratorObjective
    from dalle.objectives.stackgan import draw as draw_once
    from dalle.optim import optimizer as optimizers

    drawing, judging = (
        each.to(DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        for each in (generator(config), Discriminator(config))
    )
    loss = StackGANObjective(kl_weight=_KL_WEIGHT)
    moves = {
        "discriminator": (DiscriminatorObjective(judging, drawing, loss), drawing),
        "generator": (GeneratorObjective(drawing, judging, loss), judging),
    }
    optimizer = Optimizer(Schedule(2e-4, 2e-4), beta1=0.5, beta2=0.999, weight_decay=0.0)
    made = {name: optimizers.build(objective, optimizer) for name, (objective, _) in moves.items()}
    ones = torch.ones(size)
    batch = _batch(config, size) | {"has_wrong_B": ones, "real_labels_B": ones}
    batch |= {"wrong_labels_B": 0 * ones, "fake_labels_B": 0 * ones}
    batch = {name: value.to(DEVICE) for name, value in batch.items()}
    batch |= {name: value.to(memory_format=torch.channels_last) for name, value in batch.items() if value.ndim == 4}

    def train() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            drawn = {"drawn": draw_once(drawing, batch)}
        for name, (objective, other) in moves.items():
            other.requires_grad_(False)
            with torch.autocast(DEVICE, torch.bfloat16):
                found, _ = objective(batch | drawn)
            found.backward()
            other.requires_grad_(True)
            made[name].step()
            made[name].zero_grad()

    def draw() -> None:
        drawing.eval()
        with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
            drawing(batch["text_BE"], batch["noise_BZ"], batch["epsilon_BC"], batch.get("low_BCYX"))
        drawing.train()

    return {"train": train, "draw": draw}


def _eager(config, size: int, dtype: torch.dtype) -> dict[str, Callable]:
    batch = {name: value.to(DEVICE) for name, value in _batch(config, size).items()}
    return peers_stackgan.calls(config, batch, _KL_WEIGHT, dtype)
