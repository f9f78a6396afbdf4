"""What a backward pass keeps of a forward pass, and what is there for a moment: counted while one layer and the heads run.

They run forwards and backwards on fake tensors, as a training has them: with its autocast, gradient scales and recomputation. The
tensors have no memory, but sizes and lives. Layers of one kind keep alike, so one of each kind is enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from dalle.config import PriorModel
from dalle.gradients.scaling import GradientScales
from dalle.masks import Kind, layer_kinds
from dalle.models import cross_entropy
from dalle.models.attention import MaskedAttention
from dalle.models.prior import Layer
from dalle.models.wrapping import recompute_blocks
from dalle.planning.meter import Meter
from dalle.training.deepspeed_adapter import communicated_in_16_bit
from dalle.training.gathered_linear import GatheredLinear, put_gathered_linears

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
    """Bytes of one layer, or of the heads.

    Args:
        kept: from its forward pass for its backward pass
        forward: likewise, as long as forward passes go on: autocast keeps its copies of weights until the last has ended
        peak: of all that is there while it works, `kept` included
    """

    kept: int
    forward: int
    peak: int


@dataclass(frozen=True)
class Activations:
    """Of a micro-batch, in bytes.

    Args:
        layers: all that the layers keep until the backward pass
        copies: of weights, beside that, until the forward pass has ended
        layer: what is there beside the layers' while one of them works
        heads: likewise while the heads work: logits a chunk at a time, their gradients, those of the heads
    """

    layers: int
    copies: int
    layer: int
    heads: int

    @property
    def peak(self) -> int:
        return self.layers + max(self.layer, self.copies + self.heads)


def activations(
    config: PriorModel, precision: str, micro_batch: int, recompute: bool, in_16_bit: bool, gathered: bool = False
) -> Activations:
    """Count them.

    Args:
        config: sizes of the prior
        precision: of the run
        micro_batch: samples
        recompute: whether layers are computed again
        in_16_bit: as if weights had the precision of the products; else, as in every training, autocast makes copies of them,
            which are counted with what a layer keeps
        gathered: weights are, at stage 3: then products keep their inputs as they came, and no copies of weights
    """
    # of a layer all is in proportion to the samples, but for copies of weights: two counts tell all
    one, two = (_of_layers(config, precision, samples, recompute, in_16_bit, gathered) for samples in (1, 2))
    layers, copies, layer = (a + (micro_batch - 1) * (b - a) for a, b in zip(one, two, strict=True))
    return Activations(layers, copies, layer, head_work(config, precision, micro_batch))


@cache
def _of_layers(
    config: PriorModel, precision: str, samples: int, recompute: bool, in_16_bit: bool, gathered: bool
) -> tuple[int, ...]:
    counts = Counter(layer_kinds(config))
    works = {kind: layer_work(config, kind, precision, samples, recompute, in_16_bit, gathered) for kind in counts}
    kept = sum(count * works[kind].kept for kind, count in counts.items())
    forward = sum(count * works[kind].forward for kind, count in counts.items())
    return kept, forward - kept, max(work.peak - work.kept for work in works.values())


def layer_work(
    config: PriorModel,
    kind: Kind,
    precision: str,
    samples: int,
    recompute: bool,
    in_16_bit: bool,
    gathered: bool = False,
) -> Work:
    """Of a layer's forward and backward pass; its gradients of weights count where they are made in 16 bits, for they then go to a
    bucket."""
    attention = _attention(config, kind)
    with FakeTensorMode(), _products_of_gathered_weights() if gathered else nullcontext():
        layer = Layer(config.width, config.heads, 0.02)
        if in_16_bit and precision != "fp32":
            for weight in communicated_in_16_bit(layer):
                weight.data = weight.data.to(_product_dtype(precision))
        for p in layer.parameters():
            p.grad = torch.zeros_like(p)
        if precision == "fp16-per-block":
            GradientScales.per_block([layer.attention, layer.mlp], 1, _CPU)
        if gathered:
            put_gathered_linears(layer)
        if recompute:
            recompute_blocks(SimpleNamespace(recomputable=lambda: [layer]))
        x_BSD = torch.zeros(samples, config.slots, config.width, requires_grad=True)
        known = [*layer.parameters(), *(p.grad for p in layer.parameters() if p.grad is not None)]
        with Meter(known) as meter:
            with autocast(precision, _CPU):
                out_BSD = layer(x_BSD + 0, attention)
                forward = meter.held
            kept = meter.held
            out_BSD.backward(torch.ones_like(out_BSD))
    return Work(kept - out_BSD.nbytes, forward - out_BSD.nbytes, meter.peak)  # its output the next one keeps


@contextmanager
def _products_of_gathered_weights() -> Iterator[None]:
    """Within the block PyTorch's linear map keeps what DeepSpeed's keeps, which a training at stage 3 has in its place."""

    def linear(x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor) -> torch.Tensor:
        return GatheredLinear.apply(x, weight_OI.t(), bias_O)

    plain, F.linear = F.linear, linear  # type: ignore[assignment]  # its bias may be None, of which no layer has one
    try:
        yield
    finally:
        F.linear = plain


def _attention(config: PriorModel, kind: Kind) -> Callable[..., torch.Tensor]:
    """FlexAttention on a GPU keeps what PyTorch's flash attention keeps, which stands in for it: q, k, v, the values and a number
    for each row."""
    with torch.device("meta"):
        masked = MaskedAttention(kind, config.text_slots, config.grid, config.conv_kernel)

    def attention(*qkv_BHSK: torch.Tensor) -> torch.Tensor:
        q_BHSK, k_BHSK, v_BHSK = (masked.ordered(x_BHSK) for x_BHSK in qkv_BHSK)
        return masked.ordered(F.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, is_causal=True))

    return attention


@cache
def head_work(config: PriorModel, precision: str, samples: int) -> int:
    """Bytes at the peak of the heads: of the larger one's pass over its rows, and of what both leave for the backward pass."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16 if precision == "fp16" else torch.float32
    rows = {
        config.text_vocabulary: samples * config.caption_tokens,
        config.codebook_size: samples * config.image_slots,
    }
    with FakeTensorMode(), torch.no_grad():
        kept: list[tuple[torch.Tensor, ...]] = []
        given = [
            (
                torch.zeros(count, config.width),
                torch.zeros(vocabulary, config.width),
                torch.zeros(vocabulary),
                torch.zeros(count, dtype=torch.int64),
            )
            for vocabulary, count in rows.items()
        ]
        with Meter(t for tensors in given for t in tensors) as meter:
            for tensors in given:
                kept.append(cross_entropy.in_chunks(*tensors, dtype, True, cross_entropy.CHUNK_ROWS["cuda"]))
    return meter.peak


def _product_dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float16


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """As DeepSpeed and the objective have it; resblocks with gradient scales bring their own."""
    if precision in ("bf16", "fp16"):
        return torch.autocast(device.type, _product_dtype(precision))
    return nullcontext()
