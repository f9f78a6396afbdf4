"""PyTorch's loader with the manners that both kinds of data need."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from dalle.outputs.threads import Thread

_PREFETCHED_BATCHES = 4


def load(dataset: Dataset, workers: int, **options: Any) -> Iterator[dict]:
    """Batches of a data set that makes whole batches itself. The workers begin at once.

    Args:
        dataset: yields batches, or has them by number
        workers: loader processes; 0 loads in this process
        options: more arguments of `DataLoader`, or others than ours

    Raises:
        ValueError: what a worker raised, as the one line it was
    """
    if workers:
        options = {"prefetch_factor": _PREFETCHED_BATCHES, "worker_init_fn": _leave_signals_to_the_parent} | options
    return _in_one_line(iter(DataLoader(dataset, batch_size=None, num_workers=workers, **options)))


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


def _leave_signals_to_the_parent(worker: int) -> None:
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
