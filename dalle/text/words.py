"""The words of captions: text that Unicode can encode, and which words no training caption had."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

from dalle.config import plain_json
from dalle.config.checks import Cause

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that put no spaces between words."""
_SPLIT = pre_tokenizers.Split(
    Regex(rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}]&&[^{_UNSPACED}]]+"), behavior="removed", invert=True
)
LOWER = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
_MOST_WORDS = 100_000
_MOST_TOLD_CHARS = 200
_MOST_NAMED = 8


def clean(text: str) -> str:
    """The text as Unicode can encode it: halves of a surrogate pair that stand together become their character, and each one
    that is alone becomes U+FFFD. JSON and a command line may hold such halves, and no file or tokenizer takes them."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def words(text: str) -> list[str]:
    """The words of a caption, lower-cased. Where a script sets none apart by spaces, each character is one."""
    return [word for word, _ in _SPLIT.pre_tokenize_str(LOWER.normalize_str(clean(text)))]


@dataclass(frozen=True)
class WordCounts:
    """How often each word stood in the captions that a tokenizer learned from.

    counts: by word, of the most frequent ones. fewer_than: all other words stood there fewer times
    """

    counts: dict[str, int]
    fewer_than: int = 1

    @classmethod
    def of(cls, counter: Counter[str]) -> WordCounts:
        ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
        dropped = ordered[_MOST_WORDS:]
        return cls(dict(ordered[:_MOST_WORDS]), 1 + dropped[0][1] if dropped else 1)

    @classmethod
    def load(cls, path: Path, tokenizer_hash: str) -> WordCounts | None:
        """The counts of a tokenizer; None where there are none, or they belong to another. Raises ValueError for a damaged
        file."""
        if not path.is_file():
            return None
        try:
            values = plain_json.read(path)
            counts, fewer_than = dict(values["counts"]), int(values["fewer_than"])
            if not plain_json.is_a(counts, dict[str, int]):
                raise Cause("its counts are no numbers")
            return cls(counts, fewer_than) if values["tokenizer_hash"] == tokenizer_hash else None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} does not hold counts of words ({error!r}): remove it") from None

    def to_json(self, tokenizer_hash: str) -> str:
        values = {"tokenizer_hash": tokenizer_hash, "fewer_than": self.fewer_than, "counts": self.counts}
        return json.dumps(values, indent=2, ensure_ascii=False)

    def unknown(self, captions: Iterable[str]) -> str | None:
        """In words, which words of some captions no caption had that was learned from; None when all were there."""
        new = list(dict.fromkeys(word for caption in captions for word in words(caption) if word not in self.counts))
        if not new:
            return None
        parts = [repr(beginning(word)) for word in new[:_MOST_NAMED]]
        parts += [f"{len(new) - _MOST_NAMED:,} more"] if len(new) > _MOST_NAMED else []
        named = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
        where = "no training caption" if self.fewer_than == 1 else f"fewer than {self.fewer_than:,} training captions"
        return f"{named} {'was' if len(new) == 1 else 'were'} in {where}"


def beginning(text: str) -> str:
    """Of a text in a message, which may have no end."""
    return text if len(text) <= _MOST_TOLD_CHARS else f"{text[:_MOST_TOLD_CHARS]}…"
