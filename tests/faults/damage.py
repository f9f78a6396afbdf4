"""Files that were cut off, or have other bytes somewhere."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        make: writes a sound one, with what belongs to it, into a folder; returns the file
        read: what the program reads of it; given the folder
        proven: it has checksums, so that what is not refused is the same
        tolerant: what is damaged of it counts as not there
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    proven: bool = False
    tolerant: bool = False


JUNK = [
    b"null",
    b"[]",
    b"{}",
    b'"\\ud800"',
    b"1e999",
    b"NaN",
    b"[" * 100_000,
    b"\xff\xfe",
    b"",
    b"9" * 5000,
    b"-1",
    b'"x"',
]


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut off, some bits changed, a piece left out or doubled, or a value of JSON replaced."""
    how, at = chance.randrange(6), chance.randrange(len(data))
    if how == 0:
        return data[:at]
    if how == 1:
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if how == 2:
        return data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at + 8 :]
    if how == 3:
        return data[:at] + data[at + chance.randrange(1, 40) :]
    if how == 4:
        return data[:at] + data[max(0, at - chance.randrange(1, 40)) :]
    places = [i for i in range(len(data)) if data[i] in b':,[{"' and (i + 1 < len(data))][:4000] or [at]
    start = chance.choice(places) + 1
    end = start + next((i for i, c in enumerate(data[start:]) if c in b",]}\n"), 0)
    return data[:start] + chance.choice(JUNK) + data[end:]


def fuzz(folder: Path, name: str, kind: Kind, count: int, seed: int) -> Counter[str]:
    """What became of as many damaged files, in a word each. name: of the file, and what else tells it from others."""
    outcomes: Counter[str] = Counter()
    chance = random.Random(f"{name} {seed}")
    sound = folder / "sound"
    sound.mkdir()
    kind.make(sound)
    place = name.split(" ")[0]
    data = (sound / place).read_bytes()
    shutil.copytree(sound, folder / "first")
    expected = kind.read(folder / "first")
    for number in range(count):
        it = folder / f"damaged-{number}"
        shutil.copytree(sound, it)
        (it / place).write_bytes(_damaged(data, chance))
        try:
            found = kind.read(it)
            assert not kind.proven or found == expected
            outcomes["the same" if found == expected else "read as it is"] += 1
        except ValueError as error:
            outcomes["refused by name"] += 1
            said = str(error)
            assert (it.name in said or Path(place).name in said) and "\n" not in said and len(said) < 1000, said
        shutil.rmtree(it)
    assert kind.tolerant or outcomes["refused by name"] > count / 10
    return outcomes
