"""From a name to a folder: the only place where a model's name is understood.

A name is, in this order, a folder, unless it has the name of a ready model and holds no model itself; a model that comes with
the package, such as `shapes`; or a repository of the Hugging Face
Hub, `owner/name` or `owner/name@revision`. What comes with the package is what lies in `weights/`: it is told from the folders
that are there.
"""

from __future__ import annotations

import difflib
import re
from importlib import resources
from pathlib import Path

from dalle.config.checks import require, warn
from dalle.outputs.run_files import WEIGHTS
from dalle.ready.files import PARTS, parts_of

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@.+)?", re.ASCII)


def weights_folder() -> Path:
    """Where the models lie that come with the package; there may be none."""
    return Path(str(resources.files("dalle.ready"))) / "weights"


def ready_names() -> list[str]:
    """Names of the models that come with the package, sorted."""
    folder = weights_folder()
    return sorted(path.name for path in folder.iterdir() if parts_of(path)) if folder.is_dir() else []


def find_model(name: str | Path, setting: str = "model") -> Path:
    """The folder of a whole model, which holds `prior/` and `dvae/`, and usually `clip/`. Where it is not here yet, it is fetched.

    Args:
        name: a folder, the name of a ready model, or `owner/name[@revision]` of the Hugging Face Hub
        setting: that it is the value of, for what is said

    Raises:
        ValueError: there is no such model, it cannot be fetched, or what was fetched is not what its hashes say
    """
    return _find(name, setting, "")


def find_part(name: str | Path, part: str) -> Path:
    """The folder of a single model.

    Args:
        name: its folder; `shapes/prior` of a ready model; or a whole model, by any name that `find_model` takes, whose part is meant
        part: "prior", "dvae", "clip" or "codes-clip"

    Raises:
        ValueError: as `find_model`
    """
    assert part in PARTS
    folder = _find(name, part, f", or {part}/ in one of them")
    return folder / part if (folder / part).is_dir() and not (folder / WEIGHTS).is_file() else folder


def find_clip(name: str | Path) -> str:
    """The folder of a reranker, or what was given, where that is of another kind: `ARCHITECTURE:PRETRAINED` of open_clip."""
    text = str(name)
    if not Path(name).expanduser().is_dir() and (":" in text or not (_ready(text) or _HUB_NAME.fullmatch(text))):
        return text
    return str(find_part(name, "clip"))


def _find(name: str | Path, setting: str, more: str) -> Path:
    text, path = str(name), Path(name).expanduser()
    require(bool(text.strip()), f"{setting}: is empty; give a folder, a ready model or owner/name of the Hub")
    ready = _ready(text)
    if path.is_dir():
        if ready is None:
            return path
        if any((path / held).exists() for held in (WEIGHTS, *PARTS, "checkpoints")):
            warn(
                f"{setting} {text}: is the folder {path.absolute()}, not the ready model of this name; that one is {ready}"
            )
            return path
        # as anybody may have a folder icons
        warn(f"{setting} {text}: is the ready model; the folder {path.absolute()} holds none")
    if ready is not None:
        return ready
    require(not path.exists(), f"{setting} {text}: is a file; name a folder with {WEIGHTS} in it, or in its parts")
    if _HUB_NAME.fullmatch(text):
        from dalle.ready.hub import fetch

        return fetch(text)
    known = ready_names()
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.6)
    hint = f"the nearest is {near[0]}" if near else f"there are {', '.join(known)}"
    raise ValueError(
        f"{setting} {text}: no such folder, and no such ready model ({hint if known else 'this installation has none'}); "
        f"give a folder, the name of a ready model, or owner/name of the Hugging Face Hub{more}"
    )


def _ready(name: str) -> Path | None:
    """The folder of a ready model, `shapes`, or of a part of it, `shapes/prior`."""
    model, _, part = name.partition("/")
    if model not in ready_names() or part not in ("", *parts_of(weights_folder() / model)):
        return None
    return weights_folder() / name
