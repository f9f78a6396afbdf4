"""Captions as tokens: BPE (`tokenizer`, with dropout in `merging`), what is read of `captions`, and their `words`."""

from dalle.text.captions import PAD, CaptionWarning, Cuts, caption_tokens, check_captions, pad
from dalle.text.tokenizer import Tokenizer
from dalle.text.words import clean

__all__ = ["PAD", "CaptionWarning", "Cuts", "Tokenizer", "caption_tokens", "check_captions", "clean", "pad"]
