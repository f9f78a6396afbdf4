"""The contrastive reranker: any open_clip model, or a small one of ours on our own tokenizer.

Images are [0, 1] or uint8 of any size: they are brought to the model's own size and normalised here. One that reads codes
takes a dVAE's in their place, so that candidates can be ranked before they are decoded; this is ours, not the paper's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dalle.config import CLIPModel
from dalle.data.sources.hub import ask_for, hub_error
from dalle.models import folder
from dalle.models.likelihood import unit_range
from dalle.models.weights import check_finite
from dalle.text import Cuts, Tokenizer, clean

_SCHEMAS: list[torch.library.Library] = []
"""They live as long as these objects."""


def ready_torchvision() -> None:
    """Make `import torchvision` work beside a torch without CUDA. A torchvision built for CUDA cannot load its operators
    there, and then fails at import for want of two schemas; with a matching one they come a moment later."""
    if torch.cuda.is_available() or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _SCHEMAS.append(library)


def _open_clip() -> Any:
    """open_clip, imported late: it takes seconds and only CLIP needs it."""
    ready_torchvision()
    import open_clip

    return open_clip


class CLIP(nn.Module):
    """Scores how well images and captions fit.

    Args:
        config: sizes, or the name of an open_clip architecture
        tokenizer: ours; null uses open_clip's for the named architecture
        pretrained: an open_clip tag or a checkpoint file; null starts at random
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: CLIPModel, tokenizer: Tokenizer | None = None, pretrained: str | None = None):
        super().__init__()
        open_clip = _open_clip()
        self.config, self.tokenizer = config, tokenizer
        if config.architecture is None:
            if tokenizer is None:
                raise ValueError("a CLIP without a named architecture needs a tokenizer; give one")
            self.net = open_clip.CLIP(**_small(config, tokenizer))
            if config.reads == "codes":  # all behind a patch's vector is as for pixels
                self.net.visual.conv1 = CodePatches(config)
        else:
            if tokenizer is not None:
                raise ValueError(f"architecture {config.architecture} brings its own tokenizer; leave tokenizer out")
            with _unlogged():
                _ask_for_weights(config.architecture, pretrained)
                try:
                    device = torch.get_default_device()  # which open_clip would leave for the CPU
                    quick = _wants_quick_gelu(config.architecture, pretrained)
                    self.net = open_clip.create_model(
                        config.architecture, pretrained=pretrained, device=device, force_quick_gelu=quick
                    )
                    self._open_clip_tokenizer = open_clip.get_tokenizer(config.architecture)
                except Exception as error:  # open_clip raises many kinds for a bad name, tag or file
                    raise ValueError(
                        f"open_clip cannot make {config.architecture}: {error}; name one of open_clip.list_models()"
                    ) from error
        # one axis more than open_clip's: DeepSpeed cannot broadcast a parameter that has none
        self.net.logit_scale = nn.Parameter(self.net.logit_scale.detach().reshape(1))
        visual = self.net.visual  # a named architecture says how its images are normalised
        mean = open_clip.OPENAI_DATASET_MEAN if config.architecture is None else visual.image_mean
        std = open_clip.OPENAI_DATASET_STD if config.architecture is None else visual.image_std
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def recomputable(self) -> list[nn.Module]:
        """What may be computed again in the backward pass in place of being remembered: the MLPs of transformers. Not
        attention, which would have to meet the same `_attention_kernel` there."""
        block = _open_clip().transformer.ResidualAttentionBlock
        return [module.mlp for module in self.modules() if isinstance(module, block)]

    @property
    def image_size_px(self) -> int:
        """Side of what it reads: in pixels, or for a reader of codes in codes."""
        size = self.net.visual.image_size
        return size[0] if isinstance(size, tuple) else size

    @property
    def logit_scale(self) -> torch.Tensor:
        """The learned inverse temperature, a scalar."""
        return self.net.logit_scale.exp()[0]

    @property
    def caption_tokens(self) -> int:
        """The most tokens of a caption that are read: two slots frame it."""
        return (self.config.text_slots if self.tokenizer is not None else self._open_clip_tokenizer.context_length) - 2

    def tokens(self, captions: Sequence[str], cuts: Cuts | None = None) -> torch.Tensor:
        """Token ids int64 [B, text slots], on the CPU; captions that are too long are cut.

        Args:
            captions: the text
            cuts: counts those that are cut; of a named architecture, those that fill all slots
        """
        if self.tokenizer is None:
            rows = self._open_clip_tokenizer([clean(caption) for caption in captions])
            if cuts is not None:
                cuts.add((rows[:, -1] != 0).tolist())  # its pads are 0
            return rows
        vocabulary, limit = self.tokenizer.vocabulary, self.caption_tokens
        ids = [self.tokenizer.encode(caption) for caption in captions]
        if cuts is not None:
            cuts.add(len(caption) > limit for caption in ids)
        rows = torch.full((len(captions), limit + 2), vocabulary)
        for row, caption in zip(rows, ids, strict=True):
            # the end token is the greatest id, which is how open_clip finds the slot to read from
            framed = [vocabulary + 1, *caption[:limit], vocabulary + 2]
            row[: len(framed)] = torch.tensor(framed)
        return rows

    def embed_images(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """Unit vectors [B, E], fp32, of images in [0, 1] or uint8."""
        images_BCYX = unit_range(images_BCYX)
        size = self.image_size_px
        if images_BCYX.shape[-2:] != (size, size):
            images_BCYX = F.interpolate(images_BCYX, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        with _attention_kernel(images_BCYX):
            features = self.net.encode_image(((images_BCYX - self.mean) / self.std).contiguous())
        return F.normalize(features.float(), dim=-1)

    def embed_codes(self, codes_BI: torch.Tensor) -> torch.Tensor:
        """Unit vectors [B, E], fp32, of images as a dVAE's codes, in raster order, where those are what it reads."""
        side = self.image_size_px
        with _attention_kernel(codes_BI):
            features = self.net.encode_image(codes_BI.unflatten(1, (side, side)))
        return F.normalize(features.float(), dim=-1)

    def embed_batch(self, batch: dict) -> torch.Tensor:
        """Unit vectors [B, E] of a training batch's images: of its `codes_BI` or `images_BCYX`, as `config.reads` says."""
        if self.config.reads == "codes":
            return self.embed_codes(batch["codes_BI"])
        return self.embed_images(batch["images_BCYX"])

    def embed_texts(self, tokens_BU: torch.Tensor) -> torch.Tensor:
        """Unit vectors [B, E], fp32, of token ids."""
        return F.normalize(self.text_features(tokens_BU), dim=-1)

    def text_features(self, tokens_BU: torch.Tensor) -> torch.Tensor:
        """The same vectors, fp32, of whatever length they come out."""
        with _attention_kernel(tokens_BU):
            return self.net.encode_text(tokens_BU).float()


class CodePatches(nn.Module):
    """A vision transformer's first layer for codes: int64 [B, G, G] to the vectors [B, D, Y, X] of its patches, in which the
    embeddings of a patch's codes lie side by side."""

    def __init__(self, config: CLIPModel):
        super().__init__()
        self.patch = config.patch_px
        self.embedding = nn.Embedding(config.codebook_size, config.vision_width // self.patch**2)
        # the standard deviation of what an open_clip transformer's class token is drawn with
        nn.init.normal_(self.embedding.weight, std=config.vision_width**-0.5)

    def forward(self, codes_BYX: torch.Tensor) -> torch.Tensor:
        return F.pixel_unshuffle(self.embedding(codes_BYX).permute(0, 3, 1, 2), self.patch)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Within the block nothing is logged: what open_clip and the Hub's library have to say stands in their errors, too."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _ask_for_weights(architecture: str, pretrained: str | None) -> None:
    """Raises ValueError where weights are on the Hub, and neither in its cache nor to be had."""
    repository, file = os.path.split(_facts(architecture, pretrained).get("hf_hub", ""))
    if not repository:
        return
    named = file or "open_clip_pytorch_model.bin"
    # as open_clip looks for them
    names = [named, os.path.splitext(named)[0] + ".safetensors", "open_clip_model.safetensors"]
    try:
        ask_for(repository, names)
    except Exception as error:  # of many kinds
        told = hub_error(error, repository)
        raise ValueError(
            f"open_clip's {architecture}:{pretrained}: {told}, or name a folder of dalle-train-clip"
        ) from error


def _wants_quick_gelu(architecture: str, pretrained: str | None) -> bool:
    """Whether open_clip's table says that these weights were trained with QuickGELU: those of OpenAI, under the names of
    architectures that have GELU otherwise. A tag that does not say so leaves the architecture's own."""
    return _facts(architecture, pretrained).get("quick_gelu", False)


def _facts(architecture: str, pretrained: str | None) -> dict[str, Any]:
    """What open_clip's table says of weights; nothing of a file."""
    # its tables write architectures so
    return _open_clip().get_pretrained_cfg(architecture.replace("/", "-"), pretrained or "")


def _attention_kernel(inputs: torch.Tensor) -> AbstractContextManager:
    """Plain matrix products on a CPU, where the fused kernel's backward pass takes several times as long for short sequences."""
    return nullcontext() if inputs.is_cuda else sdpa_kernel(SDPBackend.MATH)


def _small(config: CLIPModel, tokenizer: Tokenizer) -> dict:
    return {
        "embed_dim": config.embedding_width,
        "vision_cfg": {
            "image_size": config.image_size_px,
            "patch_size": config.patch_px,
            "width": config.vision_width,
            "layers": config.vision_layers,
            "head_width": 64,
        },
        "text_cfg": {
            "context_length": config.text_slots,
            "vocab_size": tokenizer.vocabulary + 3,
            "width": config.text_width,
            "layers": config.text_layers,
            "heads": config.text_width // 64,
        },
    }


def architectures() -> list[str]:
    """The names that open_clip knows."""
    return _open_clip().list_models()


def open_clip_name(source: str | Path) -> tuple[str, str]:
    """Architecture and weights of a reranker that is no folder of ours. Raises ValueError when it is no open_clip model either."""
    architecture, colon, pretrained = str(source).partition(":")
    if not colon:
        raise ValueError(
            f"no such reranker: {str(source)!r} is neither a folder of dalle-train-clip nor ARCHITECTURE:PRETRAINED of open_clip; name one"
        )
    return architecture, pretrained


def load_clip(source: str | Path, device: str | torch.device = "cpu") -> CLIP:
    """A reranker, in evaluation mode.

    Args:
        source: a folder of `dalle-train-clip`, or `ARCHITECTURE:PRETRAINED` of open_clip, where the second is a tag
            such as `laion2b_s34b_b79k` (fetched from the network) or a local checkpoint file

    Raises:
        ValueError: there is no such reranker, or it is damaged, or its weights are not finite
    """
    if Path(source).is_dir():
        config = folder.read_config(source, "clip")
        tokenizer = Tokenizer.load(Path(source) / "tokenizer.json") if config.architecture is None else None
        if tokenizer is not None:
            expected = folder.read_header(source).get("tokenizer_hash", "none")
            folder.check_link(
                f"the tokenizer.json in {source} is not the one it was trained with", expected, tokenizer.hash
            )
        return folder.load_into(folder.weightless(lambda: CLIP(config, tokenizer), source), source, device)
    architecture, pretrained = open_clip_name(source)
    model = CLIP(CLIPModel(architecture=architecture), pretrained=pretrained)
    check_finite(model, f"the reranker {source}")
    return model.to(device).eval().requires_grad_(False)
