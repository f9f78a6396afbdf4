"""What kind of source a path is, and its images. The same files are always taken for the same kind, and why is said."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dalle.data.images import EXTENSIONS
from dalle.data.naming import expand
from dalle.data.shards import read
from dalle.data.sources.reading.folder import Survey, every_path, file_items, name_items, survey
from dalle.data.sources.reading.item import Item
from dalle.data.sources.reading.table import MAYBE_TABLES, find_columns, is_table, table_files, table_items
from dalle.data.sources.reading.walk import fingerprint

_NAMES_SHARE = 0.8
"""Of the images whose names have to be captions before names are taken for captions."""
_NEEDED = (
    "give them in a NAME.txt or NAME.json beside NAME.jpg, in a table (.csv, .tsv, .json, .jsonl, .parquet) with a "
    "column of files and one of captions, or as names of files or folders such as 'a red apple.jpg'"
)


_ARCHIVES = {"zip", "rar", "7z"}


@dataclass(frozen=True)
class Choice:
    """What a user said about where captions are; null looks.

    Args:
        captions: "files", "table", "names" or "folders"
        image_column, caption_column: of tables
    """

    captions: str | None = None
    image_column: str | None = None
    caption_column: str | None = None


@dataclass(frozen=True)
class Source:
    """A source that was recognised.

    Args:
        kind: in words
        notes: sentences: why it was taken for this kind, and what else it could have been
        items: its images, the same each time
        paths: all files that it consists of
        root: below which they lie
        num_images: in the folder, where a table names some of them
    """

    kind: str
    notes: list[str]
    items: Callable[[], Iterator[Item]]
    paths: Callable[[], Iterator[Path]]
    root: Path
    num_images: int | None = None

    def fingerprint(self) -> dict[str, int | str]:
        """By which a source is known again that was not changed."""
        return fingerprint(self.paths(), self.root)


def detect(source: str, output: Path | None = None, choice: Choice = Choice()) -> Source:
    """Look at a source.

    Args:
        source: a folder, a table, or shards as `dalle.data.naming` names them
        output: a folder that is not read where it lies in the source
        choice: of the user

    Raises:
        ValueError: it holds no captioned images, or it cannot be told which captions are meant; one line that says what was
            found and what to do
    """
    path = Path(source)
    is_file = os.path.isfile(source)
    if source.startswith("pipe:"):
        raise ValueError(f"source {source}: is a command, and none is run here: save what it writes as .tar files")
    if os.path.isdir(source):
        try:
            os.listdir(path)
        except OSError as error:
            raise ValueError(f"source {source}: cannot be read: {error.strerror}; see that it may be read") from None
        return _folder(path, output, choice)
    if is_file and (is_table(path.name) or path.suffix.lower().strip(".") in MAYBE_TABLES):
        return _tables(path.parent, [path], choice, f"{path.name} was given", is_given=True)
    if is_file and path.suffix.lower().strip(".") in _ARCHIVES:
        raise ValueError(f"source {source}: is an archive: unpack it, and give the folder")
    if not os.path.lexists(path) and not re.search(r"\.(tar|tgz|tar\.gz)\b|[*{]|://", source):
        raise ValueError(f"source {source}: there is no such file or folder; name one that is there")
    if is_file and not re.search(r"\.(tar|tgz|tar\.gz)$", path.name.lower()):
        raise ValueError(f"source {source}: must be a folder, a table (.csv, .tsv, .json, .jsonl, .parquet) or a .tar")
    return _shards(Path(), expand(source), "shards were given")


def _shards(root: Path, shards: list[str], why: str) -> Source:
    def items() -> Iterator[Item]:
        for sample in read(shards):
            files = {name: held for name, held in sample.items() if name not in ("__key__", "__url__")}
            yield Item(sample["__url__"], sample["__key__"], files)

    kind = "webdataset shards" if len(shards) > 1 else "a webdataset shard"
    return Source(kind, [f"Taken for {kind}, since {why}."], items, lambda: map(Path, shards), root)


def _tables(root: Path, paths: list[Path], choice: Choice, why: str, is_given: bool = False) -> Source:
    tables = [(path, find_columns(path, choice.image_column, choice.caption_column)) for path in paths]
    kinds = {path.suffix.lower().strip(".").upper().replace("PARQUET", "Parquet") for path in paths}
    number = "a table" if len(paths) == 1 else f"{len(paths)} tables"
    kind = f"{number} ({', '.join(sorted(kinds))}) of images and captions"
    columns = tables[0][1]
    notes = [f"Taken for {kind}, since {why}."]
    if columns.has_header:
        notes.append(f"Column {columns.image} names the images, column {columns.caption} has the captions.")
    else:
        notes.append("It has no header: the first column names the images, the second has the captions.")
    if columns.others:
        notes.append(
            f"Captions could also be those of {', '.join(columns.others)}: --caption_column chooses another column."
        )

    def items() -> Iterator[Item]:
        for path, found in tables:
            yield from table_items(path, found, None if is_given else root)

    def files() -> Iterator[Path]:
        for path, found in tables:
            yield path
            yield from table_files(path, found)

    return Source(kind, notes, items, files, root)


def _folder(root: Path, output: Path | None, choice: Choice) -> Source:
    found = survey(root, output)
    paths = lambda: every_path(root, output)  # noqa: E731
    tables, wrong = _usable_tables(root, found, choice)
    wanted = choice.captions
    if wanted in (None, "table") and found.shards and not found.images:
        return _shards(root, [str(root / name) for name in found.shards], f"it holds {_files(found.shards)}")
    if found.shards and wanted is None:
        raise ValueError(
            f"source {root}: holds {_files(found.shards)} and also {found.images:,} images: say which are meant: give "
            f"'{root}/*.tar' as the source, or --captions files, names or folders for the images"
        )
    if wanted == "table" or (wanted is None and tables):
        if not tables:
            raise ValueError(
                wrong
                or f"source {root}: holds no table (.csv, .tsv, .json, .jsonl, .parquet); put one there, or name it"
            )
        source = _tables(root, _one_table(root, tables, choice), choice, f"it holds {_files(tables)}")
        if found.with_txt or found.json_captions:
            source.notes.append(
                "There are also .txt or .json files beside images, which are not read: --captions files takes them instead."
            )
        return Source(source.kind, source.notes, source.items, paths, root, found.images)
    if not found.images:
        raise ValueError(wrong or _without_images(root, found))
    kind, why, items = _of_images(root, output, found, wanted, wrong)
    notes = [f"Taken for {kind}, since {why}."]
    if found.lone:
        notes.append(f"Files (.txt, .json) that are beside no image, and are not read: {found.lone:,}.")
    if found.others:
        notes.append(f"Files of other kinds, which are not read: {_others(found)}.")
    return Source(kind, notes, items, paths, root)


def _others(found: Survey) -> str:
    most = sorted(found.others.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{number:,} {'.' + e if e else 'without an extension'}" for e, number in most[:3]]
    return ", ".join(told) + (", …" if len(most) > 3 else "")


def _of_images(
    root: Path, output: Path | None, found: Survey, wanted: str | None, wrong: str
) -> tuple[str, str, Callable[[], Iterator[Item]]]:
    """Images without a table."""
    json = found.with_json if found.json_captions else 0
    if wanted == "files" or (wanted is None and found.with_txt + json):
        kinds = tuple(kind for kind, number in (("txt", found.with_txt), ("json", found.with_json)) if number)
        if not found.with_txt + json:
            raise ValueError(
                f"source {root}: no image has a .txt or .json with a caption beside it; put them there, or leave --captions files out"
            )
        told = " and ".join(f".{kind}" for kind, number in (("txt", found.with_txt), ("json", json)) if number)
        why = f"{max(found.with_txt, json):,} of its {found.images:,} images have such a file beside them"
        if found.with_txt and json:
            why += "; where a .json holds a list of captions it goes before the .txt, otherwise the .txt does"
        return f"a folder of images with {told} files", why, lambda: file_items(root, output, kinds)
    many_names = found.named >= _NAMES_SHARE * found.images
    by_folders = len(found.folder_names) >= 2 and found.in_folders >= _NAMES_SHARE * found.images
    if wanted == "names" or (wanted is None and many_names):
        why = f"{found.named:,} of {found.images:,} names say something"
        if wanted is None and by_folders:
            why += "; those of their folders are taken with --captions folders"
        return "images whose names are the captions", why, lambda: name_items(root, output, False)
    if wanted == "folders" or (wanted is None and by_folders):
        why = f"they lie in {len(found.folder_names):,} folders with names that say something"
        if wanted is None and found.named:
            why += "; their own names are taken with --captions names"
        return "images whose folders are the captions", why, lambda: name_items(root, output, True)
    raise ValueError(wrong or f"source {root}: {found.images:,} images, and no captions: {_NEEDED}")


def _usable_tables(root: Path, found: Survey, choice: Choice) -> tuple[list[str], str]:
    """Tables that name images and captions; and why the last of the others does not."""
    usable, wrong = [], ""
    of_shards = {name.rpartition(".")[0] for name in found.shards}
    for name in found.tables:
        stem = name.rpartition(".")[0]
        is_metadata = name.endswith(".parquet") and (stem in of_shards or (root / stem).is_dir())
        if is_metadata and os.path.basename(stem).isdigit():  # img2dataset's, beside the files that it is about
            continue
        try:
            find_columns(root / name, choice.image_column, choice.caption_column)
        except ValueError as error:
            wrong = str(error)
        else:
            usable.append(name)
    return usable, wrong


def _one_table(root: Path, tables: list[str], choice: Choice) -> list[Path]:
    """One table, or several that belong together: `metadata.csv` of several folders, or Parquet files of one form."""
    paths = [root / name for name in tables]
    metadata = [path for path in paths if path.stem.lower() == "metadata"]
    if metadata and len({path.parent for path in metadata}) == len(metadata):
        return metadata
    if len(paths) == 1:
        return paths
    chosen = choice.image_column, choice.caption_column
    if all(path.suffix.lower() == ".parquet" for path in paths) and len({find_columns(p, *chosen) for p in paths}) == 1:
        return paths
    raise ValueError(
        f"source {root}: {tables[0]} and {tables[1]} both name images and captions: give the one that is meant as the "
        f"source, for example {paths[0]}"
    )


def _files(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def _without_images(root: Path, found: Survey) -> str:
    captions = found.lone + len(found.tables)
    told = _others(found)
    if captions:
        return (
            f"source {root}: {captions:,} files that may hold captions, and no images (.{', .'.join(EXTENSIONS)}): put the "
            "images beside them"
        )
    line = f"source {root}: no images (.{', .'.join(EXTENSIONS)})"
    if told:
        line += f"; it holds files of other kinds: {told}"
    return line + (": unpack the archives" if found.others.keys() & _ARCHIVES else "; name a folder of images")
