"""A drawing made once more from its file and the models alone.

The bits of an image are decided by its seed and settings, by the models, and by how a machine rounds: its kind of
processor, on a CPU the number of threads, and PyTorch's version. All of it is in the metadata.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle.config import Sampling, shape
from dalle.config.checks import Cause, out_of_memory, printable
from dalle.sampling.candidates import Source
from dalle.sampling.drawing import Drawing, read_drawing
from dalle.sampling.prompt import Prompt

_NEEDED = (
    "chunk",
    "place",
    "precision",
    "captions_together",
    "models",
    "device",
    "processor",
    "torch",
    "kernels",
    "compile",
)

_MOST_TOGETHER, _MOST_THREADS = 4096, 1024
"""Captions that were drawn together, and threads: of more, no drawing was ever made."""


_BESIDE = ("codes", "clip", "codes_clip")
"""Hashes that decide no pixel."""


def read_record(path: str | Path, hashes: dict[str, str]) -> Drawing:
    """The drawing of a file, if these models can make it again.

    Args:
        path: a PNG of ours
        hashes: of the models that draw, by name

    Raises:
        ValueError: no PNG of ours, one of an earlier version, or one of other models, with both hashes
    """
    drawing = read_drawing(path)
    missing = [name for name in _NEEDED if name not in drawing.settings]
    if missing:
        raise ValueError(
            f"{path}: does not say its {', '.join(missing)}: it was drawn by another version of this program; draw it with that one"
        )
    for name, found in hashes.items():
        drawn_with = drawing.settings["models"].get(name)
        if drawn_with != found and name not in _BESIDE:
            shown = f"{printable(str(drawn_with))[:16]}…" if drawn_with else "an unknown one"
            raise ValueError(
                f"{path}: was drawn with another {name}: expected {shown}, found {found[:16]}…; draw it with that one"
            )
    _check_settings(path, drawing.settings)
    return drawing


def _check_settings(path: str | Path, settings: dict[str, Any]) -> None:
    """Raises ValueError, with the file's name, where what decides the pixels is of another type, or no number that could have been."""
    known = {field.name: settings[field.name] for field in fields(Sampling) if field.name in settings}
    try:
        shape.check_values(Sampling, known)
        for name, value in known.items():
            if isinstance(value, str) and name != "precision":  # which a configuration may put in quotes
                raise Cause(f"{name} {shape.shown(value)}: is text")
        Sampling(**known)
        if not isinstance(settings["chunk"], int):
            raise Cause("chunk is none")
        for name, least, most in (
            ("place", 0, settings["chunk"] - 1),
            ("captions_together", 1, _MOST_TOGETHER),
            ("threads", 1, _MOST_THREADS),
        ):
            value = settings.get(name, least)
            if type(value) is not int or not least <= value <= most:
                raise Cause(f"{name} {shape.shown(value)}: must lie between {least} and {most}")
        for name in ("device", "processor", "torch", "kernels"):
            if not isinstance(settings[name], str):
                raise Cause(f"{name} {shape.shown(settings[name])}: must be text")
    except ValueError as error:
        raise ValueError(f"{path}: its metadata are damaged: {error}; take another copy") from None


def choose_device(settings: dict[str, Any]) -> str:
    """The kind of device that it was drawn on, where there is one here."""
    return "cuda" if settings["device"] == "cuda" and torch.cuda.is_available() else "cpu"


def differences(settings: dict[str, Any], device: str, kernels: str) -> list[str]:
    """What is not as it was and may round otherwise, in words. kernels: what would compute here between matrix products."""
    on_cuda = device == "cuda"
    processor = torch.cuda.get_device_name() if on_cuda else torch.backends.cpu.get_cpu_capability()
    here = {"device": device, "processor": processor, "torch": str(torch.__version__), "kernels": kernels}
    return [f"{name} was {printable(settings[name])}, is {now}" for name, now in here.items() if settings[name] != now]


def draw_again(pipeline: Source, drawing: Drawing) -> Drawing:
    """The drawing of these metadata, in the very chunk that it was drawn in, at its own place.

    Captions that were drawn together were different ones; here the same one stands for all of them, for a row of the
    batch does not depend on the others.

    Raises:
        ValueError: the metadata are damaged, or there is no memory for its chunk
    """
    settings = drawing.settings
    known = {field.name: settings[field.name] for field in fields(Sampling) if field.name in settings}
    try:
        sampling = Sampling(**known)
        prompt = Prompt.from_json(settings["given"]) if "given" in settings else None
        captions, place = [drawing.caption] * settings["captions_together"], settings["place"]
        first_seed = drawing.seed - place
        if prompt is not None:
            pipeline.check_prompt(prompt)
        if not captions or not 0 <= place < sampling.chunk:
            raise Cause("its place in the chunk is not in the chunk")
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata are damaged: {error}; take another copy") from None
    threads = torch.get_num_threads()
    try:
        if pipeline.device.type == "cpu":
            torch.set_num_threads(int(settings.get("threads", threads)))
        chunk = pipeline.chunk(pipeline.read(captions), first_seed, sampling, prompt)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ValueError(
            f"out of memory with {sampling.chunk} candidates at a time, with which it was drawn: another width would draw "
            "other bits; free memory, or take a larger machine"
        ) from None
    finally:
        torch.set_num_threads(threads)
    again = chunk.drawing(0, place, drawing.rank)
    return replace(again, score=drawing.score, times=drawing.times)


def count_differing_pixels(one: Drawing, other: Drawing) -> int:
    """Pixels that are not the same in both; all of them where the sizes differ."""
    if one.picture.size != other.picture.size:
        return max(d.picture.width * d.picture.height for d in (one, other))
    return int((np.asarray(one.picture) != np.asarray(other.picture)).any(axis=-1).sum())
