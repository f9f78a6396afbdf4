"""A server of tiny models on a free loopback port, in a thread of this process, so that tests can look into it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import uvicorn

from dalle.config import Serve
from dalle.outputs.threads import Workers
from dalle.web.app import make_app
from dalle.web.serving import listening, server_settings
from dalle.web.shelf import Shelved

STREAM = {"accept": "text/event-stream"}


class Running:
    """A server that runs. http: a client of it. app: itself."""

    def __init__(self, app, address: str):
        self.app, self.address = app, address
        self.artist, self.turns = app.state.artist, app.state.turns
        self.http = httpx.Client(base_url=address, timeout=60)

    def draw(self, caption: str = "a red circle", **values) -> httpx.Response:
        """The whole answer to a request."""
        return self.http.post("/generate", json={"caption": caption, **values})

    @contextmanager
    def events(self, caption: str = "a red circle", client: str = "", **values) -> Iterator[Iterator[tuple[str, dict]]]:
        """A stream of (event, values); leaving the block hangs up."""
        headers = {**STREAM, "x-client": client}
        with (
            httpx.Client(base_url=self.address, timeout=60) as http,
            http.stream("POST", "/generate", json={"caption": caption, **values}, headers=headers) as answer,
        ):
            assert answer.status_code == 200, answer.read()
            yield parsed(answer.iter_lines())

    def settle(self) -> None:
        """Wait until nothing is drawn and nobody waits."""
        wait_for(lambda: not self.turns.drawing and not self.turns.waiting)


def parsed(lines: Iterator[str]) -> Iterator[tuple[str, dict]]:
    """The events of a stream's lines."""
    event = None
    for line in lines:
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield event, json.loads(line.removeprefix("data: "))


@contextmanager
def running(shelf: dict[str, Shelved], limits: Serve) -> Iterator[Running]:
    """A server of these models, until the end of the block."""
    app = make_app(shelf, limits, Workers())
    with listening(replace(limits, port=0)) as listener:
        server = uvicorn.Server(server_settings(limits, app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield Running(app, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@contextmanager
def slowed(shelved: Shelved, seconds: float) -> Iterator[None]:
    """Within the block each slot takes so much longer."""
    with _before_each_slot(shelved, lambda: time.sleep(seconds)):
        yield


class Gate:
    """Holds drawing back until it is let on."""

    def __init__(self) -> None:
        self._slots, self._is_open = threading.Semaphore(0), threading.Event()

    def let(self, slots: int) -> None:
        """So many more slots may be drawn."""
        self._slots.release(slots)

    def open(self) -> None:
        """All may be."""
        self._is_open.set()

    def pass_one(self) -> None:
        """Wait for a slot that may be drawn."""
        while not self._is_open.is_set() and not self._slots.acquire(timeout=0.005):
            pass


@contextmanager
def gated(shelved: Shelved) -> Iterator[Gate]:
    """Within the block slots are drawn as the gate lets them."""
    gate = Gate()
    try:
        with _before_each_slot(shelved, gate.pass_one):
            yield gate
    finally:
        gate.open()


@contextmanager
def _before_each_slot(shelved: Shelved, call: Callable[[], None]) -> Iterator[None]:
    chunk = shelved.pipeline.chunk

    def calling_chunk(reading, first_seed, sampling, prompt=None, progress=lambda slot: None):
        def calling(slot: int) -> None:
            call()
            progress(slot)

        return chunk(reading, first_seed, sampling, prompt, calling)

    shelved.pipeline.chunk = calling_chunk
    try:
        yield
    finally:
        del shelved.pipeline.chunk


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds."""
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "it does not come"
        time.sleep(0.005)
