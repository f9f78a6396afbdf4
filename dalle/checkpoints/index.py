"""What a checkpoint's index has to say, whoever wrote it: all its tensors, each once, in files beside it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from typing import Any

from dalle.checkpoints.rank_file import DTYPES
from dalle.config import plain_json
from dalle.config.checks import Cause

_KINDS = {
    "step": int,
    "values": dict[str, Any],
    "tensors": dict[str, dict[str, Any]],
    "files": dict[str, dict[str, Any]],
}


def checked(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors' shapes by name. Raises ValueError, KeyError or TypeError where the index is not what was written."""
    if state_hash(state) != state.get("sha256"):
        raise Cause("its hash is not the one it was written with")
    for name, kind in _KINDS.items():
        if not plain_json.is_a(state.get(name), kind):
            raise Cause(f"{name} is missing, or of another kind")
    if wrong := [file for file in state["files"] if not re.fullmatch(r"rank-\d+\.safetensors", file)]:
        raise Cause(f"it names the file {wrong[0]!a}, which is of another place")
    shapes = {name: tuple(tensor["shape"]) for name, tensor in state["tensors"].items()}
    for name, tensor in state["tensors"].items():
        check_parts(name, shapes[name], tensor["parts"])
        if tensor["dtype"] not in DTYPES or any(part[0] not in state["files"] for part in tensor["parts"]):
            raise Cause(f"{name} is of no known dtype or in no known file")
    return shapes


def state_hash(state: dict[str, Any]) -> str:
    """Of all that an index says but this."""
    content = {name: value for name, value in state.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_parts(name: str, shape: Iterable[int], parts: list) -> None:
    """Raises ValueError unless the parts, in order, cover the flattened tensor once."""
    reached, numel = 0, math.prod(shape)
    for _, _, start, stop in [*parts, (None, None, numel, numel)]:
        if start > reached:
            raise Cause(f"nothing holds elements {reached:,} to {start:,} of {name}")
        if start < reached or not start <= stop <= numel:
            raise Cause(f"of {name} two parts hold element {start:,}, or one reaches beyond the last")
        reached = stop
