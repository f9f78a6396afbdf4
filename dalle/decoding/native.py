"""Compiles `native.cpp`, once for a machine, and loads it."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from dalle.config.checks import warn
from dalle.outputs.whole import copy_file

MOST_HEAD_WIDTH = 1024
"""That `native.cpp` has room for."""
_SOURCE = Path(__file__).with_name("native.cpp")
# With g++, OpenMP's library is the one that PyTorch has loaded, and so are its threads. The last three are what makes
# vectors of sums. Not -funsafe-math-optimizations or -ffast-math, which hold them: compilers then link a start-up routine
# that has the whole process round small numbers to 0.
_FLAGS = [
    *("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"),
    *("-fassociative-math", "-freciprocal-math", "-fno-signed-zeros"),
]
_INT, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_SIGNATURES = {
    "attend": [
        *(_POINTER, _INT, _INT, _INT, _POINTER, _POINTER, _INT, _INT, _POINTER, _POINTER, _INT),
        *(_POINTER, _INT, _INT, _POINTER, _POINTER, _INT),
    ],
    "add_norm": [_POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT, _FLOAT, _POINTER, _INT],
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; null, with a warning, where they cannot be compiled."""
    command = compiler()
    if command is None:
        _warn("there is no C++ compiler")
        return None
    try:
        folder = _folder()
    except OSError as error:
        _warn(f"no folder for what is compiled once: {error.strerror} ({error.filename}); XDG_CACHE_HOME names another")
        return None
    try:
        found = ctypes.CDLL(str(_compiled(command, folder)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        _warn(f"{command} cannot compile {_SOURCE.name} ({detail.strip()[-300:]})")
        return None
    for function_name, types in _SIGNATURES.items():
        for dtype in ("bf16", "fp32"):
            function = getattr(found, f"{function_name}_{dtype}")
            function.argtypes, function.restype = types, None
    return found


def library_there() -> ctypes.CDLL:
    """`library`, for those who have seen that it is there."""
    found = library()
    assert found is not None
    return found


def compiler() -> str | None:
    """The C++ compiler that is taken; null where there is none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")


def place() -> Path:
    """The file of what was compiled."""
    return Path(library_there()._name)


def name() -> str:
    """Of what was compiled: another compiler or processor makes another one, which may round otherwise."""
    return place().stem


def cache_folder() -> Path:
    """Where it is kept, if this folder can be used."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dalle"


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Where a contiguous tensor's elements lie."""
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()


def _warn(why: str) -> None:
    warn(f"{why}: sampling uses PyTorch's own operations, which take longer")


def _compiled(compiler: str, folder: Path) -> Path:
    """The library's file in the folder, which other processes may be making at the same moment."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    told = "\n".join([version, *_FLAGS, _SOURCE.read_text(), _processor()])
    path = folder / f"native-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    if not _is_ours(path, stat.S_ISREG):
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            output = Path(partial) / path.name
            command = [compiler, *_FLAGS, "-shared", "-fPIC", "-o", str(output), str(_SOURCE)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            copy_file(output, path)
            path.chmod(0o700)  # whatever the umask lets a group do
    return path


def _folder() -> Path:
    """The user's own, for what is loaded from it runs as this process: in the user's cache, or, where there is none that can be
    written, one of a fixed name beside other temporary files, so that the next process finds it again.

    Raises:
        OSError: neither can be made, or others may write there
    """
    failed: OSError | None = None
    for folder in (cache_folder(), Path(tempfile.gettempdir()) / f"dalle-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_ours(folder, stat.S_ISDIR):
                why = "it is another user's, a link, or others may write to it: remove it"
                raise PermissionError(errno.EACCES, why, str(folder))
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            error.filename = str(folder)
            failed = failed or error
    assert failed is not None
    raise failed


def _is_ours(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether it is there, of the kind that is meant rather than a link to it, and neither another user's nor writable for
    others. Whoever may write to it could have this process run what they like."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return kind(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _processor() -> str:
    """What `-march=native` means: home folders are shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()
