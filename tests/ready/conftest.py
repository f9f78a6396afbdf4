"""A hub, ready models and tiny models of the kind that are given away."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.ready import stand_in_hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in that the Hub's library takes for the Hub, with a cache of its own, for somebody who is logged in."""
    from huggingface_hub import constants

    with stand_in_hub.running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", stand_in_hub.TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield running


@pytest.fixture
def whole(models, tmp_path) -> Path:
    """A whole model to be given away: a copy of the session's, with logs and checkpoints beside it."""
    folder = tmp_path / "mine"
    for part in ("prior", "dvae", "clip"):
        shutil.copytree(models / part, folder / part)
    (folder / "ATTRIBUTION.md").write_text(
        "# Images that the weights were trained on\n\n- Drawn scenes: 64 images, MIT\n"
    )
    return folder


@pytest.fixture
def ready(whole, tmp_path, monkeypatch) -> Path:
    """A folder of ready models in place of the package's, with one of the name `tiny`."""
    folder = tmp_path / "weights"
    for part in ("prior", "dvae", "clip"):
        shutil.copytree(whole / part, folder / "tiny" / part, ignore=shutil.ignore_patterns("checkpoints"))
    (folder / "tiny/README.md").write_text(
        "---\nlicense: mit\nwidget:\n- text: a red circle\n---\n# tiny\n\nCircles, mostly\nred ones.\n\nMore of it.\n"
    )
    (folder / "no model").mkdir()
    monkeypatch.setattr("dalle.ready.names.weights_folder", lambda: folder)
    monkeypatch.setattr("dalle.ready.facts.weights_folder", lambda: folder)
    return folder
