"""The sizes of the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dalle.config.checks import at_least, at_most, multiples_near, require

MOST_SLOTS = 2**16
"""Of a sequence: 255 × 255 codes with 511 slots of text. A layer's mask is a table of slots × slots, so this is 4 GB."""

_MOST_CODES = 2**16
"""Of a codebook: token shards hold codes in 16 bits."""
_MOST_TOKENS = 2**24
"""Of a vocabulary: a thousand times the paper's."""
MOST_SIDE_PX, MOST_WIDTH, MOST_LAYERS = 2**14, 2**20, 2**12
"""Far beyond what was ever trained: a layer of such a width is 4 TB."""


@dataclass(frozen=True)
class DVAEModel:
    """The discrete VAE (appendix A.1). The defaults are the published model: 53,786,240 + 43,829,766 parameters.

    Args:
        image_size_px: side of the square training images
        codebook_size: K, the number of codes
        encoder_width: width of the encoder's first group; group g has `width_multipliers[g]` times as many channels,
            and the decoder's groups have the same widths in reverse
        width_multipliers: one per group; the encoder halves the resolution after each group but the last
        blocks_per_group: resblocks in each group
        decoder_input_width: channels that the decoder's 1×1 input conv maps a code to
        decoder_width: width of the decoder's last group, in place of `encoder_width`; null means the same. Ours, like the
            next: for a larger decoder of codes that are there
        decoder_blocks_per_group: resblocks in each group of the decoder; null means as many as in the encoder
        post_gain: factor on the residual path; null means 1 / (number of resblocks)²
        init: "paper" (std 1/√fan-in) or "he" (std √(2/fan-in)); "he" is ours
        logit_norm_gain: batch-normalise the encoder's logits and multiply them by this; null (the paper) leaves them
            alone. Ours: it prevents the collapse to one code in short trainings on plain backgrounds
        code_prior: what the KL compares the codes with: "uniform" (the paper), or "learned" (ours), a trained
            distribution over codes, with a trained scale and shift of the normalised logits. What is common then
            gets one cheap code instead of many, so a small prior has less to learn; rare codes may die
        min_ln_b: floor under ln b of the logit-Laplace likelihood; null (the paper) means none. Ours: without it a
            constant colour, whose likelihood has no upper bound, drowns everything else
        boundary_kernel: kernel size of the convolutions that make the logits and read the codes: 1 (the paper), or 3 to compare with
        pool: how the encoder halves the resolution: "max" (the paper), or "average" to compare with
        likelihood: likelihood of the pixels: "logit-laplace" (the paper), or "l2" to compare with: a Gaussian around the decoder's
            first three maps with one trained scale, the other three unused
    """

    image_size_px: int = 256
    codebook_size: int = 8192
    encoder_width: int = 256
    width_multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks_per_group: int = 2
    decoder_input_width: int = 128
    post_gain: float | None = None
    init: Literal["paper", "he"] = "paper"
    logit_norm_gain: float | None = None
    code_prior: Literal["uniform", "learned"] = "uniform"
    min_ln_b: float | None = None
    boundary_kernel: Literal[1, 3] = 1
    pool: Literal["max", "average"] = "max"
    likelihood: Literal["logit-laplace", "l2"] = "logit-laplace"
    decoder_width: int | None = None
    decoder_blocks_per_group: int | None = None

    def __post_init__(self) -> None:
        at_least(self, 2, "codebook_size")
        at_least(self, 1, "blocks_per_group", "decoder_input_width")
        at_most(self, _MOST_CODES, "codebook_size")
        at_most(self, MOST_SIDE_PX, "image_size_px")
        at_most(self, MOST_WIDTH, "encoder_width", "decoder_width", "decoder_input_width")
        at_most(self, MOST_LAYERS, "blocks_per_group", "decoder_blocks_per_group")
        require(
            len(self.width_multipliers) <= 14,
            "width_multipliers: more than 14 groups halve an image to nothing; leave some out",
        )
        require(
            self.min_ln_b is None or abs(self.min_ln_b) <= 80,
            f"min_ln_b {self.min_ln_b}: must lie between -80 and 80, or fp32 holds no b that is so small or large; -1 works",
        )
        if self.decoder_blocks_per_group is not None:
            at_least(self, 1, "decoder_blocks_per_group")
        require(len(self.width_multipliers) >= 1, "width_multipliers: needs at least one group")
        for name in ("encoder_width", "decoder_width"):
            first = getattr(self, name)
            widths = [first * m for m in self.width_multipliers] if first is not None else []
            require(
                all(4 <= w <= MOST_WIDTH and w % 4 == 0 for w in widths),
                f"{name} {first} × width_multipliers {self.width_multipliers}: "
                "must be positive multiples of 4 (the hidden width is a quarter)",
            )
        require(
            self.image_size_px > 0 and self.image_size_px % self.downsampling == 0,
            f"image_size_px {self.image_size_px}: must be a multiple of {self.downsampling}, the downsampling of "
            f"{len(self.width_multipliers)} groups, such as {multiples_near(self.image_size_px, self.downsampling)}",
        )

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side: 2 to the number of poolings."""
        return 2 ** (len(self.width_multipliers) - 1)

    @property
    def grid(self) -> int:
        """G, tokens along one side of an image."""
        return self.image_size_px // self.downsampling


@dataclass(frozen=True)
class PriorModel:
    """The sparse transformer over text and image tokens (appendix B.1). The defaults are the 12 B model.

    Args:
        text_slots: T, slots for the start-of-text token and up to T − 1 caption tokens
        grid: G, image tokens along one side
        text_vocabulary: size of the BPE vocabulary
        codebook_size: K of the dVAE
        width: D, the model width
        depth: L, the number of layers; each has an attention and an MLP resblock
        heads: H; the head width is D / H (64 in the paper)
        attention: "paper" (row, column, row, row, …, the last convolutional) or "dense", causal everywhere (ours,
            to compare with)
        conv_kernel: side of the convolutional mask's kernel, odd
    """

    text_slots: int = 256
    grid: int = 32
    text_vocabulary: int = 16384
    codebook_size: int = 8192
    width: int = 3968
    depth: int = 64
    heads: int = 62
    attention: Literal["paper", "dense"] = "paper"
    conv_kernel: int = 11

    def __post_init__(self) -> None:
        at_least(self, 2, "text_slots", "codebook_size")
        at_least(self, 1, "grid", "text_vocabulary", "width", "depth", "heads")
        at_most(self, _MOST_CODES, "codebook_size")
        at_most(self, _MOST_TOKENS, "text_vocabulary")
        at_most(self, MOST_WIDTH, "width", "heads", "conv_kernel")
        at_most(self, MOST_LAYERS, "depth")
        require(self.width % self.heads == 0, f"heads {self.heads}: must divide width {self.width}")
        require(
            self.conv_kernel >= 1 and self.conv_kernel % 2 == 1,
            f"conv_kernel {self.conv_kernel}: must be odd and positive",
        )
        require(
            self.slots <= MOST_SLOTS,
            f"grid {self.grid} with text_slots {self.text_slots}: makes {self.slots:,} slots, of which a sequence has at most "
            f"{MOST_SLOTS:,}; lower one of them",
        )

    @property
    def image_slots(self) -> int:
        return self.grid**2

    @property
    def caption_tokens(self) -> int:
        """T − 1, the most tokens of a caption that are read."""
        return self.text_slots - 1

    @property
    def slots(self) -> int:
        """S, the length of a sequence: T + G²."""
        return self.text_slots + self.image_slots


@dataclass(frozen=True)
class CLIPModel:
    """The contrastive reranker: an open_clip architecture by name, or a small one by its dials.

    Args:
        architecture: name of an open_clip architecture (such as "ViT-B-32"); null builds one from the dials below
        reads: "pixels", or "codes": an image is then what the dVAE made of it, so that candidates can be ranked before they
            are decoded (ours)
        image_size_px: side of the images that it reads; of a reader of codes, in codes: the dVAE's grid
        patch_px: side of a vision-transformer patch; of a reader of codes, in codes. The embeddings of a patch's codes lie
            side by side in `vision_width`
        codebook_size: K of the dVAE, for a reader of codes
        vision_width: width of the image transformer
        vision_layers: depth of the image transformer
        text_width: width of the text transformer
        text_layers: depth of the text transformer
        text_slots: longest caption in tokens, start and end included
        embedding_width: width of the joint space
    """

    architecture: str | None = None
    reads: Literal["pixels", "codes"] = "pixels"
    image_size_px: int = 64
    patch_px: int = 8
    codebook_size: int = 8192
    vision_width: int = 256
    vision_layers: int = 6
    text_width: int = 256
    text_layers: int = 4
    text_slots: int = 64
    embedding_width: int = 256

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size_px", "patch_px", "vision_width", "vision_layers", "text_width", "text_layers")
        at_least(self, 1, "embedding_width")
        at_least(self, 2, "codebook_size")
        at_least(self, 3, "text_slots")
        at_most(self, _MOST_CODES, "codebook_size")
        at_most(self, MOST_SIDE_PX, "image_size_px", "patch_px")
        at_most(self, MOST_WIDTH, "vision_width", "text_width", "embedding_width")
        at_most(self, MOST_LAYERS, "vision_layers", "text_layers")
        at_most(self, MOST_SLOTS, "text_slots")
        require(
            self.architecture is None or ":" not in self.architecture,
            f"architecture {self.architecture}: must be the name of one that open_clip has, not a place to fetch one from",
        )
        require(
            self.image_size_px % self.patch_px == 0,
            f"image_size_px {self.image_size_px}: must be a multiple of patch_px {self.patch_px}, such as "
            f"{multiples_near(self.image_size_px, self.patch_px)}",
        )
        for name in ("vision_width", "text_width"):
            width = getattr(self, name)
            require(
                width % 64 == 0,
                f"{name} {width}: must be a multiple of 64, the head width, such as {multiples_near(width, 64)}",
            )
        if self.reads == "codes":
            require(
                self.architecture is None,
                f"architecture {self.architecture}: reads pixels; leave it null for reads codes, and set the sizes themselves",
            )
            require(
                self.vision_width % self.patch_px**2 == 0,
                f"patch_px {self.patch_px}: its {self.patch_px**2} codes must share vision_width {self.vision_width} evenly; "
                "take 1, 2, 4 or 8",
            )
