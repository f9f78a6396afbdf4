"""Counted operations against masks, against PyTorch's counter, and against sums by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dalle.config import DVAEModel, PriorModel
from dalle.masks import attention_mask
from dalle.models.attention import reference_attention
from dalle.models.dvae import DVAE
from dalle.models.flops import attention_flops, dvae_flops, prior_flops
from dalle.models.prior import Prior

KINDS = ["row", "column", "conv", "dense"]
SMALL = {"text_slots": 6, "text_vocabulary": 20, "codebook_size": 11, "width": 24, "heads": 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "kernel"), [(1, 11), (2, 3), (5, 11), (7, 1), (8, 5), (16, 11), (32, 11)])
def test_attention_counts_the_pairs_that_the_mask_keeps(kind, grid, kernel):
    config = PriorModel(**SMALL, depth=1, grid=grid, conv_kernel=kernel)
    pairs = int(attention_mask(kind, config.text_slots, grid, kernel).sum())
    # q·k and weight·v, each a multiplication and an addition for every one of the D = H·K channels
    assert attention_flops(kind, config) == 2 * 2 * config.width * pairs


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_costs_what_the_counter_says(kind):
    """The plain definition computes all S² pairs, of which the mask's share is counted; backward it is twice that."""
    config = PriorModel(**SMALL, depth=1, grid=4, conv_kernel=3)
    mask_SS = attention_mask(kind, config.text_slots, 4, 3)
    q, k, v = torch.randn(3, 1, 2, config.slots, 12, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        reference_attention(q, k, v, mask_SS).sum().backward()
    assert 3 * attention_flops(kind, config) * mask_SS.numel() == counter.get_total_flops() * mask_SS.sum()


def test_matrices_and_heads_are_those_of_the_counter():
    """Forward and backward. Products of a linear layer are matrix products to the counter, those of attention are not."""
    config = PriorModel(**SMALL, depth=3, grid=4, attention="dense")
    text_BU, codes_BI = torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        text_BUV, image_BIV = Prior(config)(text_BU, codes_BI)
        (text_BUV.sum() + image_BIV.sum()).backward()
    by_operation = counter.get_flop_counts()["Global"]
    products = sum(by_operation.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert products == prior_flops(config) - 3 * 3 * attention_flops("dense", config)


def test_a_prior_by_hand():
    config = PriorModel(**SMALL, depth=2, grid=4, conv_kernel=3)
    # 24 weights of width 24 × 24 in two layers on 22 slots; heads on 5 and 16 slots
    products = 2 * (24 * 24**2 * 22 + 24 * (5 * 20 + 16 * 11))
    # text sees text, image sees text; a row's offsets 0 … 4; the kernel's, 0, 1, 3, 4 and 5
    row = 21 + 16 * 6 + (16 + 15 + 14 + 13 + 12)
    conv = 21 + 16 * 6 + (16 + 15 + 13 + 12 + 11)
    assert prior_flops(config) == 3 * (products + 4 * 24 * (row + conv))


def test_long_sequences_need_no_mask():
    """One of nearly as many slots as there may be, whose mask would take 4 GB; in closed form."""
    grid = 255
    config = PriorModel(**SMALL, depth=1, grid=grid)
    slots, triangle = grid**2, grid * (grid + 1) // 2
    between = {"row": slots * (grid + 1) - triangle, "column": grid * triangle, "dense": slots * (slots + 1) // 2}
    for kind, pairs in between.items():
        assert attention_flops(kind, config) == 4 * 24 * (21 + 6 * slots + pairs)


@pytest.mark.parametrize("boundary_kernel", [1, 3])
def test_a_dvae_is_counted_without_being_initialised(boundary_kernel):
    config = DVAEModel(
        image_size_px=16, codebook_size=12, encoder_width=8, decoder_input_width=8, boundary_kernel=boundary_kernel
    )
    flops, dvae = dvae_flops(config), DVAE(config)
    calls = {
        "encode": lambda: dvae.encode(torch.zeros(1, 3, 16, 16)),
        "decode": lambda: dvae.decode(torch.zeros(1, 2, 2, dtype=torch.int64)),
        "train": lambda: dvae.likelihood_maps(dvae.logits(torch.zeros(1, 3, 16, 16))),
    }
    for name, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        assert flops[name] == counter.get_total_flops() * (3 if name == "train" else 1)


def test_the_published_dvae():
    encode, decode = 272294215680, 257496711168
    assert dvae_flops(DVAEModel()) == {
        "train": 1595815231488,
        "train_decoder": encode + 3 * decode,
        "encode": encode,
        "decode": decode,
    }
