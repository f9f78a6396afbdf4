"""A folder of tokens that several jobs have made, each in a folder of its own in it: `part-00003-of-00016/` and so on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dalle.data.counts import Counts
from dalle.data.token_files.reading import META, Meta, read_meta
from dalle.outputs.ownership import read_mark

WRITTEN_BY = "dalle-tokenize"
_NAME = re.compile(r"part-(\d{5,})-of-(\d{5,})")


def part_folder(folder: Path, number: int, parts: int) -> Path:
    """Where one of so many parts, counted from 1, has its shards."""
    return folder / f"part-{number:05d}-of-{parts:05d}"


def share_of(files: Sequence[str], number: int, parts: int) -> list[str]:
    """The files of a part: every so many-th. Raises ValueError where there is none for it."""
    if parts > len(files):
        raise ValueError(f"part {number}/{parts}: data has {len(files)} shards; take at most as many parts")
    return list(files[number - 1 :: parts])


def number_of_parts(folder: Path) -> int:
    """Of how many parts a folder holds one, by its name; 0 of another folder."""
    name = _NAME.fullmatch(folder.name)
    return int(name[2]) if name else 0


def find_parts(folder: Path) -> list[Path]:
    """The folders of all parts, in order; [] where there is none.

    Raises:
        ValueError: some are missing or not finished, or they are parts of different wholes
    """
    wholes = sorted({number_of_parts(path) for path in _parts_in(folder)})
    if not wholes:
        return []
    if len(wholes) > 1:
        raise ValueError(
            f"{folder} holds parts of {wholes[0]} and of {wholes[1]}: leave those of one number there, or name another folder"
        )
    (parts,) = wholes
    folders = [part_folder(folder, number, parts) for number in range(1, parts + 1)]
    if missing := [number for number, path in enumerate(folders, 1) if not (path / META).is_file()]:
        more = f", and {len(missing) - 1} more parts" if len(missing) > 1 else ""
        raise ValueError(
            f"{folder} lacks part {missing[0]}/{parts} of its token shards{more}: run dalle-tokenize --part {missing[0]}/{parts} to "
            "its end first"
        )
    return folders


def other_parts(folder: Path) -> list[Path]:
    """The folders beside that of a part; [] of a folder that is none."""
    return [path for path in _parts_in(folder.parent) if path != folder] if number_of_parts(folder) else []


def _parts_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("part-*-of-*") if number_of_parts(path))


def find_shards(folder: Path) -> tuple[Meta, list[Path]]:
    """What lies in a folder of token shards, in one piece or in parts, and the shards' files.

    Raises:
        ValueError: there is none, it is incomplete or damaged, or parts were made with different settings
    """
    folders = [folder] if (folder / META).is_file() else find_parts(folder)
    if not folders:
        raise ValueError(f"{folder} holds no token shards (no {META}): run dalle-tokenize to its end first")
    metas = [read_meta(path / META) for path in folders]
    first, *others = metas
    paths = [
        path / meta.shard_name(number)
        for path, meta in zip(folders, metas, strict=True)
        for number in range(len(meta.shard_sizes))
    ]
    if not others:
        return first, paths
    made = [(_of_codes(meta), read_mark(path, WRITTEN_BY)) for path, meta in zip(folders, metas, strict=True)]
    if differing := [path for path, how in zip(folders, made, strict=True) if how != made[0]]:
        raise ValueError(
            f"{differing[0]} was made with other settings than {folders[0]}; make one of them again with dalle-tokenize --overwrite"
        )
    counts = [meta.counts for meta in metas]
    samples = sum((each for each in counts if each is not None), Counts()).to_json() if None not in counts else {}
    sizes = tuple(itertools.chain.from_iterable(meta.shard_sizes for meta in metas))
    return replace(first, shard_sizes=sizes, samples=samples, making=0), paths


def _of_codes(meta: Meta) -> tuple:
    return meta.grid, meta.codebook_size, meta.dvae_hash, meta.precision
