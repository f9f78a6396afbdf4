"""A model of the Hugging Face Hub: the files that models are made of, and no others, into the Hub's own cache; known to be what
was written. Nothing that is fetched is run: weights are safetensors, all else is JSON, YAML and text.

Loading compares a checksum of each tensor, which finds damage. Here the content hash is made anew besides: priors and rerankers
know their dVAE by it, and who writes a file for others may write any hash into it.
"""

from __future__ import annotations

from pathlib import Path

from dalle.data.sources.hub import hub_error, snapshot
from dalle.models.folder import check_hash, read_header
from dalle.outputs.run_files import WEIGHTS
from dalle.ready.files import MODEL_FILES, PART_FILES, PARTS, parts_of


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
