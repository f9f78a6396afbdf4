"""PyTorch's loader with the manners that both kinds of data need."""

from __future__ import annotations

import signal
from collections.abc import Iterator

from torch.utils.data import DataLoader, Dataset

_PREFETCHED_BATCHES = 4


def load(dataset: Dataset, workers: int, **options) -> Iterator[dict]:
    """Batches of a data set that makes whole batches itself. The workers begin at once.

    Args:
        dataset: yields batches, or has them by number
        workers: loader processes; 0 loads in this process
        options: more arguments of `DataLoader`, or others than ours

    Raises:
        ValueError: what a worker raised, as the one line it was
    """
    if workers:
        options = {"prefetch_factor": _PREFETCHED_BATCHES, "worker_init_fn": _ignore_ctrl_c} | options
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


def _ignore_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the training process alone decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # forked, it would have the training process's handler
