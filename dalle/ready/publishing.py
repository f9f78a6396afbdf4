"""Giving a model to the Hugging Face Hub: what leaves is `files.MODEL_FILES`, and nothing else of the folder: no checkpoints, no
logs, and in `config.yaml` no places of this machine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dalle.data.sources.hub import be_impatient, hub_error
from dalle.ready.files import CARD, MODEL_FILES, model_files, public_config

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@contextmanager
def staged(folder: Path, card: str) -> Iterator[Path]:
    """Within the block a folder with all that leaves, and only that: links to the files of the model, its settings without places,
    and the card.

    Args:
        folder: of the model
        card: its text, whatever card lies in the folder
    """
    with tempfile.TemporaryDirectory(prefix="dalle-publish-") as name:
        stage = Path(name)
        for file in model_files(folder):
            path = stage / file
            path.parent.mkdir(exist_ok=True)
            if path.name == "config.yaml":
                path.write_text(public_config(folder / file), encoding="utf-8")
            elif file != CARD:
                path.symlink_to(os.path.realpath(folder / file))
        (stage / CARD).write_text(card, encoding="utf-8")
        yield stage


def upload(stage: Path, repository: str, private: bool, overwrite: bool) -> str:
    """Upload a staged folder, and return the commit that holds it.

    Args:
        stage: of `staged`
        repository: `owner/name`
        private: make it so; one that is there and public is refused
        overwrite: write over the model of a repository that is there; files of it that this model lacks go. An empty one is
            taken without

    Raises:
        ValueError: one line: no network, no right to write, the name is taken
    """
    from huggingface_hub import HfApi

    be_impatient()
    api = HfApi()
    try:
        taken = _create(api, repository, private)
        held = taken and not overwrite and _holds_something(api, repository)
        public = taken and private and not held and not api.model_info(repository).private
        if not (held or public):
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=stage,
                allow_patterns=list(MODEL_FILES),
                delete_patterns=list(MODEL_FILES) if taken else None,
                commit_message="A model of dalle",
            )
            return commit.oid
    except Exception as error:  # of many kinds, by the Hub's library and the HTTP client beneath it
        raise ValueError(
            f"repo {repository}: nothing was published: {hub_error(error, repository, writing=True)}"
        ) from error
    if public:
        raise ValueError(
            f"repo {repository}: is there already and public; change that on its page, or leave --private out"
        )
    raise ValueError(
        f"repo {repository}: is there already; write over its model with --overwrite, or take another name"
    )


def _holds_something(api: HfApi, repository: str) -> bool:
    """Whether there is more in it than the Hub puts there: an upload that was cut off has left nothing, and a person may have made
    it on the Hub's pages."""
    return any(name != ".gitattributes" for name in api.list_repo_files(repository))


def _create(api: HfApi, repository: str, private: bool) -> bool:
    """Make the repository; whether it was there already."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repository, private=private)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 409:
            return True
        raise
    return False
