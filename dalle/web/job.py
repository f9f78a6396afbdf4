"""A request on its way: what is drawn for it, and what is told of it to whoever waits for it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dalle.config import Sampling
from dalle.sampling.candidates import Best, Chunks, Reading
from dalle.sampling.drawing import Drawing
from dalle.sampling.prompt import Prompt
from dalle.web.asking import Ask


@dataclass(frozen=True)
class Order:
    """A request that was found good.

    sampling: settled, with the width of a chunk. prompt: which codes are kept; where `square_YX3` is an image, its codes are still
    to be made of that. notes: what the one who asked should know.
    """

    ask: Ask
    sampling: Sampling
    prompt: Prompt | None
    square_YX3: Any
    notes: tuple[str, ...]


@dataclass
class Progress:
    """Of a job whose first turn has come: kept by the thread that draws, and touched by no other."""

    reading: Reading
    chunks: Chunks
    prompt: Prompt | None
    best: Best
    first_seeds: dict[bytes, int] = field(default_factory=dict)
    drawn: int = 0
    seconds: float = 0.0


class Stopped(Exception):
    """Nobody waits for what is being drawn, or its time is over. No RuntimeError, which might be taken for too little memory."""


class Job:
    """A request, from its queue to its answer. What happens to it is told as events: a name, and values that are written as JSON,
    or drawings.

    Args:
        order: what is asked for
        address, client: who asks: where from, and which of those there
        loop: that waits for the events
    """

    def __init__(self, order: Order, address: str, client: str, loop: asyncio.AbstractEventLoop):
        self.order, self.address, self.client = order, address, client
        self.progress: Progress | None = None
        self.gone = False
        self.ended_s: float | None = None
        self.answer: list[Drawing] = []
        self._loop = loop
        self._events: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._ahead: int | None = None

    def tell(self, event: str, **values: Any) -> None:
        """From any thread, until it has ended."""
        if self.gone or self.ended_s is not None:
            return
        if event in ("done", "error"):
            self.ended_s = time.monotonic()
        with suppress(RuntimeError):  # of a loop that is closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, (event, values))

    def refuse(self, message: str, status: int) -> None:
        """End it with an error, of an HTTP status."""
        self.tell("error", error=message, status=status)

    def tell_ahead(self, turns: int) -> None:
        """How many turns of others come before its next."""
        if turns != self._ahead:
            self._ahead = turns
            self.tell("queue", ahead=turns)

    async def next_event(self) -> tuple[str, dict[str, Any]]:
        """The next; the last one is "done" or "error"."""
        return await self._events.get()

    def leave(self) -> None:
        """Nobody waits for it any longer."""
        self.gone = True
