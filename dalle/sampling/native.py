"""Compiles `native.cpp`, once for a machine, and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("native.cpp")
# OpenMP's library is the one that PyTorch has loaded, and so are its threads
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-funsafe-math-optimizations"]
_INT, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_SIGNATURES = {
    "attend": [_POINTER, *[_INT] * 3, *[_POINTER] * 2, *[_INT] * 2, *[_POINTER] * 2, _INT, _POINTER, *[_INT] * 2, *[_POINTER] * 2],
    "add_norm": [*[_POINTER] * 4, *[_INT] * 2, _FLOAT, _POINTER],
}  # fmt: skip


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; null, with a warning, where they cannot be compiled."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        _warn("there is no C++ compiler")
        return None
    try:
        found = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        _warn(f"{compiler} cannot compile {_SOURCE.name} ({detail.strip()[-300:]})")
        return None
    for name, types in _SIGNATURES.items():
        for dtype in ("bf16", "fp32"):
            function = getattr(found, f"{name}_{dtype}")
            function.argtypes, function.restype = types, None
    return found


def _warn(why: str) -> None:
    warnings.warn(f"{why}: sampling uses PyTorch's own operations, which take longer", stacklevel=3)


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Where a contiguous tensor's elements lie."""
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()


def _compiled(compiler: str) -> Path:
    """The library's file, which other processes may be making at the same moment."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    told = "\n".join([version, *_FLAGS, _SOURCE.read_text(), _processor()])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dalle"
    path = folder / f"native-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            output = Path(partial) / path.name
            command = [compiler, *_FLAGS, "-shared", "-fPIC", "-o", str(output), str(_SOURCE)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            os.replace(output, path)
    return path


def _processor() -> str:
    """What `-march=native` means: home folders are shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()
