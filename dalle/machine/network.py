"""Whether the Hugging Face Hub is reached. Nothing but models by its names needs it, so to be without it is no failure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from dalle.machine.finding import Finding
from dalle.outputs.threads import Thread

PATIENCE_S = 3.0


def hub_finding(ask: Callable[[float], int] | None = None, patience_s: float = PATIENCE_S) -> Finding:
    """Asks for its first page.

    Args:
        ask: given seconds, the status that it answered with; null asks as fetching a model does, proxies and all
        patience_s: after which it counts as not reached, whatever it hangs in: looking up a name knows no timeout
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("hub", "ok", "HF_HUB_OFFLINE is set: models by a name of the Hub come from its cache alone")
    answer: list[int | Exception] = []

    def run() -> None:
        try:
            answer.append((ask or _head)(patience_s))
        except Exception as error:  # of many kinds, by the Hub's library and the HTTP client beneath it
            answer.append(error)

    began_s = time.monotonic()
    Thread(run).join(patience_s)
    took_s = time.monotonic() - began_s
    rest = "models and data that are here need none; for others copy the Hub's cache, or set HF_ENDPOINT or HTTPS_PROXY"
    if not answer:
        return Finding("hub", "warn", f"the Hugging Face Hub did not answer within {patience_s:.0f} s", rest)
    found = answer[0]
    if isinstance(found, Exception):
        return Finding("hub", "warn", f"the Hugging Face Hub is not reached ({type(found).__name__})", rest)
    if found >= 400:
        return Finding("hub", "warn", f"something answered {found} for the Hugging Face Hub", rest)
    return Finding("hub", "ok", f"the Hugging Face Hub is reached, in {took_s:.1f} s")


def _head(patience_s: float) -> int:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    return get_session().head(constants.ENDPOINT, timeout=patience_s).status_code
