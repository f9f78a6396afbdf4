"""The configurations that come with the package, by name: `demo/prior` is `configs/demo/prior.yaml`."""

from __future__ import annotations

import difflib
from pathlib import Path


def folder() -> Path:
    """Where they lie: in `configs/` of a checkout, in the package itself where it was installed from a wheel."""
    package = Path(__file__).parents[1]
    checkout = package.parent / "configs"
    return checkout if (package.parent / "pyproject.toml").is_file() and checkout.is_dir() else package / "configs"


def names() -> list[str]:
    """All names, sorted."""
    return sorted(path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob("*.yaml"))


def find(name: str) -> Path:
    """The file of this path, or else of this name. Raises ValueError when there is neither, with what is nearest."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = names()
    if name in known:
        return folder() / f"{name}.yaml"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"the nearest that is shipped is {near[0]}" if near else f"shipped are {', '.join(known)}"
    raise ValueError(f"config: no such file: {name}; {hint}")
