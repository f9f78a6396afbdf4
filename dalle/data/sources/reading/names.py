"""Names of files and folders as captions: `a_red_apple_001.png` is "a red apple"."""

from __future__ import annotations

import os
import re
import unicodedata

_GENERIC = {
    *("img", "image", "images", "imgs", "photo", "photos", "pic", "pics", "picture", "pictures", "dsc", "dscn", "dscf"),
    *(
        "pxl",
        "mvimg",
        "gopr",
        "dji",
        "vid",
        "wp",
        "wa",
        "cam",
        "scan",
        "scans",
        "screenshot",
        "bildschirmfoto",
        "frame",
    ),
    *(
        "frames",
        "untitled",
        "unbenannt",
        "download",
        "downloads",
        "file",
        "files",
        "sample",
        "samples",
        "copy",
        "kopie",
    ),
    *("train", "training", "valid", "validation", "val", "test", "testing", "split", "data", "dataset", "raw", "all"),
    *("new", "folder", "tmp", "temp", "output", "dcim", "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"),
    *("small", "large", "thumb", "thumbs", "thumbnail", "thumbnails", "original", "originals", "resized"),
}
"""Words that say what a file is, and nothing of what is on it."""
_COUNTER = re.compile(r"(\s*\(\d+\)|\s*\[\d+\]|[_\-.]+\d+|[\s_\-]+0\d+|[\s_\-]+copy|[\s_\-]+kopie)$", re.IGNORECASE)
"""At the end of a name, what tells it from others of its kind; a plain number behind a space may belong to it (Apollo 11)."""
_WORD = re.compile(r"[^\W\d_]+")


def caption_of(name: str) -> str | None:
    """What a name without its extension says; null where it is a number, a camera's or a hash."""
    text = unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "replace"))
    while (cut := _COUNTER.sub("", text)) != text:
        text = cut
    separators = r"[_\s]+" if re.search(r"[_\s]", text) else r"[_\s\-+.]+"
    text = " ".join(re.sub(separators, " ", text).split())
    if "\ufffd" in text:
        return None
    pieces = text.split()
    telling = [piece for piece in pieces if _tells(piece)]
    return text if telling and 2 * len(telling) >= sum(len(p) > 1 for p in pieces) else None


def _tells(piece: str) -> bool:
    """Whether it is a word, as far as can be told without a dictionary."""
    words = _WORD.findall(piece)
    letters = "".join(words)
    if not letters or letters.lower() in _GENERIC:
        return False
    if not letters.isascii():  # a letter of Chinese is a word
        return len(letters) >= sum(c.isdigit() for c in piece)
    digits = sum(c.isdigit() for c in piece)
    has_vowel = re.search("[aeiouy]", letters, re.IGNORECASE) is not None
    return len(letters) >= 3 and has_vowel and digits == 0
