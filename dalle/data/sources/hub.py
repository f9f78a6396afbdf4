"""Files of the Hugging Face Hub, by its own library, which waits for ever for a hub that takes the connection and then is silent."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SLOWER_TO_WRITE = 12
"""Times as long is waited where something is written there: a commit is answered when it is made."""


def snapshot(name: str, files: Iterable[str]) -> Path:
    """The folder of a repository's files in the Hub's cache, fetched where they are not there.

    Args:
        name: `owner/name`, or `owner/name@revision` with a branch, a tag or a commit
        files: patterns of what is fetched; nothing else is

    Raises:
        Exception: of many kinds, by the Hub's library and the HTTP client beneath it
    """
    from huggingface_hub import snapshot_download

    be_impatient()
    repository, _, revision = name.partition("@")
    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))


def be_impatient() -> None:
    """From here on the library's requests that name no limit end when nothing has come for as long as a download may wait:
    `HF_HUB_DOWNLOAD_TIMEOUT`, 10 s where it is not set."""
    from huggingface_hub.utils import get_session

    client = get_session()
    hooks = client.event_hooks
    if _limit not in hooks["request"]:
        client.event_hooks = {**hooks, "request": [*hooks["request"], _limit]}


def _limit(request: Any) -> None:
    from huggingface_hub import constants

    seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT * (1 if request.method in ("GET", "HEAD") else _SLOWER_TO_WRITE)
    waits = request.extensions.get("timeout", {})
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {kind: seconds if waits.get(kind) is None else waits[kind] for kind in kinds}
