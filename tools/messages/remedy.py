"""Where in a message what is wrong ends and what to do about it begins.

A message of this program says both in one line: what is meant (a key with its value, a file), what is wrong with it, and what to
do. The remedy is what is asked for: it begins, behind a colon, a semicolon or a comma, with a verb in the imperative, or with what
a value must be.
"""

from __future__ import annotations

import re

_IMPERATIVES = (
    "add", "allow", "ask", "begin", "bring", "call", "change", "choose", "close", "collect", "come", "continue", "convert", "copy", "delete",
    "download", "draw", "embed", "evaluate", "export", "free", "give", "go", "install", "lay", "leave", "load", "log in", "look", "loosen", "lower",
    "make", "mend", "move", "name", "open", "pip install", "put", "raise", "read", "remove", "repeat", "resize", "run", "save", "say",
    "score", "see", "send", "set", "start", "switch", "take", "train", "try", "type", "unpack", "update", "use", "wait", "write",
)  # fmt: skip
_MUST = (
    "must",
    "it must",
    "they must",
    "both must",
    "neither may",
    "need",
    "needs",
    "allowed are",
    "shipped are",
    "known are",
    "there are",
    "the nearest",
    "both sides must",
    "REMEDY",
)
_BEGIN = re.compile(
    r"(?:[;:,.] (?:or |and |so |where you trust it, |for an? (?:\w+ ){1,2})?`?|\()(?=(?:"
    + "|".join(f"[{word[0]}{word[0].upper()}]{word[1:]}" for word in (*_IMPERATIVES, *_MUST))
    + r")\b)"
)
"""Words in capitals alone are placeholders."""


def parts(message: str) -> tuple[str, str]:
    """What is wrong, and what to do; the latter is empty where a message does not say it."""
    found = _BEGIN.search(message)
    if found is None:
        return message, ""
    what, remedy = message[: found.start()], message[found.start() :]
    if remedy.startswith("("):
        return what.rstrip(), remedy[1:].removesuffix(")")
    return what, remedy.lstrip(";:,. ")
