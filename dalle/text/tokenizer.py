"""Byte-pair encoding of captions (section 2.2 of the paper).

Text is lower-cased. Runs of letters are words, and merges happen inside words alone: digits, punctuation and spaces
never merge. Characters are spelled in UTF-8 bytes, so no text is out of vocabulary and decoding gives back the
lower-cased text. Training, encoding and the file format are Hugging Face `tokenizers`; BPE dropout is our own, since
the library's draws from a generator that cannot be seeded, and a resumed training has to see the same tokens.

Both read a caption in one way, whole and as nothing but text: what else a tokenizer file may ask for (truncation, padding,
special tokens, dropout) is left aside, and a vocabulary that the two would read differently is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from dalle.config import plain_json
from dalle.config.checks import Cause, printable
from dalle.outputs.whole import replace_bytes
from dalle.text.merging import merge
from dalle.text.words import LOWER, WordCounts, clean, words

_WORDS = Regex(r"[\p{L}\p{M}]+|[^\p{L}\p{M}]")


def counts_file(path: str | Path) -> Path:
    """Where the counts of words of a tokenizer file lie: beside it."""
    return Path(path).with_name(Path(path).stem + ".words.json")


class Tokenizer:
    """A trained BPE vocabulary.

    Args:
        backend: a `tokenizers.Tokenizer` whose model is BPE over bytes; use `train` or `load` to get one
        words: those of the captions that it learned from, where they are known

    Raises:
        ValueError: training and sampling would read a caption differently with it; says why
    """

    def __init__(self, backend: tokenizers.Tokenizer, words: WordCounts | None = None):
        if misfit := _misnumbered(backend.get_vocab()):
            raise Cause(misfit)
        self._content, self.words = backend.to_str(), words
        content = json.loads(self._content)
        model = content["model"]
        if misfit := _misfit(content):
            raise Cause(misfit)
        # of what it says about its use nothing but how text becomes words
        content |= {"truncation": None, "padding": None, "post_processor": None, "added_tokens": []}
        content["model"] = model | {"dropout": None}
        self._backend = _of_library(json.dumps(content), content)
        self._backend.decoder = decoders.ByteLevel()
        self._ids: dict[str, int] = model["vocab"]
        self.vocabulary = 1 + max(backend.get_vocab().values())
        """Number of tokens: ids are below it."""
        pairs: Iterable[Any] = (tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"])
        self._ranks: dict[tuple[str, str], int] = {pair: rank for rank, pair in enumerate(pairs)}

    @classmethod
    def train(cls, captions: Iterable[str], vocabulary: int = 16384, min_count: int = 2) -> Tokenizer:
        """Learn merges from captions, and count their words.

        Args:
            captions: the text, one caption each
            vocabulary: largest number of tokens, at least 256 (the bytes)
            min_count: pairs seen less often are not merged
        """
        if vocabulary < 256:
            raise ValueError(f"vocabulary {vocabulary}: must be at least 256, the number of bytes")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.normalizer = LOWER
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
        counter: Counter[str] = Counter()

        def counted() -> Iterator[str]:
            for caption in captions:
                counter.update(words(caption))
                yield clean(caption)

        backend.train_from_iterator(counted(), trainer)
        return cls(backend, WordCounts.of(counter))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer file, and the counts of words beside it where they are there and its own. Raises ValueError when it
        is missing, or no tokenizer of this kind."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no such tokenizer file: {path}; train one with dalle-train-tokenizer")
        try:
            text = path.read_text(encoding="utf-8")
            content = plain_json.load(text, "its JSON")
        except (OSError, ValueError) as error:
            what = error.what if isinstance(error, plain_json.Damaged) else error
            raise ValueError(f"{path} is not a tokenizer file: {what}; train one with dalle-train-tokenizer") from None
        try:
            tokenizer = cls(_of_library(text, content))
        except ValueError as error:
            raise ValueError(f"the tokenizer {path}: {error}") from None
        tokenizer.words = WordCounts.load(counts_file(path), tokenizer.hash)
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Write the tokenizer file and the counts of words beside it, each whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, text in self.files(path.name).items():
            replace_bytes(path.with_name(name), text.encode())

    def to_json(self) -> str:
        """The content of the tokenizer file."""
        return json.dumps(json.loads(self._content), indent=2, ensure_ascii=False)

    def files(self, name: str = "tokenizer.json") -> dict[str, str]:
        """What is to be written, by file name. The counts of words have a file of their own, since the library refuses a
        tokenizer file with more in it than it knows."""
        if self.words is None:
            return {name: self.to_json()}
        return {name: self.to_json(), counts_file(name).name: self.words.to_json(self.hash)}

    @property
    def hash(self) -> str:
        """SHA-256 of the content (not of the file's formatting, nor of the counts of words), as 64 hex digits."""
        return hashlib.sha256(self._content.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of a caption, without dropout."""
        return self._backend.encode(clean(text)).ids

    def encode_with_dropout(self, text: str, dropout: float, generator: np.random.Generator) -> list[int]:
        """Token ids of a caption where every possible merge is skipped with probability `dropout` at each step
        (Provilkov et al., 2019).

        Args:
            text: the caption
            dropout: probability in [0, 1)
            generator: source of the randomness, NumPy's default one; the same state gives the same tokens
        """
        if dropout == 0:
            return self.encode(text)
        normal, normalizer = clean(text), self._backend.normalizer
        if normalizer is not None:
            normal = normalizer.normalize_str(normal)
        pieces = self._backend.pre_tokenizer.pre_tokenize_str(normal)
        return [self._ids[symbol] for word, _ in pieces for symbol in merge(word, self._ranks, dropout, generator)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, lower-cased; pads are left out."""
        return self._backend.decode([int(i) for i in ids if i >= 0], skip_special_tokens=False)


def _of_library(text: str, content: Any) -> tokenizers.Tokenizer:
    """The library's tokenizer of JSON and what that says; the only place where one is made of what may be damaged. Raises ValueError
    for whatever the library has against it: it raises bare Exception, and its Rust panics with what is no Exception."""
    model = content.get("model") if isinstance(content, dict) else None
    if isinstance(model, dict) and (marked := _marked(model)):  # at some of them it panics, and prints that itself
        raise Cause(f"{marked}; train one with dalle-train-tokenizer")
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        what = printable(" ".join(str(error).split())[:200])
        raise Cause(
            f"it is not a tokenizer file, says its library ({what}); train one with dalle-train-tokenizer"
        ) from None


def _misnumbered(ids: dict[str, int]) -> str | None:
    """What is wrong with the ids of all tokens, in words."""
    if sorted(ids.values()) == list(range(len(ids))):
        return None
    return f"its {len(ids):,} tokens do not have the ids 0 to {len(ids) - 1:,}, each once; train one with dalle-train-tokenizer"


def _marked(model: dict) -> str | None:
    """Which mark of their place in the word its tokens bear, in words."""
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if mark := model.get(name):
            return f"its tokens bear a mark of their place in the word ({name} {ascii(mark)[:60]})"
    return None


def _misfit(content: dict) -> str | None:
    """Why training and sampling would read captions differently with a tokenizer file and what to do about it, or None where
    they would not."""
    # a prior may have been trained on what these left of its captions: which of the two ways is meant nobody can tell
    for name, off in (("truncation", "no_truncation"), ("padding", "no_padding")):
        if content[name]:
            return (
                f"it has {name} switched on, but captions are read whole and cut by the prior alone: switch it off with "
                f"tokenizers.Tokenizer.from_file(…).{off}(), and save it again"
            )
    told = _unlike(content["model"], content["pre_tokenizer"] or {})
    return told and f"{told}; train one with dalle-train-tokenizer"


def _unlike(model: dict, splitting: dict) -> str | None:
    """What of a vocabulary is not as BPE over bytes has it."""
    if model["type"] != "BPE":
        return f"its model is {model['type']}, and BPE is needed"
    if marked := _marked(model):
        return marked
    if model.get("ignore_merges"):
        return "it takes some words without merging (ignore_merges), so that dropout would have nothing to skip"
    if (splitting.get("pretokenizers") or [splitting])[-1].get("type") != "ByteLevel":
        return "it does not spell words in bytes (its pre-tokenizer does not end in ByteLevel)"
    if missing := set(pre_tokenizers.ByteLevel.alphabet()) - model["vocab"].keys():
        return f"{len(missing)} of the 256 bytes are no tokens of it, and a caption would lose what they spell"
    return None
