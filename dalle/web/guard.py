"""What stands before every answer: who may ask, how much they may send, and headers that let a browser do nothing else with what
it gets."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from urllib.parse import urlsplit

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger("dalle.web")
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        *(f"{name} 'none'" for name in ("base-uri", "form-action", "frame-ancestors")),
    ]
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
_BODY_S = 30
"""That a request may take to arrive."""


def refusal(message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as all of them are: JSON of one line."""
    return JSONResponse({"error": message}, status, headers)


class Guard:
    """Checks the host and the origin of a request, and adds headers to its answer.

    Args:
        app: that answers
        hosts: names that it may be asked by; null asks nothing of them. A page of another site whose name was made to lead to this
            machine (DNS rebinding) sends that name
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                given = {name.lower() for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        answer: ASGIApp = self._refused(Request(scope)) or self.app
        try:
            await answer(scope, receive, send_guarded)
        except Exception:
            _LOG.exception("a request failed")
            if not begun:
                await _failed()(scope, receive, send_guarded)

    def _refused(self, request: Request) -> JSONResponse | None:
        host = _name(f"//{request.headers.get('host', '')}")
        if self.hosts is not None and host not in self.hosts:
            return refusal("this server is not called by that name; start it with that in dalle-serve --names", 421)
        origin = request.headers.get("origin")
        foreign = origin is not None and _name(origin) not in {host, *(self.hosts or ())}
        # where a browser says it, by the port too: another server of this machine is another site
        foreign = foreign or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        link = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"  # which it may have
        if foreign and not link:
            return refusal("asked for by a page of another site; open this server's own page", 403)
        return None


def _failed() -> JSONResponse:
    return refusal("the server failed; see its log for why", 500)


def _name(address: str) -> str | None:
    """The host of an address, in small letters and without its port; None where there is none."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


class Refused(Exception):
    """A request that is answered with an error. Its message is the error."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body of a request of JSON.

    Raises:
        Refused: it says that it is something else, is too large, whatever it says of its size, or does not arrive
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        # which a page of another site cannot send without asking first
        raise Refused("content-type: must be application/json", 415)
    too_large = Refused(f"the request is larger than {most_bytes / 1e6:g} MB; send a smaller image", 413)
    said = request.headers.get("content-length", "0")
    if not said.isascii() or not said.isdigit() or int(said) > most_bytes:
        raise too_large
    parts, size = [], 0
    with anyio.move_on_after(_BODY_S) as limit:
        async for part in request.stream():
            size += len(part)
            if size > most_bytes:
                raise too_large
            parts.append(part)
    if limit.cancelled_caught:
        raise Refused(f"the request did not arrive within {_BODY_S} s; send it again", 408)
    return b"".join(parts)
