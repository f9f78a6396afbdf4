"""The stages' commands, called one after another: for `dalle-demo` and `dalle-train`. They share one process, so that libraries
are loaded once; on several GPUs each training is a launch of its own."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dalle.config import TrainCLIP, TrainDVAE, TrainPrior

TRAININGS = {"dvae": TrainDVAE, "prior": TrainPrior, "clip": TrainCLIP}


def options(values: dict[str, Any]) -> list[str]:
    """Settings as words of a command line."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def say(number: str, text: str) -> None:
    """A step of the road."""
    print(f"\n[{number}] {text}", flush=True)


def train_stage(kind: str, argv: list[str], gpus: int = 1) -> None:
    """Train one stage to its end.

    Args:
        kind: "dvae", "prior" or "clip"
        argv: of its command
        gpus: with more than one the command is run by DeepSpeed's launcher, a process for each

    Raises:
        KeyboardInterrupt: it was stopped, and has left a checkpoint
        ValueError: the launched command has failed, and said why
    """
    if gpus > 1:
        _launch(launched(kind, argv, gpus))
        return
    from dalle.cli.train import train

    if not train(kind, TRAININGS[kind], argv, alone=False):
        raise KeyboardInterrupt


def launched(kind: str, argv: list[str], gpus: int) -> list[str]:
    """The command line that trains a stage on all GPUs of this machine."""
    return ["deepspeed", "--num_gpus", str(gpus), "--no_python", f"dalle-train-{kind}", *argv]


def _launch(command: list[str]) -> None:
    try:
        with _interrupts_reach_the_child(), subprocess.Popen(command) as process:
            code = process.wait()
    except FileNotFoundError:
        raise ValueError(
            f"{command[0]}: no such command: install the package's dependencies, deepspeed among them"
        ) from None
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if code:
        raise ValueError(f"{' '.join(command[:5])}: ended with exit code {code}; see what it said above")


@contextmanager
def _interrupts_reach_the_child() -> Iterator[None]:
    """Ctrl-C goes to the launcher, which a terminal tells as well: it saves a checkpoint before it ends, and is waited for."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
