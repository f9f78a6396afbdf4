"""The reference of the package, a page for each room of it, in which mkdocstrings puts what the docstrings say."""

from __future__ import annotations

import ast
from pathlib import Path

_ROOMS = {
    "config": "What a run may be asked for",
    "sampling": "From captions to ranked images",
    "models": "The networks",
    "objectives": "What each stage minimises",
    "decoding": "From a caption's tokens to codes",
    "text": "Captions as tokens",
    "data": "Pictures and captions in memory",
    "ready": "Models by name",
    "training": "The loop of every stage",
    "optim": "Optimisers and averages",
    "gradients": "Between the backward pass and the optimiser",
    "checkpoints": "A training's state on disk",
    "cluster": "Processes and what they have in common",
    "stages": "What each stage trains on",
    "evaluation": "Figures of models and data",
}
"""Those that somebody writes programs with, in the order in which one meets them."""

_ON_THE_FACE = {"dalle.sampling.loading": "load", "dalle.sampling.drawing": "Drawing"}
"""What the first page shows of a module, which the module's own room then leaves out."""
_WHOLE_ON_THE_FACE = ("dalle.sampling.pipeline",)

_FACE = """# Python

```python
import dalle

pipeline = dalle.load("icons")
drawings = pipeline.generate("a 3d emoji of a chicken", n=32, keep=4)
```

`dalle` has `load`, `Pipeline`, `DVAE`, `Prior` and `Tokenizer`; they are loaded when first used. Tensors carry their
axes as a suffix, `images_BCYX`; [architecture](../../architecture.md#axes) has the letters, and says what lies in which
room.

{rooms}

::: dalle.sampling.loading.load

::: dalle.sampling.pipeline.Pipeline

::: dalle.sampling.drawing.Drawing
"""


def python_pages(root: Path) -> dict[str, str]:
    """Markdown by path below `reference/python`. root: of the repository."""
    rooms = "\n".join(f"- [`dalle.{room}`]({room}.md): {title[0].lower()}{title[1:]}" for room, title in _ROOMS.items())
    pages = {"index.md": _FACE.format(rooms=rooms)}
    for room, title in _ROOMS.items():
        folder = root / "dalle" / room
        names = [_name(root, path) for path in sorted(folder.rglob("[!_]*.py")) if _has_public(path)]
        blocks = [_block(name) for name in names if name not in _WHOLE_ON_THE_FACE]
        pages[f"{room}.md"] = "\n\n".join([f"# `dalle.{room}`", f"{title}.", *blocks]) + "\n"
    return pages


def _block(module: str) -> str:
    left_out = _ON_THE_FACE.get(module)
    return f"::: {module}" + (f'\n    options:\n      filters: ["!^_", "!^{left_out}$"]' if left_out else "")


def _name(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


def _has_public(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_") for node in body)
