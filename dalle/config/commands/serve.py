"""What `dalle-serve` is asked for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from dalle.config.checks import MOST_ASKED, at_least, at_most, require
from dalle.config.sampling import DEFAULT_MODEL
from dalle.config.training import MOST_PIXELS, Precision

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches."""


@dataclass(frozen=True)
class Serve:
    """A page in the browser to draw with, and a JSON endpoint beside it.

    Args:
        model: models that may be chosen, as `dalle-sample --model` takes them, with spaces between; the first is the one that is
            taken where none is named
        host: address that is listened on; 127.0.0.1 is reached from this machine alone, 0.0.0.0 from all that reach it
        port: port that is listened on; 0 takes a free one, which is told
        names: host names that the page is called by, with spaces between, beside those of this machine. Listening on this machine
            alone it answers to no others, so that no foreign site that names itself after it is answered
        proxy: addresses of proxies, with commas between, whose X-Forwarded-For is believed; null believes none
        rerank: rank by CLIP; null ranks where the model has a reranker, false leaves candidates in the order of their seeds
        chunk: candidates that are drawn together, and the most that one draws before it is somebody else's turn
        precision: precision of the matrix products of drawing
        most_n: candidates of a request, at most
        most_waiting: requests that wait, at most; one more is told to come again
        seconds: most seconds of drawing for a request; what is there by then is its answer
        most_caption_chars: characters of a caption, at most
        upload_mb: megabytes that a request may have, its image among them, or all drawings that are to become a grid or a zip
        upload_megapixels: millions of pixels that an image may have, or all such drawings
    """

    model: str = DEFAULT_MODEL
    host: str = "127.0.0.1"
    port: int = 8000
    names: str = ""
    proxy: str | None = None
    rerank: bool | None = None
    chunk: int = 8
    precision: Precision = "bf16"
    most_n: int = 64
    most_waiting: int = 32
    seconds: float = 120.0
    most_caption_chars: int = 1000
    upload_mb: float = 20.0
    upload_megapixels: float = 25.0

    def __post_init__(self) -> None:
        at_least(self, 1, "chunk", "most_waiting", "most_caption_chars", most=2**20)
        at_least(self, 1, "most_n", most=MOST_ASKED)
        at_most(self, 1e8, "seconds")
        at_most(self, 1e6, "upload_mb")
        require(0 <= self.port < 2**16, f"port {self.port}: must lie between 0, which takes a free one, and 65535")
        require(
            bool(self.host.strip()), "host: is empty; give 127.0.0.1 for this machine alone, 0.0.0.0 for all addresses"
        )
        for name in ("seconds", "upload_mb", "upload_megapixels"):
            require(getattr(self, name) > 0, f"{name} {getattr(self, name)}: must be positive")
        require(
            self.upload_megapixels * 1e6 <= MOST_PIXELS,
            f"upload_megapixels {self.upload_megapixels}: must be at most {MOST_PIXELS // 10**6}, which Pillow opens",
        )
        require(bool(self.models), "model: is empty; name one, such as icons, or several with spaces between")
        require(len(set(self.models)) == len(self.models), f"model {self.model}: names one twice; name each once")

    @property
    def models(self) -> tuple[str, ...]:
        """What `model` names, one by one. Raises ValueError where a quote is left open."""
        try:
            return tuple(shlex.split(self.model))
        except ValueError as error:
            raise ValueError(f"model {self.model}: {error}") from None

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names that are answered to, in small letters; null answers to all."""
        names = frozenset(self.names.lower().split())
        return names | {*LOOPBACK, self.host.lower()} if names or self.host in LOOPBACK else None

    @property
    def most_bytes(self) -> int:
        """Of a request."""
        return int(self.upload_mb * 1e6)

    @property
    def most_pixels(self) -> int:
        """Of an image."""
        return int(self.upload_megapixels * 1e6)
