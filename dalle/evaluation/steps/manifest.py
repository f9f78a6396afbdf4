"""All that decides the figures of an evaluation, so that another machine can make them again and say whether it did."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import dalle
from dalle.config import Evaluate, plain_json
from dalle.config.commands.evaluation.evaluate import PLACES
from dalle.evaluation.layout import Prompted

_PROGRAM = "dalle-evaluate"
_OUTSIDE = ("output", "manifest", "overwrite", "processes")
"""Decide no figure."""
_VERSIONS = (
    "torch",
    "numpy",
    "scipy",
    "pillow",
    "torch-fidelity",
    "torchmetrics",
    "prdc",
    "faiss-cpu",
    "open_clip_torch",
)


def write_manifest(
    config: Evaluate, prompted: list[Prompted], identities: dict[str, Any], figures: dict[str, Any]
) -> str:
    """The manifest as JSON.

    Args:
        config: what was asked for
        prompted: the captions
        identities: hashes of models, feature networks and data, by name
        figures: what was found
    """
    request = {name: value for name, value in asdict(config).items() if name not in _OUTSIDE}
    content = {
        "program": _PROGRAM,
        "version": dalle.__version__,
        "request": request,
        "captions": [each.metadata for each in prompted],
        "identities": identities,
        "versions": _versions(),
        "machine": machine(),
        "figures": figures,
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """A manifest that was written before, and under "path" where it lies.

    Raises:
        ValueError: the file is missing, damaged, or no manifest
    """
    try:
        content = plain_json.read(Path(path))
    except OSError as error:
        raise ValueError(f"manifest {path}: {error.strerror}; name one of dalle-evaluate") from None
    except ValueError:
        raise ValueError(f"manifest {path}: is damaged, or no JSON; name one of dalle-evaluate") from None
    parts = {"request": dict, "captions": list, "identities": dict, "machine": dict, "figures": dict}
    if not isinstance(content, dict) or content.get("program") != _PROGRAM:
        raise ValueError(f"manifest {path}: is none of {_PROGRAM}; name one")
    for name, kind in parts.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"manifest {path}: is damaged: it has no {name}; take a whole copy")
    if not isinstance(content.get("versions", {}), dict):
        raise ValueError(f"manifest {path}: is damaged: its versions are none; take a whole copy")
    if not content["captions"]:
        raise ValueError(f"manifest {path}: is damaged: it has no captions; take a whole copy")
    if not all(isinstance(each, dict) and isinstance(each.get("prompt"), str) for each in content["captions"]):
        raise ValueError(f"manifest {path}: is damaged: one of its captions has no prompt; take a whole copy")
    return {**content, "path": str(path)}


def settings_of(manifest: dict[str, Any], given: Evaluate, parse: Callable[[dict[str, Any]], Evaluate]) -> Evaluate:
    """What a manifest asks for, with the places that are given beside it.

    Args:
        manifest: from `read_manifest`
        given: the settings beside it
        parse: makes settings of plain values

    Raises:
        ValueError: it asks for something that this version does not know, or that cannot be
    """
    config = parse({**manifest["request"], "output": given.output})
    defaults = {option.name: option.default for option in fields(Evaluate)}
    told = {name: getattr(given, name) for name in PLACES if getattr(given, name) != defaults[name]}
    return replace(config, **{**told, "manifest": None})


def check_identities(manifest: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to repeat an evaluation with something else.

    Raises:
        ValueError: a hash is another one; both are shown
    """
    then, here = dict(_flat(manifest["identities"])), dict(_flat(now))
    for name in sorted((then | here).keys() - {"samples"}):
        if then.get(name) != here.get(name):
            told = f"{str(then.get(name))[:16]} there, {str(here.get(name))[:16]} here"
            raise ValueError(
                f"manifest {manifest['path']}: was made with another {name} ({told}); "
                "name what it was made with, or leave --manifest out"
            )


def other_samples(manifest: dict[str, Any], pixels: str) -> list[str]:
    """In words, that the samples are not those of the manifest; none where they are."""
    then = manifest["identities"].get("samples")
    return [] if then == pixels else [f"samples have other pixels: {str(then)[:16]} then, {pixels[:16]} now"]


def machine() -> dict[str, Any]:
    """What decides the last bits of a sum."""
    if torch.cuda.is_available():
        return {"device": "cuda", "processor": torch.cuda.get_device_name(), "threads": torch.get_num_threads()}
    return {"device": "cpu", "processor": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def other_machine(manifest: dict[str, Any]) -> list[str]:
    """In words, what of this machine and its libraries is not as it was; sums may then round otherwise, and a drawing whose
    codes are close to one another may come out as another one."""
    then = {**manifest["machine"], **manifest.get("versions", {})}
    now = {**machine(), **_versions()}
    return [f"{name} {then[name]} then, {now.get(name)} now" for name in then if then[name] != now.get(name)]


def differing(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Which figures are not the same to the last digit, by name, with both values."""
    before, after = dict(_flat(then)), dict(_flat(now))
    return [
        f"{name} {before.get(name)} then, {after.get(name)} now"
        for name in sorted(before | after)
        if not _same(before.get(name), after.get(name))
    ]


def _same(one: Any, other: Any) -> bool:
    both_nan = all(isinstance(value, float) and math.isnan(value) for value in (one, other))
    return both_nan or one == other


def _flat(values: dict[str, Any] | list[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _versions() -> dict[str, str | None]:
    return {"dalle": dalle.__version__, **{name: _version(name) for name in _VERSIONS}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
