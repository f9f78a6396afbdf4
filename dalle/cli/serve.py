"""`dalle-serve`: a page to draw with, and the JSON endpoint beside it."""

from __future__ import annotations

import sys
import warnings

from dalle.cli import arguments
from dalle.config import Serve

_COMMAND = "dalle-serve"


def main() -> None:
    """Console script."""
    arguments.plain_warnings(_COMMAND)
    arguments.run(serve, _COMMAND)


def serve(argv: list[str] | None = None) -> None:
    """Parse, listen, load, answer."""
    config = arguments.parse(Serve, _COMMAND, argv)
    try:
        from dalle.web import serving
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "anyio"):
            raise
        raise ValueError(f"the page needs {error.name}: pip install 'dalle[web]'") from None

    def tell(address: str) -> None:
        # what a caption or an image is warned of is told to the one who sent it, and not kept
        warnings.simplefilter("ignore")
        print(f"{_COMMAND}: drawing at {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        if config.hosts is None:
            told = "answers to all who reach this machine, without a password: docs/serving.md says how to put a proxy before it"
            print(f"{_COMMAND}: {told}", file=sys.stderr, flush=True)

    serving.serve(config, tell)
