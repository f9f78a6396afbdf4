"""Byte-pair encoding of captions (section 2.2 of the paper).

Text is lower-cased. Runs of letters are words, and merges happen inside words alone: digits, punctuation and spaces
never merge. Characters are spelled in UTF-8 bytes, so no text is out of vocabulary and decoding gives back the
lower-cased text. Training, encoding and the file format are Hugging Face `tokenizers`; BPE dropout is our own, since
the library's draws from a generator that cannot be seeded, and a resumed training has to see the same tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

PAD = -1
"""Fills a caption up to a fixed length. No token: the prior has a pad embedding for each position."""

_WORDS = Regex(r"[\p{L}\p{M}]+|[^\p{L}\p{M}]")


class Tokenizer:
    """A trained BPE vocabulary.

    Args:
        backend: a `tokenizers.Tokenizer` whose model is BPE; use `train` or `load` to get one
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend
        model = json.loads(backend.to_str())["model"]
        if model["type"] != "BPE":
            raise ValueError(f"the tokenizer's model is {model['type']}; a BPE model is needed")
        self._ids: dict[str, int] = model["vocab"]
        pairs = (tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"])
        self._ranks: dict[tuple[str, str], int] = {pair: rank for rank, pair in enumerate(pairs)}

    @classmethod
    def train(cls, captions: Iterable[str], vocabulary: int = 16384, min_count: int = 2) -> Tokenizer:
        """Learn merges from captions.

        Args:
            captions: the text, one caption each
            vocabulary: largest number of tokens, at least 256 (the bytes)
            min_count: pairs seen less often are not merged
        """
        if vocabulary < 256:
            raise ValueError(f"vocabulary {vocabulary}: must be at least 256, the number of bytes")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(_WORDS, behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=min_count,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(captions, trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer file. Raises ValueError when it is missing or no BPE tokenizer."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no such tokenizer file: {path}")
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer file: {error}") from error
        return cls(backend)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")  # hidden, and no other process's
        temporary.write_text(self.to_json(), encoding="utf-8")
        os.replace(temporary, path)

    def to_json(self) -> str:
        """The content of the tokenizer file."""
        return self._backend.to_str(pretty=True)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self._backend.get_vocab_size()

    @property
    def hash(self) -> str:
        """SHA-256 of the content (not of the file's formatting), as 64 hex digits."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of a caption, without dropout."""
        return self._backend.encode(text).ids

    def encode_with_dropout(self, text: str, dropout: float, generator: np.random.Generator) -> list[int]:
        """Token ids of a caption where every possible merge is skipped with probability `dropout` at each step
        (Provilkov et al., 2019).

        Args:
            text: the caption
            dropout: probability in [0, 1)
            generator: source of the randomness; the same state gives the same tokens
        """
        if dropout == 0:
            return self.encode(text)
        normal = self._backend.normalizer.normalize_str(text)
        words = self._backend.pre_tokenizer.pre_tokenize_str(normal)
        return [self._ids[symbol] for word, _ in words for symbol in self._merge(word, dropout, generator)]

    def _merge(self, word: str, dropout: float, generator: np.random.Generator) -> list[str]:
        symbols = list(word)
        while len(symbols) > 1:
            ranks = [self._ranks.get(pair) for pair in itertools.pairwise(symbols)]
            draws = generator.random(len(ranks))
            kept = [(r, i) for i, r in enumerate(ranks) if r is not None and draws[i] >= dropout]
            if not kept:
                break
            _, at = min(kept)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return symbols

    def decode(self, ids: Sequence[int]) -> str:
        """The lower-cased text of token ids; pads are left out."""
        return self._backend.decode([int(i) for i in ids if i >= 0], skip_special_tokens=False)


def pad(ids: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Captions cut and filled with `PAD` to one length: int64 [B, length]."""
    padded = np.full((len(ids), length), PAD, dtype=np.int64)
    for row, caption in zip(padded, ids, strict=True):
        caption = caption[:length]
        row[: len(caption)] = caption
    return padded
