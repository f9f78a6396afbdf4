"""What is at which address. The page's files are read once, at the start, and are found by their names among those alone: no
address leads to a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, TypeVar

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dalle.config import Serve, plain_json
from dalle.outputs.threads import Workers
from dalle.web.answers import Answer, Stream, Whole
from dalle.web.artist import Artist
from dalle.web.asking import read_ask, request_schema
from dalle.web.guard import Guard, Refused, read_body, refusal
from dalle.web.job import Job, Order
from dalle.web.reading import read_order
from dalle.web.shelf import Shelved
from dalle.web.telling import bundle
from dalle.web.turns import Full, Turns

_T = TypeVar("_T")
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def make_app(shelf: dict[str, Shelved], limits: Serve, worker: Workers) -> Starlette:
    """The server, which draws as long as its lifespan lasts.

    Args:
        shelf: the models by name, the first of which is taken where none is named
        limits: what may be asked of it
        worker: in whose thread the models draw; they are fastest where they were loaded
    """
    return _Server(shelf, limits, worker).app


class _Server:
    def __init__(self, shelf: dict[str, Shelved], limits: Serve, worker: Workers):
        self.limits = limits
        self.schema = request_schema(list(shelf), limits)
        self.found = {name: shelved.found for name, shelved in shelf.items()}
        self.facts = [shelved.facts() for shelved in shelf.values()]
        self.turns = Turns(limits.most_waiting)
        self.artist = Artist(shelf, self.turns, limits.seconds, worker)
        self._one_reads = anyio.CapacityLimiter(1)
        files = [path for path in resources.files("dalle.web").joinpath("page").iterdir() if path.is_file()]
        self._files = {path.name: path.read_bytes() for path in files if _kind(path.name)}
        routes = [
            Route("/", self._file, name="page"),
            *(Route(f"/{name}", self._file) for name in self._files if name != "index.html"),
            Route("/generate", self._generate, methods=["POST"]),
            Route("/bundle", self._bundle, methods=["POST"]),
            Route("/schema", self._schema),
            Route("/models", self._models),
            Route("/healthz", self._health),
        ]
        handlers = {HTTPException: _http_error, Refused: _refused, Full: _full, ClientDisconnect: _gone}
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(Guard, hosts=limits.hosts)],
            exception_handlers=handlers,
            lifespan=self._lifespan,
        )
        self.app.router.redirect_slashes = False
        self.app.state.artist, self.app.state.turns = self.artist, self.turns

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.artist.start()
        try:
            yield
        finally:
            await to_thread.run_sync(self.artist.close)

    async def _file(self, request: Request) -> Response:
        name = request.url.path.rpartition("/")[2] or "index.html"
        headers = {"cache-control": "no-cache"}
        return Response(self._files[name], media_type=f"{_kind(name)}; charset=utf-8", headers=headers)

    async def _schema(self, request: Request) -> JSONResponse:
        return JSONResponse(self.schema)

    async def _models(self, request: Request) -> JSONResponse:
        limits = self.limits
        shown = {"most_n": limits.most_n, "most_caption_chars": limits.most_caption_chars, "seconds": limits.seconds}
        shown |= {"most_bytes": limits.most_bytes, "most_pixels": limits.most_pixels, "chunk": limits.chunk}
        return JSONResponse({"models": self.facts, "limits": shown})

    async def _health(self, request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "waiting": self.turns.waiting, "drawing": self.turns.drawing})

    async def _generate(self, request: Request) -> Answer:
        body = await read_body(request, self.limits.most_bytes)

        def read() -> Order:
            return read_order(read_ask(_json(body), self.schema), self.found, self.limits)

        order = await self._checked(read)
        address = request.client.host if request.client else ""
        client = request.headers.get("x-client", "")[:64]
        job = Job(order, address, client, asyncio.get_running_loop())
        self.turns.add(job)
        streams = "text/event-stream" in request.headers.get("accept", "")
        return (Stream if streams else Whole)(job, self._leave)

    async def _bundle(self, request: Request) -> Response:
        body = await read_body(request, self.limits.most_bytes)
        data, kind = await self._checked(lambda: bundle(_json(body), self.limits))
        return Response(data, media_type=kind)

    async def _checked(self, read: Callable[[], _T]) -> _T:
        """What it returns, read by one thread at a time. Raises Refused for what it complains of."""
        try:
            return await to_thread.run_sync(read, limiter=self._one_reads)
        except ValueError as error:
            raise Refused(" ".join(str(error).split()), 422) from None

    def _leave(self, job: Job) -> None:
        job.leave()
        self.turns.drop(job)


def _json(body: bytes) -> Any:
    try:
        return plain_json.load(body, "the request", halves=True, loose=True)  # which have complaints of their own
    except ValueError:
        raise ValueError("the request: is no JSON; send it as such") from None


def _kind(name: str) -> str | None:
    """The media type of a file of the page; None where it is none."""
    return _KINDS.get(name.rpartition(".")[2])


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    told = {
        404: "there is nothing here; open / for the page, or see docs/serving.md for what can be asked",
        405: f"{request.method} is not answered here; see docs/serving.md for what can be asked",
    }.get(error.status_code, error.detail)
    return refusal(told, error.status_code, error.headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return refusal(str(error), error.status)


async def _full(request: Request, error: Exception) -> JSONResponse:
    return refusal(str(error), 503, {"retry-after": "3"})


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # which nobody reads
