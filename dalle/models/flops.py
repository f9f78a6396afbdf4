"""Floating-point operations of the models (`docs/flops.md` derives the counts).

A multiply-add is two. Counted is what a model asks for, not what a kernel spends on it: the pairs of slots that a mask
keeps, and no recomputed activation, as for the model FLOPs utilisation of PaLM (Chowdhery et al., 2022, appendix B).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dalle.config import DVAEModel, PriorModel
from dalle.masks import Kind, layer_kinds, seen_offsets
from dalle.models.dvae import DVAE


def attention_flops(kind: Kind, config: PriorModel) -> int:
    """Of one sample in the attention of one layer, forward: q·kᵀ and weights·v over all heads, for the pairs of slots that
    the layer's mask keeps. The projections before and after are not in it."""
    text, image = config.text_slots, config.image_slots
    pairs = text * (text + 1) // 2 + image * text + image_pairs(kind, config)
    return 4 * config.width * pairs


def image_pairs(kind: Kind, config: PriorModel) -> int:
    """Pairs of image slots of which one sees the other, by the mask of a layer."""
    # an offset o is met by the I − o slots that have as many before them
    return sum(config.image_slots - offset for offset in seen_offsets(kind, config.grid, config.conv_kernel))


def prior_flops(config: PriorModel) -> int:
    """Of training on one sample: forward, and twice that for the gradients of inputs and weights. The resblocks' matrices on
    all slots, attention, and each head on the slots that it scores; embeddings are looked up."""
    matrices = 24 * config.width**2 * config.slots  # 12 D² weights: q·k·v 3, projection 1, MLP 8
    attention = sum(attention_flops(kind, config) for kind in layer_kinds(config))
    scored = config.caption_tokens * config.text_vocabulary + config.image_slots * config.codebook_size
    return 3 * (config.depth * matrices + attention + 2 * config.width * scored)


def dvae_flops(config: DVAEModel) -> dict[str, int]:
    """Of one image, by what is done with it: "train" (forward and backward), "train_decoder" (that of the decoder alone, on
    hard codes), "encode", "decode"."""
    with torch.device("meta"):
        dvae = DVAE(config)
    dvae.to_empty(device="cpu")  # pages that nobody writes to take no memory
    # of one token's pixels, times the tokens: convolutions cost the same everywhere
    pixels = torch.zeros(1, 3, config.downsampling, config.downsampling)
    encode = _counted(dvae.encoder, pixels) * config.grid**2
    draw = _counted(dvae.decoder, torch.zeros(1, config.codebook_size, 1, 1)) * config.grid**2
    # hard codes look up what relaxed ones need a product for, where a code's channels depend on it alone
    product = 2 * config.codebook_size * config.decoder_input_width * config.grid**2
    saved = product if config.boundary_kernel == 1 else 0
    decode = draw - saved
    return {"train": 3 * (encode + draw), "train_decoder": encode + 3 * decode, "encode": encode, "decode": decode}


def _counted(module: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops()
