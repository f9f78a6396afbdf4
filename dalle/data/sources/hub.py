"""Files of the Hugging Face Hub, by its own library, which waits for ever for a hub that takes the connection and then is silent;
and what went wrong between here and there, in words."""

from __future__ import annotations

import errno
import json
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


def ask_for(repository: str, files: Iterable[str]) -> None:
    """See whether the Hub answers for a repository, unless one of some files is in the cache: its library's downloads of single
    files are tried for half a minute before they fail.

    Raises:
        Exception: as `snapshot`, at once
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if not any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        be_impatient()
        HfApi().model_info(repository)


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


def hub_error(error: BaseException, repository: str, writing: bool = False) -> str:
    """What went wrong between here and the Hub, in words that follow "and".

    Args:
        error: whatever its library raised
        repository: `owner/name`
        writing: there, which takes a token in any case
    """
    from huggingface_hub import errors

    # of one that may not be read the Hub says no other than of one that is not there
    if writing and isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return _refused(error, repository)
    if isinstance(error, errors.GatedRepoError):
        return f"the Hub's {repository} is given only to those who asked on its page; ask there, and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub has no {repository}, or it is private; for a private one log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the Hub's {repository} has no such revision; give a branch, a tag or a whole commit hash after the @"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        cause = error.__cause__
        if isinstance(cause, errors.HfHubHTTPError) and cause.response is not None:
            return f"the Hub answered {cause.response.status_code} for {repository}, which is not whole in the cache; try later"
        if cause is None or isinstance(cause, errors.OfflineModeIsEnabled) or _is_of_the_way(cause):
            return f"the Hub cannot be reached for {repository}, which is not whole in the cache; see whether there is a network"
        error = cause
    if _is_of_the_way(error):
        return f"the Hub cannot be reached for {repository}; see whether there is a network"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return _refused(error, repository)
    if isinstance(error, errors.HFValidationError):
        return f"{repository} is no name that the Hub knows: it must be owner/name, of letters, digits, -, _ and ."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{repository} does not fit the disk of the cache, {error.filename or 'which is full'}; make room, or name another with HF_HOME"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"the cache cannot take {repository}: {error.filename or 'it'} may not be written; name another with HF_HOME, or set "
            "HF_HUB_OFFLINE=1 to take what is there"
        )
    if isinstance(error, json.JSONDecodeError):
        return f"the Hub's {repository} is not answered for as the Hub does; see whether a page to log in to this network is in the way"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"the Hub's {repository} did not come through: {type(error).__name__}: {first[:200]}; try later"


def _is_of_the_way(error: BaseException) -> bool:
    """Whether nothing came from the other end, by the names that HTTP clients have for it."""
    return any(word in type(error).__name__ for word in ("Connect", "Timeout", "Proxy"))


def _refused(error: Any, repository: str) -> str:
    """Of an answer that is no success."""
    code, said = error.response.status_code, error.response.headers.get("X-Error-Message") or ""
    reason = {
        401: "the Hub does not take this token; log in with `hf auth login`, or set HF_TOKEN",
        403: f"the Hub refuses {repository} to this token: it may not write there, or lacks the right to; take one that may",
        409: f"the Hub has {repository} already; take another name",
        429: "the Hub has had too many requests from here; try later",
    }.get(code, f"the Hub answered {code} for {repository}; try later")
    return reason + (f" ({' '.join(said.split())[:200]})" if said else "")
