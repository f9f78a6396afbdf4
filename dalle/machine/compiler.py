"""What is said of the C++ compiler, and of the kernels that it makes for sampling on a CPU."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dalle.machine.asking import Told, asked
from dalle.machine.finding import Finding

_PROBE = "dalle.machine.probes.kernels"
_PROGRAM = """#include <omp.h>
#include <vector>
int main() { std::vector<int> one(1, omp_get_max_threads()); return one[0] > 0 ? 0 : 1; }
"""
_MOST_OFF = {"fp32": 2e-5, "bf16": 6e-2}
"""Of values about 1, from the plain form in fp32: sums in another order; and scores, weights and results rounded to 2⁻⁹."""
_INSTALL = "apt-get install g++, or set CXX to a compiler"


def compiler_findings(timeout_s: float = 180.0) -> Iterator[Finding]:
    """Of the compiler, and of the kernels, as another process finds them."""
    told = asked(_PROBE, timeout_s=timeout_s)
    command = told.get("compiler")
    yield compiler_finding(command)
    yield kernels_finding(told)


def compiler_finding(command: str | None) -> Finding:
    """Whether it makes a program that runs. command: as `dalle.decoding.native.compiler` finds it."""
    if command is None:
        return Finding("compiler", "warn", "there is no C++ compiler: drawing on a CPU takes longer", _INSTALL)
    try:
        asked_version = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=30, check=True)
        version = asked_version.stdout.split("\n")[0].strip()
        with tempfile.TemporaryDirectory() as folder:
            source, program = Path(folder) / "it.cpp", Path(folder) / "it"
            source.write_text(_PROGRAM)
            built = [command, "-fopenmp", "-o", str(program), str(source)]
            subprocess.run(built, capture_output=True, text=True, timeout=60, check=True)
            subprocess.run([str(program)], timeout=30, check=True)
    except subprocess.SubprocessError as error:
        lines = [line for line in (getattr(error, "stderr", None) or str(error)).splitlines() if line.strip()]
        return Finding("compiler", "warn", f"{command} makes no program: {lines[-1].strip()[:200]}", _INSTALL)
    except OSError as error:  # it is not there, the temporary folder is full or does not let programs run
        place = error.filename or command
        return Finding("compiler", "warn", f"{command} makes no program: {place}: {error.strerror}", _INSTALL)
    return Finding("compiler", "ok", version or command)


def kernels_finding(told: Told) -> Finding:
    """Whether they are there and right. told: by `dalle.machine.probes.kernels`."""
    if "failed" in told:
        return Finding(
            "native kernels", "fail", f"end the process: {told['failed']}", "draw with --sampling.compile false"
        )
    if "place" not in told:
        said = told["said"][0] if told["said"] else "they do not load"
        return Finding("native kernels", "warn", said, "see the compiler above")
    place, wanted = Path(told["place"]), Path(told["wanted_folder"])
    wrong = {name: off for name, off in told["off"].items() if not off <= _MOST_OFF[name.split()[-1]]}
    if wrong:
        parts = ", ".join(f"{name} is off by {off:.2g}" for name, off in wrong.items())
        advice = f"delete {place} and try again; else draw with --sampling.compile false"
        return Finding("native kernels", "fail", parts, advice)
    fact = f"compiled and right, in {place.parent}"
    if place.parent != wanted:
        advice = "make that your own folder, writable for nobody else, or name another with XDG_CACHE_HOME"
        return Finding("native kernels", "warn", f"{fact}, since {wanted} cannot be used", advice)
    return Finding("native kernels", "ok", fact)
