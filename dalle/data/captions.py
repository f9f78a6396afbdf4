"""The captions of raw samples, and of text files."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator

from dalle.config import plain_json
from dalle.data.counts import Broken, Counts, Filtered, LeftOut, OtherFile
from dalle.data.naming import check, names
from dalle.data.shards import read

_NAMES = ("caption", "text", "prompt")
"""Under which the json of other people's shards holds captions: the first one is img2dataset's."""
NOT_TEXT = "caption is not text"
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_captions(sample: dict) -> tuple[list[str], dict | None]:
    """The captions of a raw sample, or none: from the first of these that holds any: its json's `captions`, its txt, its
    json's `caption`, `text` or `prompt`, each one caption or a list. And its json's `scene`. Of a list that holds the txt
    that comes first: where one caption stands for all it is the one that every reader of webdataset takes.

    Raises:
        Broken: a caption is there, but none that is text
        Filtered: it is another sample's second image
        OtherFile: it is no sample
    """
    if "__other__" in sample:
        raise OtherFile("a link in the tar" if sample["__other__"] == "link" else "another kind of file")
    if "__twice__" in sample:
        raise Broken("a file is there twice", f".{sample['__twice__']}")
    extra, is_json = json_values(sample)
    is_text = is_json
    captions: list[str] = []
    for found in (extra.get("captions"), _text(sample), *map(extra.get, _NAMES)):
        if captions:
            break
        for caption in found if isinstance(found, list) else [found]:
            if isinstance(caption, str) and is_encodable(caption):
                captions.append(" ".join(caption.removeprefix("\ufeff").split()))
            elif caption is not None:
                is_text = False
        captions = [c for c in captions if c]
    if not captions:
        if not is_text:
            raise Broken(NOT_TEXT, "" if is_json else "its .json is no JSON")
        if "__beside__" in sample:
            raise Filtered("a second image, without a caption of its own", f"beside {sample['__beside__']}")
    captions = _with_first(captions, _text(sample))
    scene = extra.get("scene")
    return captions, scene if isinstance(scene, dict) else None


def concepts(sample: dict, captions: list[str], class_key: str | None) -> tuple[str, ...]:
    """What a sample is about, as texts: two samples are about different things where they have none in common. Its captions, and where
    a class is named in the json, that.

    Args:
        sample: raw
        captions: all of its captions
        class_key: of the json; null goes by captions alone

    Raises:
        ValueError: the json has no such key, or nothing there
    """
    found = {"caption " + caption.casefold() for caption in captions if caption}
    if class_key is not None:
        name = class_name(sample, class_key)
        if name is None:
            raise ValueError(
                f"class_key {class_key}: {sample['__key__']} of {sample['__url__']} has no such key in its json; name one that all "
                "have, or leave it null to tell pairs apart by their captions"
            )
        found.add(f"class {name}")
    return tuple(sorted(found))


def class_name(sample: dict, key: str) -> str | None:
    """What a raw sample's json calls its class, as text, whatever is written there; None where nothing is."""
    value = json_values(sample)[0].get(key.lower())
    if isinstance(value, str):
        return value.strip() or None
    return None if value is None or value in ([], {}) else json.dumps(value, sort_keys=True)


def _with_first(captions: list[str], text: str | bytes | None) -> list[str]:
    """The captions, that of the txt before the others where it is among them."""
    first = " ".join(text.removeprefix("\ufeff").split()) if isinstance(text, str) else None
    return [first, *(c for c in captions if c != first)] if first in captions else captions


def json_values(sample: dict) -> tuple[dict, bool]:
    """What the json of a raw sample holds, by names in small letters, and whether it could be read."""
    if "json" not in sample:
        return {}, True
    try:
        extra = json.loads(sample["json"], object_pairs_hook=plain_json.each_once)
    except (ValueError, RecursionError):
        return {}, False
    return {name.lower(): value for name, value in extra.items()} if isinstance(extra, dict) else {}, True


def _text(sample: dict) -> str | bytes | None:
    """The txt; bytes where it is no text."""
    data = sample.get("txt")
    try:
        return None if data is None else data.decode(encoding(data))
    except UnicodeDecodeError:
        return data


def encoding(data: bytes) -> str:
    """Of text, by the byte order mark, as Windows writes it; UTF-8 without one."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")


def is_encodable(text: str) -> bool:
    """Whether Unicode can encode it: JSON may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_all_captions(spec: str, pipes: bool = False, counts: Counts | None = None) -> Iterator[str]:
    """All captions of shards and of text files (.txt, one caption a line), in order. Samples without one are left out, and
    counted like those that have one. Raises ValueError when a file cannot be read, or none of them has a caption."""
    counts = Counts() if counts is None else counts
    files = names(spec, pipes)
    for name in files:
        if not name.endswith(".txt"):
            check(name)
        elif not os.path.isfile(name):
            raise ValueError(f"no such file: {name}; name one that is there")
    found = False
    for name in files:
        for caption in read_lines(name) if name.endswith(".txt") else _captions(name, counts):
            found = True
            yield caption
    if not found:
        raise ValueError(f"{spec} has no caption{f': {counts.line()}' if counts.read else ''}; name data with captions")


def read_lines(path: str) -> Iterator[str]:
    """The lines of a text file that are not empty, of any byte order mark. Raises ValueError when it is no such text."""
    with open(path, "rb") as file:
        found = encoding(file.read(4))
    try:
        with open(path, encoding=found) as lines:
            yield from filter(None, map(str.strip, lines))
    except UnicodeError as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error
        raise ValueError(f"{path} is not UTF-8 text ({reason}): convert it first") from error


def _captions(shard: str, counts: Counts) -> Iterator[str]:
    for sample in read([shard]):
        try:
            captions = read_captions(sample)[0]
            if not captions:
                raise no_caption(sample)
        except LeftOut as error:
            counts.add(sample, error)
            continue
        counts.add(sample)
        yield from captions


def no_caption(sample: dict) -> Broken:
    """That a sample has none; said so that it helps where it lies elsewhere in the shard."""
    return _missing("caption", sample)


def no_image(sample: dict) -> Broken:
    """The same of its image."""
    return _missing("image", sample)


def _missing(what: str, sample: dict) -> Broken:
    if "__apart__" in sample:
        return Broken(f"no {what} near it in the tar; `tar --sort=name` puts the files of a pair one after the other")
    return Broken(f"no {what}")
