"""What a model is on disk: the single models of a folder, by the names of theirs, and the files of each. Nothing else is fetched
from anywhere, and nothing else is given away."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dalle.config import plain_yaml
from dalle.outputs.run_files import WEIGHTS

PARTS = ("prior", "dvae", "clip", "codes-clip")
"""Folders of single models in that of a whole one; the first two make it one that draws."""
STAGE_ONE = "stage_one"
"""The folder of a GAN's stage I, in that of its stage II."""
CARD = "README.md"
ATTRIBUTION = "ATTRIBUTION.md"
PART_FILES = (WEIGHTS, "config.yaml", "tokenizer.json", "tokenizer.words.json")
"""Of a single model; which of them there are depends on what it is."""
MODEL_FILES = (CARD, ATTRIBUTION, *(f"{part}/{name}" for part in PARTS for name in PART_FILES))
"""Of a whole model."""


def parts_of(folder: Path) -> list[str]:
    """The single models that lie finished in a folder."""
    return [part for part in PARTS if (folder / part / WEIGHTS).is_file()]


def model_files(folder: Path) -> list[str]:
    """Those of `MODEL_FILES` that are there, card first."""
    return [name for name in MODEL_FILES if (folder / name).is_file()]


def public_config(path: Path) -> str:
    """The text of a `config.yaml` without places. Raises ValueError as `read_settings`."""
    return plain_yaml.dump(without_places(read_settings(path)))


def read_settings(path: Path) -> dict[str, Any]:
    """What a `config.yaml` says. Raises ValueError, in one line, where it is none."""
    settings = plain_yaml.read(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} cannot be read: it holds no settings; take another copy")
    return settings


def read_text(path: Path) -> str:
    """Of a file. Raises ValueError, with its name, where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} cannot be read: it is not UTF-8; save it as such") from None


def without_places(settings: Any) -> Any:
    """The settings of a training without where things lay on the machine: of each absolute path the last two names stay, which say
    what it was; of a URL what stands before its query, which may hold a key; of a shell command nothing.

    Args:
        settings: what `config.yaml` holds: mappings, lists, text and numbers
    """
    if isinstance(settings, dict):
        return {name: without_places(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [without_places(value) for value in settings]
    if not isinstance(settings, str):
        return settings
    if "pipe:" in settings:
        return "pipe:"
    return " ".join(_without_place(word) for word in re.split(r"(?<!\\) ", settings))


def _without_place(word: str) -> str:
    if "://" in word:
        return re.sub(r"//[^/@]*@", "//", word.split("?")[0])
    return "/".join(word.rstrip("/").split("/")[-2:]).lstrip("/") if word.startswith(("/", "~")) else word
