"""What becomes of the samples of image-text shards: each is used, filtered out or broken, and what is not used is counted
by reason, with the first names.

One place for all commands: their readers raise `Filtered` or `Broken`, and put it into `Counts`, whose line is what
every log, report and last line says.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from dalle.config.checks import printable
from dalle.config.plain_json import is_a

_NAMED = 3
"""Samples that are named of each reason."""
_HOPELESS = 20
"""Broken samples in a row at the very start after which waiting for a fraction makes no sense."""


class LeftOut(Exception):
    """A sample that is not used.

    Args:
        reason: in a few words that do not depend on the sample
        detail: what is to be known of this one
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class Filtered(LeftOut):
    """It is left out by a setting."""


class Broken(LeftOut):
    """It cannot be used."""


class OtherFile(LeftOut):
    """No sample at all: a file that is no image and no caption."""


@dataclass
class Reason:
    """How many samples were left out for one reason, and the first of them: their shard, key and detail."""

    count: int = 0
    first: list[tuple[str, str, str]] = field(default_factory=list)

    def named(self) -> str:
        """The first names, shard by shard."""
        by_shard: dict[str, list[str]] = {}
        for shard, key, detail in self.first:
            by_shard.setdefault(shard, []).append(f"{key} ({detail})" if detail else key)
        more = ", …" if self.count > len(self.first) else ""
        return "; ".join(f"{', '.join(keys)} of {shard}" for shard, keys in by_shard.items()) + more


@dataclass
class Counts:
    """What happened to samples: how many were looked at, and which of them were not used, by reason."""

    read: int = 0
    filtered: dict[str, Reason] = field(default_factory=dict)
    broken: dict[str, Reason] = field(default_factory=dict)
    other_files: dict[str, Reason] = field(default_factory=dict)

    @property
    def num_filtered(self) -> int:
        return sum(reason.count for reason in self.filtered.values())

    @property
    def num_broken(self) -> int:
        return sum(reason.count for reason in self.broken.values())

    def left_out(self) -> tuple[dict[str, Reason], ...]:
        """What was filtered out, what is broken, and files of other kinds, each by reason."""
        return self.filtered, self.broken, self.other_files

    def add(self, sample: dict, left_out: LeftOut | None = None) -> None:
        """One more sample, which is used or left out."""
        self.read += not isinstance(left_out, OtherFile)
        if left_out is not None:
            reasons = self._reasons(left_out).setdefault(left_out.reason, Reason())
            reasons.count += 1
            if len(reasons.first) < _NAMED:
                shard, key = place(sample)
                reasons.first.append((printable(shard), printable(key), printable(left_out.detail)))

    def _reasons(self, left_out: LeftOut) -> dict[str, Reason]:
        if isinstance(left_out, OtherFile):
            return self.other_files
        return self.filtered if isinstance(left_out, Filtered) else self.broken

    def take(self, other: Counts) -> None:
        """Those of another as well."""
        if other != Counts():
            total = self + other
            self.read, self.filtered = total.read, total.filtered
            self.broken, self.other_files = total.broken, total.other_files

    def __add__(self, other: Counts) -> Counts:
        total = Counts(self.read + other.read)
        for name in ("filtered", "broken", "other_files"):
            into = getattr(total, name)
            for reason, found in [*getattr(self, name).items(), *getattr(other, name).items()]:
                so_far = into.get(reason, Reason())
                into[reason] = Reason(so_far.count + found.count, (so_far.first + found.first)[:_NAMED])
        return total

    def to_json(self) -> dict:
        """Plain values, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> Counts:
        """What `to_json` made, also after JSON. Raises KeyError, TypeError or AttributeError for anything else."""
        told = [reason for name in ("filtered", "broken", "other_files") for reason in values[name].values()]
        if not is_a([values["read"], *(reason["count"] for reason in told)], list[int]):
            raise TypeError("its counts are no numbers")
        if not is_a([first for reason in told for first in reason["first"]], list[list[str]]):
            raise TypeError("its samples are no names")
        parts = {
            name: {reason: Reason(r["count"], [tuple(f) for f in r["first"]]) for reason, r in values[name].items()}
            for name in ("filtered", "broken", "other_files")
        }
        return cls(values["read"], **parts)

    def line(self) -> str:
        """All of it in one line: "of 200 samples 197 were used, 0 filtered out, 3 broken: 3 × no image: a, b, c of x.tar"."""
        used = self.read - self.num_filtered - self.num_broken
        line = f"of {self.read:,} samples {used:,} were used, {self.num_filtered:,} filtered out, {self.num_broken:,} broken"
        if reasons := told(self.filtered) + told(self.broken):
            line += f" ({'; '.join(reasons)})"
        if self.other_files:
            line += f"; files that are neither images nor captions: {'; '.join(told(self.other_files))}"
        return line

    def check_limit(self, max_bad_fraction: float, at_end: bool = False) -> None:
        """Raises ValueError when too many samples were broken; early on, only when all were."""
        all_broken = self.num_broken == self.read >= (1 if at_end else _HOPELESS)
        enough = _HOPELESS if at_end else 5 * _HOPELESS
        if all_broken or (self.read >= enough and self.num_broken > max_bad_fraction * self.read):
            raise ValueError(
                f"{self.num_broken:,} of {self.read:,} samples cannot be used ({'; '.join(told(self.broken))}); the limit "
                f"is images.max_bad_fraction {max_bad_fraction}: raise it, or mend the data"
            )


def totalled(parts: list[dict[str, Counts]]) -> dict[str, Counts]:
    """The sums of each name's counts, such as those of all ranks."""
    totals: dict[str, Counts] = {}
    for part in parts:
        for name, counts in part.items():
            totals[name] = totals.get(name, Counts()) + counts
    return totals


def told(reasons: dict[str, Reason]) -> list[str]:
    """Each reason with its number and first names, the most frequent first."""
    by_count = sorted(reasons.items(), key=lambda item: -item[1].count)
    return [f"{found.count:,} × {reason}: {found.named()}" for reason, found in by_count]


def place(sample: dict) -> tuple[str, str]:
    """Where a sample lies: its shard and key, which no other sample of the shard has."""
    return str(sample["__url__"]), sample["__key__"]
