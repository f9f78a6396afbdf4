"""Who draws, in the thread that alone has the models: it takes whoever's turn it is, draws one chunk of candidates, and tells what
comes of it row by row."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import replace

import numpy as np

from dalle.outputs.threads import Workers
from dalle.sampling.candidates import Best, Candidates, Chunks
from dalle.sampling.drawing import Drawing
from dalle.sampling.prompt import Prompt, encode_with
from dalle.web.job import Job, Order, Progress, Stopped
from dalle.web.shelf import Shelved
from dalle.web.turns import Turns

_LOG = logging.getLogger("dalle.web")
_CLOSING = "the server is being shut down; ask again when it is back"


class Artist:
    """Draws what waits, until it is closed.

    Args:
        shelf: the models by name
        turns: who waits
        seconds: that are drawn for a job, at most
        worker: has the thread, in which the models were loaded
    """

    def __init__(self, shelf: Mapping[str, Shelved], turns: Turns, seconds: float, worker: Workers):
        self.shelf, self.turns, self.seconds, self._worker = shelf, turns, seconds, worker
        self.slots = 0  # that were drawn in all
        self._closed = False
        self._drawn: Future[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._drawn = self._worker.begin(self._run)
        self._drawn.add_done_callback(_tell_of_error)

    def close(self) -> None:
        """Stop within a row, tell all who wait, and wait until it has stopped."""
        self._closed = True
        for job in self.turns.close():
            job.refuse(_CLOSING, 503)
        if self._drawn:
            wait([self._drawn])

    def _run(self) -> None:
        while self._draw_next():
            pass

    def _draw_next(self) -> bool:
        """Wait for the next turn, and draw it; False once closed. What was drawn for it is let go with it."""
        job = self.turns.take()
        if job is None:
            return False
        more = False
        try:
            more = not job.gone and self._turn(job)
        except Stopped:
            if self._closed:
                job.refuse(_CLOSING, 503)
        except ValueError as error:
            job.refuse(" ".join(str(error).split()), 422)
        except Exception:
            _LOG.exception("a request could not be drawn")
            job.refuse("the drawing failed; see the server's log for why", 500)
        if more and not job.gone:
            self.turns.give_back(job)
        else:
            job.progress = None
        return True

    def _turn(self, job: Job) -> bool:
        """Draw a chunk of a job; whether there is more to draw. Raises Stopped once nobody waits for it."""
        shelved, ask = self.shelf[job.order.ask.model], job.order.ask
        began_s = time.monotonic()
        if job.progress is None:
            job.progress = _begin(shelved, job.order)
        progress = job.progress
        first = progress.drawn
        width = progress.chunks.width  # which is halved for good when memory runs out
        numbers = range(first, min(ask.n, first + width))
        seeds = [ask.seed + number for number in numbers]
        job.tell("chunk", seeds=seeds, **_given(progress.prompt, shelved))
        progress.chunks.progress = self._watch(job, shelved, len(seeds), width, began_s)
        stopped = None
        try:
            for chunk in progress.chunks.draw(progress.reading, numbers, ask.seed, progress.prompt):
                progress.drawn += len(chunk.seeds_CN[0])
                job.tell("candidates", drawings=_taken_in(progress, chunk), drawn=progress.drawn, of=ask.n)
        except _TimeOver:
            stopped = f"stopped after {self.seconds:g} s, which this server draws for a request at most"
        progress.seconds += time.monotonic() - began_s
        if stopped is None and progress.drawn < ask.n:
            return True
        self._finish(job, stopped)
        return False

    def _finish(self, job: Job, stopped: str | None) -> None:
        """Tell how it ended: with the order of all, best first, or, where there is none, with an error."""
        progress = job.progress
        assert progress is not None
        ranked = progress.best.ranked()
        if not ranked:
            job.refuse(f"{stopped}, before the first candidates were there; ask for less", 503)
            return
        job.answer = ranked
        order = [{"seed": d.seed, "rank": d.rank, "times": d.times} for d in ranked]
        job.tell("done", order=order, drawn=progress.drawn, seconds=round(progress.seconds, 3), stopped=stopped)

    def _watch(self, job: Job, shelved: Shelved, count: int, width: int, began_s: float) -> Callable[[int], None]:
        """What is told each slot of a chunk: it stops where nobody waits, and tells of each row."""
        grid, pipeline, sampling = shelved.found.prior_config.grid, shelved.pipeline, job.order.sampling

        def watch(slot: int) -> None:
            self.slots += 1
            if job.gone or self._closed:
                raise Stopped
            if (slot + 1) % grid:
                return
            assert job.progress is not None
            spent_s = job.progress.seconds + time.monotonic() - began_s
            if spent_s > self.seconds:
                raise _TimeOver
            if job.progress.chunks.width != width:
                return  # it ran out just now, and these are some of those that were told
            row = slot // grid
            codes_NX = pipeline.so_far(sampling)[0, :count, row * grid : (row + 1) * grid]
            job.tell("row", row=row, of=grid, colours=_text(shelved.colours_K3[codes_NX]))

        return watch


def _tell_of_error(drawn: Future[None]) -> None:
    if (error := drawn.exception()) is not None:
        _LOG.error("nothing is drawn any more", exc_info=error)


class _TimeOver(Exception):
    """More was drawn for a job than is drawn for any."""


def _begin(shelved: Shelved, order: Order) -> Progress:
    pipeline, prompt = shelved.pipeline, order.prompt
    if order.square_YX3 is not None:
        assert prompt is not None
        prompt = replace(prompt, codes_I=encode_with(pipeline.dvae, order.square_YX3))
    chunks = Chunks(pipeline, order.sampling)
    return Progress(pipeline.read([order.ask.caption]), chunks, prompt, Best(order.ask.n))


def _given(prompt: Prompt | None, shelved: Shelved) -> dict[str, str]:
    """The cells that are there from the start, RGBA."""
    if prompt is None:
        return {}
    colours_I4 = np.concatenate(
        [
            shelved.colours_K3[np.where(prompt.kept_I, prompt.codes_I, 0)],
            (255 * prompt.kept_I).astype(np.uint8)[:, None],
        ],
        axis=1,
    )
    return {"given": _text(colours_I4)}


def _taken_in(progress: Progress, chunk: Candidates) -> list[tuple[Drawing, int | None]]:
    """The candidates of a chunk, each with the seed of the one before it that is the same, where there is one."""
    part = chunk.part(0)
    progress.best.take(part)
    told = []
    for drawing, fingerprint in zip(part.drawings, part.fingerprints, strict=True):
        first = progress.first_seeds.setdefault(fingerprint, drawing.seed)
        told.append((drawing, None if first == drawing.seed else first))
    return told


def _text(colours: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(colours).tobytes()).decode()
