"""The server on its socket, until it is stopped."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from dalle.config import Serve
from dalle.outputs.threads import Workers
from dalle.web.app import make_app
from dalle.web.shelf import load_shelf

_MORE_CONNECTIONS = 64
"""Beside those of requests that wait: of pages, and of requests that are still read."""
_FAREWELL_S = 3
"""That answers may take to end, once the server is stopped."""


def serve(config: Serve, tell: Callable[[str], None]) -> None:
    """Listen, load the models, and draw until Ctrl-C. Who asks while models are loaded waits for it.

    Args:
        config: what is served
        tell: is told the page's address once it is answered to

    Raises:
        ValueError: a model cannot be loaded
        OSError: the address or the port cannot be listened on
    """
    worker = Workers()
    # first, for loading takes a minute; and listening, for a port that is only bound another process could bind too
    with listening(config) as listener:
        shelf = worker.do(load_shelf, config)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        server = uvicorn.Server(server_settings(config, make_app(shelf, config, worker)))
        tell(f"http://{shown}:{port}/")
        asyncio.run(server.serve(sockets=[listener]))


def listening(config: Serve) -> socket.socket:
    """A socket that listens where the configuration says. Raises OSError, with what was asked for."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen()
    except OSError as error:
        listener.close()
        error.filename = f"host {config.host}, port {config.port}"
        raise
    return listener


def server_settings(config: Serve, app: Any) -> uvicorn.Config:
    """How uvicorn answers with an application."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # captions are nobody else's business
        server_header=False,
        proxy_headers=config.proxy is not None,
        forwarded_allow_ips=config.proxy or "",
        limit_concurrency=config.most_waiting + _MORE_CONNECTIONS,
        timeout_graceful_shutdown=_FAREWELL_S,
        lifespan="on",
    )
