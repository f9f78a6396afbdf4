"""Every fast form of masked attention against the plain definition, forward and backward, and never ahead."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from dalle.masks import attention_mask, block_mask_rule, transposed, windows
from dalle.models.attention import MaskedAttention, reference_attention

KINDS = ["row", "column", "conv", "dense"]
# (text slots, grid, kernel): odd, one row, a kernel wider than the grid, a grid that no block of 16 to 48 divides
SHAPES = [(7, 5, 3), (2, 1, 3), (3, 4, 11), (5, 8, 5), (6, 16, 11), (4, 53, 5)]


def _qkv(slots, dtype=torch.float32, batch=2, heads=3, width=8, device="cpu"):
    """Strided views of one tensor, as the model has them."""
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(batch, slots, 3, heads, width, generator=generator).to(device, dtype).requires_grad_()
    return fused, fused.permute(2, 0, 3, 1, 4).unbind(0)


def _both(attention, fused, qkv, mask_SS):
    """Output and gradient of a form and of the reference."""
    weight = torch.randn(qkv[0].shape, generator=torch.Generator().manual_seed(1)).to(qkv[0])
    results = []
    for output in (attention(*qkv), reference_attention(*qkv, mask_SS)):
        (gradient,) = torch.autograd.grad((output.float() * weight.float()).sum(), fused)
        results.append((output.float(), gradient.float()))
    return zip(*results, strict=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("text_slots", "grid", "kernel"), SHAPES)
def test_forward_and_backward_are_the_reference(kind, text_slots, grid, kernel):
    attention = MaskedAttention(kind, text_slots, grid, kernel)
    fused, qkv = _qkv(text_slots + grid**2, heads=1 if grid > 16 else 3)
    for ours, plain in _both(attention, fused, qkv, attention.mask_SS):
        # fp32 sums of up to a few hundred terms in another order
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("text_slots", "grid", "kernel"), SHAPES)
def test_in_16_bits(kind, text_slots, grid, kernel):
    attention = MaskedAttention(kind, text_slots, grid, kernel)
    fused, qkv = _qkv(text_slots + grid**2, torch.bfloat16, heads=1 if grid > 16 else 3)
    for ours, plain in _both(attention, fused, qkv, attention.mask_SS):
        # the reference rounds once, at its end; scores of up to 4, weights and their gradients are rounded to 8 bits here
        assert (ours - plain).norm() / plain.norm() < 0.006
        torch.testing.assert_close(ours, plain, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_a_few_heads_at_a_time_are_all_heads(kind, monkeypatch):
    attention = MaskedAttention(kind, 6, 8, 5)
    fused, qkv = _qkv(6 + 64)
    monkeypatch.setattr("dalle.models.window_attention._SCORES_AT_ONCE", 3 * 64 * 64)
    for ours, plain in _both(attention, fused, qkv, attention.mask_SS):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_slots_alone_are_the_first_of_all(kind):
    attention = MaskedAttention(kind, 6, 8, 5)
    _, qkv = _qkv(6 + 64)
    for slots in (6, 7, 15, 63):
        part = attention(*(x[:, :, :slots] for x in qkv))
        torch.testing.assert_close(part, attention(*qkv)[:, :, :slots], atol=1e-5, rtol=1e-4)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "kernel"), [(5, 3), (4, 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_a_changed_key_moves_those_who_see_it_and_no_one_else(kind, grid, kernel, dtype, device):
    """Slot after slot: key and value change, and exactly the rows of the mask's column move."""
    attention = MaskedAttention(kind, 3, grid, kernel).to(device)
    _, (q, k, v) = _qkv(3 + grid**2, dtype, batch=1, heads=1, width=16, device=device)
    q, k, v = q.detach(), k.detach(), v.detach()
    before = attention(q, k, v)[0, 0]
    for slot in range(3 + grid**2):
        other_k, other_v = k.clone(), v.clone()
        other_k[:, :, slot] += 1
        other_v[:, :, slot] += 100  # past any rounding
        moved = (attention(q, other_k, other_v)[0, 0] != before).any(dim=1)
        assert torch.equal(moved, attention.mask_SS[:, slot])


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
@pytest.mark.parametrize(("text_slots", "grid", "kernel"), SHAPES[:5])
def test_the_rule_of_the_block_mask_is_the_mask(kind, text_slots, grid, kernel):
    slots = text_slots + grid**2
    rule = block_mask_rule(kind, text_slots, grid, kernel)
    mask_SS = create_mask(rule, None, None, slots, slots, device="cpu")[0, 0]
    expected_SS = attention_mask(kind, text_slots, grid, kernel)
    if kind == "column":  # in column order there
        order = transposed(torch.arange(grid**2).view(1, 1, -1, 1), grid).flatten() + text_slots
        order = torch.cat([torch.arange(text_slots), order])
        expected_SS = expected_SS[order][:, order]
    assert torch.equal(mask_SS, expected_SS)


def test_block_masks_skip_what_they_can():
    """The shares of blocks of 128 that the specification states: row .62, conv .73, column in column order .49 of the
    causal triangle's."""
    blocks = (1280 // 128) * (1280 // 128 + 1) / 2
    shares = {}
    for kind in ("row", "column", "conv"):
        mask = create_block_mask(block_mask_rule(kind, 256, 32), None, None, 1280, 1280, device="cpu")
        shares[kind] = int((mask.kv_num_blocks + mask.full_kv_num_blocks).sum()) / blocks
    assert shares == pytest.approx({"row": 0.62, "column": 0.49, "conv": 0.73}, abs=0.01)


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_flex_attention_gives_the_reference(kind, monkeypatch):
    """The road that CUDA tensors take, forward: on a CPU FlexAttention is plain operations and has no backward pass."""
    attention = MaskedAttention(kind, 5, 4, 3)
    rule = block_mask_rule(kind, 5, 4, 3)
    attention.block_mask = create_block_mask(rule, None, None, 21, 21, device="cpu")
    monkeypatch.setattr("dalle.models.attention._compiled_flex_attention", lambda: flex_attention)
    _, qkv = _qkv(21)
    with torch.no_grad():
        ours = attention.by_blocks(*(x.detach() for x in qkv))
    torch.testing.assert_close(ours, reference_attention(*qkv, attention.mask_SS), atol=1e-5, rtol=1e-4)


def test_without_a_block_mask_nothing_is_attended():
    """FlexAttention without one would see what lies ahead."""
    _, qkv = _qkv(21)
    with pytest.raises(AssertionError, match="block mask"):
        MaskedAttention("row", 5, 4, 3).by_blocks(*qkv)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("text_slots", "grid", "width"), [(256, 32, 64), (37, 13, 32), (5, 4, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(kind, text_slots, grid, width, dtype):
    attention = MaskedAttention(kind, text_slots, grid).cuda()
    fused, qkv = _qkv(text_slots + grid**2, dtype, heads=2, width=width, device="cuda")
    for ours, plain in _both(attention, fused, qkv, attention.mask_SS):
        # fp32 products may run in TF32, of 10 bits; bf16 has 8
        assert (ours - plain).norm() / plain.norm() < (0.003 if dtype == torch.float32 else 0.01)


def test_windows_cover_what_the_mask_keeps():
    for kind in ("row", "column", "conv"):
        for grid in (1, 3, 5, 16, 32, 53):
            w = windows(kind, grid, 11)
            mask = attention_mask(kind, 0, grid, 11)
            assert w.seen_WNM.sum() == mask.sum()
            assert w.seen_WNM.shape[0] * w.seen_WNM.shape[1] == grid**2
            assert sum(length for _, length in w.runs) == w.seen_WNM.shape[2]
