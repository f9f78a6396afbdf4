"""A model of the Hugging Face Hub: the files that models are made of, and no others, into the Hub's own cache; known to be what
was written. Nothing that is fetched is run: weights are safetensors, all else is JSON, YAML and text.

Loading compares a checksum of each tensor, which finds damage. Here the content hash is made anew besides: priors and rerankers
know their dVAE by it, and who writes a file for others may write any hash into it.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from dalle.data.sources.hub import snapshot
from dalle.models.folder import check_hash, read_header
from dalle.ready.files import MODEL_FILES, PART_FILES, PARTS, WEIGHTS, parts_of


def fetch(name: str) -> Path:
    """The folder of a repository's model in the cache, fetched where it is not there. Without a network it is what the cache has.

    Args:
        name: `owner/name`, or `owner/name@revision` with a branch, a tag or a commit

    Raises:
        ValueError: one line: there is no such repository or revision, it is private, there is no network, it holds no model of
            this program, or one whose weights are not those that its hash stands for
    """
    try:
        folder = snapshot(name, [*MODEL_FILES, *PART_FILES])
    except Exception as error:  # of many kinds
        raise ValueError(
            f"model {name}: no such folder here, and {hub_error(error, name.partition('@')[0])}"
        ) from error
    single = (folder / WEIGHTS).is_file()
    if not single and not parts_of(folder):
        raise ValueError(
            f"model {name}: the Hub's repository holds no model of this program: neither {WEIGHTS} nor "
            f"{', '.join(f'{part}/{WEIGHTS}' for part in PARTS[:2])}; name one that does (weights in other files are not read)"
        )
    for part in [folder] if single else [folder / part for part in parts_of(folder)]:
        try:
            read_header(part)
            check_hash(part)
        except ValueError as error:
            # what was damaged on its way lies in the cache, and would be taken from there for ever
            raise ValueError(f"model {name}: {error}; or delete {folder.parents[1]} to fetch it anew") from None
    return folder


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
