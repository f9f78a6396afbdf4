"""What is kept for the backward pass, beside what PyTorch keeps of tensors with memory, and beside counts by hand."""

from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from dalle.config import PriorModel
from dalle.models import cross_entropy
from dalle.models.prior import Layer
from dalle.planning.activations import activations, head_work, layer_work
from dalle.planning.meter import Meter

MODEL = PriorModel(text_slots=16, grid=8, text_vocabulary=40, codebook_size=24, width=128, depth=3, heads=2)
ELEMENTS = MODEL.slots * MODEL.width


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_keeps_what_pytorch_saves(precision):
    """Tensors with memory, as hooks see them; the parameters themselves are not kept for it."""
    torch.manual_seed(0)
    layer = Layer(MODEL.width, MODEL.heads, 0.02)
    if precision == "bf16":
        for module in (layer.attention.qkv, layer.attention.project, layer.mlp.widen, layer.mlp.project):
            module.weight.data = module.weight.data.bfloat16()
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x_BSD = torch.randn(2, MODEL.slots, MODEL.width, requires_grad=True)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        out = layer(x_BSD, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    expected = sum(size for place, size in saved.items() if place not in own)
    found = layer_work(MODEL, "row", precision, 2, recompute=False, in_16_bit=True)
    # a view's storage may be held besides, and scalars
    assert found.kept == pytest.approx(expected, rel=0.02)
    assert out.dtype == torch.float32


def test_bytes_of_a_slot_and_channel():
    """The identity path 4 twice, and in 16 bits the norms' outputs 2 twice, q, k, v 6, values 2, the MLP's 8 and its GELU's 8."""
    kept = {
        (kind, recompute): layer_work(MODEL, kind, "fp16-per-block", 1, recompute, True).kept / ELEMENTS
        for kind in ("row", "column")
        for recompute in (False, True)
    }
    assert kept["row", False] == pytest.approx(36, rel=0.02)
    assert kept["column", False] == pytest.approx(38, rel=0.02)  # values in the order of the rows, too
    assert kept["row", True] == kept["column", True] == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_of_gathered_weights_products_keep_what_those_of_deepspeed_keep(precision, monkeypatch):
    """Their inputs as they came, and of weights neither copies nor views."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    found = layer_work(MODEL, "row", precision, 2, False, False, gathered=True)
    monkeypatch.setattr(
        "dalle.planning.activations._products_of_gathered_weights",
        lambda: mock.patch("torch.nn.functional.linear", zero3_linear_wrap),
    )
    theirs = layer_work(MODEL, "row", precision, 2, False, False, gathered=True)
    assert found.kept == theirs.kept and found.peak == pytest.approx(theirs.peak, rel=0.02)
    if precision == "bf16":  # the norms' outputs in fp32
        held = layer_work(MODEL, "row", precision, 2, False, True)
        assert found.kept - held.kept == pytest.approx(2 * 2 * 2 * ELEMENTS, rel=0.02)


def test_copies_of_weights_count_where_autocast_makes_them():
    matrices = 12 * MODEL.width**2
    whole, held = (layer_work(MODEL, "row", "bf16", 1, False, in_16_bit) for in_16_bit in (False, True))
    assert whole.kept - held.kept == 2 * matrices
    # recomputed, they are there until the forward pass has ended, and those of biases; that of a transposed weight is not
    again = layer_work(MODEL, "row", "bf16", 1, True, False)
    assert (again.kept, again.forward) == (
        4 * ELEMENTS,
        4 * ELEMENTS + 2 * (matrices - 4 * MODEL.width**2 + 9 * MODEL.width),
    )


def test_a_micro_batch_of_five_is_five_of_one():
    found = activations(MODEL, "bf16", 5, False, True)
    assert found.layers == sum(layer_work(MODEL, k, "bf16", 5, False, True).kept for k in ("row", "column", "conv"))
    assert found.layer == max(
        work.peak - work.kept
        for k in ("row", "column", "conv")
        for work in [layer_work(MODEL, k, "bf16", 5, False, True)]
    )
    assert found.peak == found.layers + max(found.layer, found.heads)


def test_heads_hold_what_they_hold_with_memory(monkeypatch):
    """Three samples, logits of a few rows at a time, on real tensors."""
    monkeypatch.setitem(cross_entropy.CHUNK_ROWS, "cuda", 50)
    kept = []
    sides = ((MODEL.text_vocabulary, 3 * MODEL.caption_tokens), (MODEL.codebook_size, 3 * MODEL.image_slots))
    given = [
        (torch.randn(n, MODEL.width), torch.randn(v, MODEL.width), torch.zeros(v), torch.zeros(n, dtype=torch.int64))
        for v, n in sides
    ]
    with torch.no_grad(), Meter(t for tensors in given for t in tensors) as meter:
        for tensors in given:
            kept.append(cross_entropy.in_chunks(*tensors, torch.float32, True, 50))
    assert head_work.__wrapped__(MODEL, "fp32", 3) == meter.peak
    assert meter.held >= sum(t.nbytes for tensors in kept for t in tensors)


def test_the_meter_counts_what_is_there_and_what_was():
    with Meter() as meter:
        a = torch.empty(1000)
        b = a.view(10, 100)  # no memory of its own
        c = torch.empty(500, dtype=torch.float64) + 1  # for a moment twice
        del a
        assert (meter.held, meter.peak) == (8000, 12000)
        del b
    assert (meter.held, meter.peak) == (4000, 12000)
    assert c.numel() == 500
