"""Files that were cut off, or have other bytes somewhere."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.kinds import Kind

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


def outcome(kind: Kind, place: str, folder: Path, expected: Any) -> str:
    """What becomes of a damaged file in its folder, in a word. Fails where it is anything but refused in a line with its name, or
    read. expected: what is read of the sound one."""
    try:
        found = kind.read(folder)
    except ValueError as error:
        said = str(error)
        assert (folder.name in said or Path(place).name in said) and "\n" not in said and len(said) < 1000, said
        return "refused by name"
    assert not kind.proven or found == expected
    return "the same" if found == expected else "read as it is"


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
        outcomes[outcome(kind, place, it, expected)] += 1
        shutil.rmtree(it)
    assert kind.tolerant or outcomes["refused by name"] > count / 10
    return outcomes
