"""PyTorch's loader with the manners that both kinds of data need, and the way of batches to a device."""

from __future__ import annotations

import multiprocessing.queues
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy.random  # noqa: F401 - which workers seed: loaded here, none needs memory for it where there may be none
import torch
from torch.utils.data import DataLoader, Dataset

from dalle.config.checks import printable
from dalle.outputs.threads import Thread

_PREFETCHED_BATCHES = 4


def load(dataset: Dataset, workers: int, **options: Any) -> Iterator[dict]:
    """Batches of a data set that makes whole batches itself. The workers begin at once. One that ends before its time raises
    PyTorch's RuntimeError, at any line of this process.

    Args:
        dataset: yields batches, or has them by number
        workers: loader processes; 0 loads in this process
        options: more arguments of `DataLoader`, or others than ours

    Raises:
        ValueError: what a worker raised, as the one line it was
    """
    if workers:
        options = {"prefetch_factor": _PREFETCHED_BATCHES, "worker_init_fn": _as_a_worker} | options
    return _in_one_line(iter(DataLoader(dataset, batch_size=None, num_workers=workers, **options)))


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors, which are on the CPU, on a device. This process does not wait for a GPU: what is given to it
    afterwards finds them there."""
    tensors = {name: value for name, value in batch.items() if torch.is_tensor(value)}
    if device.type == "cuda":  # from other memory than pinned the copy would wait for the GPU
        tensors = {name: value.pin_memory() for name, value in tensors.items()}
    return batch | {name: value.to(device, non_blocking=True) for name, value in tensors.items()}


def _in_one_line(batches: Iterator[dict]) -> Iterator[dict]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except ValueError as error:
            # a worker's error arrives with its whole traceback as the message
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from error
        yield batch


def _as_a_worker(worker: int) -> None:
    _leave_signals_to_the_parent()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_of_unsent)  # type: ignore[attr-defined]  # a hook that its stubs lack


def _end_of_unsent(error: BaseException, batch: Any) -> None:
    """Of a batch that cannot be sent, such as for want of memory; left alone, it would be waited for without end."""
    try:
        why = f"{type(error).__name__}: {printable(str(error))}"
        os.write(2, f"a process that loads data cannot send what it has loaded: {why}\n".encode())
    finally:
        os._exit(1)


def _leave_signals_to_the_parent() -> None:
    """Ctrl-C, SIGTERM and SIGUSR1 reach all processes of a terminal, a launcher or a Slurm step; the training process alone
    decides when its workers end, which it does with a SIGTERM of its own."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS: no telling who sent it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # forked, it would have the training process's handler
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Thread(_end_with_the_parent)


def _end_with_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
