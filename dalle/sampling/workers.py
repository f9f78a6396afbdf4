"""Several processes that draw together, one for each GPU.

Each loads the models itself, takes the next block of candidates from a counter that all share, so that a slow one does
not hold up the rest, and sends back what may be among the best. Nothing else is exchanged.
"""

from __future__ import annotations

import multiprocessing.connection
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.multiprocessing

from dalle.config.checks import warn
from dalle.sampling.candidates import Part, Source, Work, draw
from dalle.text import CaptionWarning

_END_S = 5.0
"""For a worker that was told to end, before it is made to."""


class WorkerDied(RuntimeError):
    """A worker ended before its work was done."""


def draw_with_workers(load: Callable[[str], Source], work: Work, processes: int) -> Generator[Part, None, None]:
    """What `draw` yields, in the order in which it is done; the best of it are the very same.

    Args:
        load: loads the models on the device that it is given; must be importable, for it is called in other processes
        work: what is drawn. Without a chunk in its sampling the narrowest of all workers is taken
        processes: number of workers. Each has a GPU of its own, as long as there are any; on a CPU they share its threads

    Raises:
        ValueError: a worker found something wrong with the input
        WorkerDied: a worker ended; the others have been ended
    """
    context = torch.multiprocessing.get_context("spawn")
    gpus = torch.cuda.device_count()
    devices = [f"cuda:{i % gpus}" if gpus else "cpu" for i in range(processes)]
    threads = 0 if gpus else max(1, torch.get_num_threads() // processes)
    counter = context.Value("q", 0)
    workers: dict[Connection, BaseProcess] = {}
    names: dict[Connection, str] = {}
    try:
        with _interrupts_ignored():  # which the workers inherit: Ctrl-C is for this process, which ends them
            for number, device in enumerate(devices, 1):
                ours, theirs = context.Pipe()
                worker = context.Process(target=_run, args=(theirs, counter, load, device, threads, work), daemon=True)
                worker.start()
                theirs.close()  # so that ours ends with the worker
                workers[ours], names[ours] = worker, f"worker {number} of {processes} ({device})"
        widths = [_result(_receive(connection, workers, names)) for connection in workers]
        for connection in workers:
            with suppress(BrokenPipeError):  # one that died meanwhile is met below
                connection.send(min(widths))
        running = set(workers)
        while running:
            ready = multiprocessing.connection.wait(list(running))
            for connection in [each for each in running if each in ready]:
                result = _result(_receive(connection, workers, names))
                if isinstance(result, Part):
                    yield result
                elif result is None:
                    running.remove(connection)
    finally:
        _end(list(workers.values()))
        for connection in workers:
            connection.close()


def _receive(connection: Connection, workers: dict, names: dict) -> tuple[str, object]:
    """The next message of a worker that is not a warning; those are given here, as if from this process."""
    while True:
        try:
            kind, content = connection.recv()
        except (EOFError, OSError):
            workers[connection].join(_END_S)
            code = workers[connection].exitcode
            raise WorkerDied(
                f"{names[connection]} died with {_exit(code)}; the others were ended; look for what it said above"
            ) from None
        if kind != "warning":
            return kind, content
        warn(content)


def _result(message: tuple[str, Any]) -> Any:
    kind, content = message
    if kind == "refused":
        raise ValueError(content)
    return content


def _exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = {number.value: number.name for number in signal.Signals}.get(-code, "a signal")
    hint = ", which is what a system that runs out of memory sends" if name == "SIGKILL" else ""
    return f"exit code {code} ({name}{hint})"


def _end(workers: list) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(_END_S)
        if worker.exitcode is None:
            worker.kill()
            worker.join()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _run(connection: Connection, counter: Any, load: Any, device: str, threads: int, work: Work) -> None:
    """A worker's life. Its messages are (kind, content): first its chunk's width, then parts, then None."""
    if threads:
        torch.set_num_threads(threads)
    # what the first process says
    warnings.filterwarnings("ignore", category=CaptionWarning)
    warnings.filterwarnings("ignore", message="sampling.guidance")
    warnings.showwarning = lambda message, *_: connection.send(("warning", str(message)))
    try:
        pipeline = load(device)
        connection.send(("width", pipeline.chunk_width(work.sampling)))
        work = replace(work, sampling=replace(work.sampling, chunk=connection.recv()))
        for part in draw(pipeline, work, _numbers(counter)):
            connection.send(("part", part))
        connection.send(("done", None))
    except ValueError as error:
        connection.send(("refused", str(error)))
    except (BrokenPipeError, EOFError):  # the process that asked is gone
        pass


def _numbers(counter: Any) -> Iterator[int]:
    """The next number that no other worker has."""
    while True:
        with counter.get_lock():
            number = counter.value
            counter.value += 1
        yield number
