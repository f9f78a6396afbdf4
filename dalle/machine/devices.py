"""What is said of PyTorch and of what it computes on."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from dalle.machine.asking import Told, asked
from dalle.machine.finding import Finding, size

_PROBE = "dalle.machine.probes.devices"
_MOST_OFF = {"fp32": 2e-3, "bf16": 2e-2, "fp16": 3e-3}
"""Of a product's largest number. bf16 rounds the result to 2⁻⁹ of itself and fp16 to 2⁻¹²; the sum of 256 terms may be kept in
16 bits on its way, and fp32 be rounded to the 10 bits of TF32."""
_LEAST_GPU_BYTES = 8_000_000_000
_SLOW_BF16 = 0.8
_PLAIN = "--run.precision fp32"


def device_findings(timeout_s: float = 120.0) -> Iterator[Finding]:
    """Of PyTorch, each GPU and the CPU's products, as another process finds them."""
    yield from judged(asked(_PROBE, timeout_s=timeout_s), nvidia_driver())


def nvidia_driver() -> str | None:
    """The driver's version, by its own program; null where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def judged(told: Told, driver: str | None, has_headers: bool | None = None) -> Iterator[Finding]:
    """The findings from what the probe told.

    Args:
        told: by `dalle.machine.probes.devices`
        driver: see `nvidia_driver`
        has_headers: whether Python's C headers are there; null looks for them
    """
    if "torch" not in told:
        yield Finding("torch", "fail", f"does not load: {told.get('failed')}", "pip install --force-reinstall torch")
        return
    built = f"CUDA {told['cuda']}" if told["cuda"] else f"ROCm {told['hip']}" if told["hip"] else "the CPU alone"
    yield Finding("torch", "ok", f"{told['torch']}, built for {built}, {told['threads']} threads")
    number = 0
    while (gpu := told.get(f"gpu{number}")) is not None:
        yield _gpu(number, gpu, driver)
        number += 1
    if told.get("gpus") == 0:
        yield _without(told, driver)
    elif number:
        yield from _headers(has_headers)
    if "failed" in told:
        yield Finding("products", "fail", f"while they were tried: {told['failed']}", "reinstall torch and the driver")
    elif "cpu" in told:
        yield _cpu(told["cpu"]["off"], told["cpu"]["rates"])


def _gpu(number: int, gpu: Told, driver: str | None) -> Finding:
    major, minor = gpu["capability"]
    name = f"gpu {number}"
    fact = (
        f"{gpu['name']}, {size(gpu['total_bytes'])} with {size(gpu['free_bytes'])} free, compute capability {major}.{minor}"
        + (f", driver {driver}" if driver else "")
    )
    wrong = _wrong(gpu["off"])
    if wrong:
        built = ", ".join(gpu["built_for"])
        advice = f"install a torch that is built for sm_{major}{minor} (this one: {built})"
        if f"sm_{major}{minor}" in gpu["built_for"]:
            advice = "reinstall torch and the driver"
        return Finding(name, "fail", f"{fact}: products go wrong in {_told(wrong)}", advice)
    if gpu["free_bytes"] < 0.5 * gpu["total_bytes"]:
        return Finding(name, "warn", f"{fact}; others use most of it", "end them, or choose with CUDA_VISIBLE_DEVICES")
    if major < 8:  # bf16 is computed, and slowly
        return Finding(
            name,
            "warn",
            f"{fact}; bf16 is not of its own kind",
            "train with --run.precision fp16, a prior with fp16-per-block",
        )
    if gpu["total_bytes"] < _LEAST_GPU_BYTES:
        return Finding(name, "warn", fact, "enough for small models; lower --run.batch_size where memory ends")
    return Finding(name, "ok", f"{fact}; fp32, bf16 and fp16 are right")


def _without(told: Told, driver: str | None) -> Finding:
    """Of a machine on which PyTorch sees no GPU: has it one?"""
    if driver is None:
        return Finding("gpu", "ok", "there is none: the CPU trains and draws")
    if not told["cuda"]:
        advice = "install a torch for CUDA (pytorch.org/get-started)"
        return Finding("gpu", "warn", f"driver {driver} is there, and this torch is built for the CPU alone", advice)
    said = told["said"][0][:200] if told["said"] else "no reason is given"
    advice = "update the driver, or install a torch for its CUDA; is CUDA_VISIBLE_DEVICES set?"
    return Finding("gpu", "fail", f"driver {driver} is there, and torch sees no GPU ({said})", advice)


def _headers(has_headers: bool | None) -> Iterator[Finding]:
    if has_headers is None:
        has_headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    if not has_headers:
        advice = "apt-get install python3-dev, or draw with --sampling.compile false"
        yield Finding(
            "Python's headers", "warn", "Python.h is missing, which PyTorch's compiler takes on a GPU", advice
        )


def _cpu(off: dict[str, float | str], rates: dict[str, float]) -> Finding:
    wrong = _wrong(off)
    if wrong:
        advice = "reinstall torch" if "fp32" in wrong else f"train with {_PLAIN}"
        return Finding("products", "fail", f"on the CPU go wrong in {_told(wrong)}", advice)
    if not rates:
        return Finding("products", "ok", "fp32, bf16 and fp16 are right on the CPU")
    share = rates["bf16"] / rates["fp32"]
    fact = f"right on the CPU: fp32 at {rates['fp32'] / 1e9:,.0f} GFLOP/s, bf16 at {share:.2g} times that"
    if share < _SLOW_BF16:
        return Finding("products", "warn", fact, f"train with {_PLAIN}, draw with --sampling.precision fp32")
    return Finding("products", "ok", fact)


def _wrong(off: dict[str, float | str]) -> dict[str, float | str]:
    return {name: each for name, each in off.items() if isinstance(each, str) or not each <= _MOST_OFF[name]}


def _told(wrong: dict[str, float | str]) -> str:
    return ", ".join(
        f"{name} ({each if isinstance(each, str) else f'off by {each:.1%}'})" for name, each in wrong.items()
    )
