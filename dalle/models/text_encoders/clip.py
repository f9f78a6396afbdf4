"""The text tower of a CLIP as a text encoder: the run's own, or any of open_clip's.

Its vectors are not brought to length 1: that is how the second document's and its family's code take them (`encode_text`), and
a vector of length 1 has numbers so small that the layer behind it begins as a constant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from dalle.models.clip import CLIP, architectures, load_clip
from dalle.models.text_encoders.contract import TextEncoder, encoder_hash


def trained_text(folder: str, device: torch.device) -> TextEncoder:
    """The text tower of a folder of `dalle-train-clip`. Raises ValueError when it holds none."""
    return _text_tower(f"clip:{folder}", load_clip(folder), device)


def open_clip_text(model: str, device: torch.device) -> TextEncoder:
    """The text tower of an architecture of open_clip.

    Args:
        model: ARCHITECTURE/TAG_OR_FILE
        device: where it runs

    Raises:
        ValueError: open_clip has no such architecture or weights, or cannot read them
    """
    architecture, *weights = re.split("[/:]", model, maxsplit=1)
    if architecture not in architectures():
        raise ValueError(
            f"{model} is neither a folder of dalle-train-clip nor ARCHITECTURE/TAG_OR_FILE of open_clip, which has no "
            f"{architecture}; name one such as ViT-B-32/openai"
        )
    if not weights or not weights[0]:
        raise ValueError(f"{model} names no weights: add a tag or a file, such as {architecture}/openai")
    try:
        clip = load_clip(f"{architecture}:{weights[0]}")
    except ValueError as error:
        reason = " ".join(str(error).split())[:400]
        if "weights_only" in reason:  # PyTorch's advice here is to run what is in the file
            reason = f"{weights[0]} holds no weights that can be read safely; name another"
        raise ValueError(reason) from error
    return _text_tower(f"clip:{model}", clip, device)


def _text_tower(name: str, clip: CLIP, device: torch.device) -> TextEncoder:
    clip.net.visual = None  # not needed, and most of the memory
    clip = clip.to(device)
    weights = {key: t for key, t in clip.net.state_dict().items() if key != "logit_scale"}

    def read(captions: Sequence[str]) -> torch.Tensor:
        return clip.text_features(clip.tokens(list(captions)).to(device))

    with torch.no_grad():
        width = read(["a"]).shape[1]
    return TextEncoder(name, width, encoder_hash("clip", weights, _vocabulary(clip)), device, read)


def _vocabulary(clip: CLIP) -> object:
    """How its tokenizer reads text: ours by its hash, open_clip's by their tokens."""
    if clip.tokenizer is not None:
        return [clip.tokenizer.hash, clip.caption_tokens]
    tokenizer = clip._open_clip_tokenizer
    tokens = tokenizer.encoder if hasattr(tokenizer, "encoder") else tokenizer.tokenizer.get_vocab()
    return [sorted(tokens, key=tokens.get), clip.caption_tokens]
