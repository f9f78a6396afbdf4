"""The model card: what a model draws and how, what it was trained on, by which recipe, and how well it does; a `README.md` with
the front matter that the Hugging Face Hub reads.

A card that this program wrote ends in a comment with its hash, by which it is known again. One that a person wrote, or changed, is
theirs.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dalle.config import plain_json
from dalle.models.folder import read_config
from dalle.ready.facts import FIGURES, Card, drawing_line, in_millions, num_weights
from dalle.ready.files import ATTRIBUTION, parts_of, read_settings, read_text, without_places
from dalle.reporting.report import read_lines, read_run

_MARK = "<!-- dalle-publish {} -->"
_RECIPE = (
    *("run.steps", "run.batch_size", "run.precision", "optimizer.step_size.start", "optimizer.muon_step_size_factor"),
    *(
        "run.ema_decay",
        "caption_dropout",
        "bpe_dropout",
        "sampling_temperature",
        "sampling_guidance",
        "images.augmentation",
        "data",
        "start_from",
    ),
)
"""Settings that one asks for first; all of them stand in the config.yaml beside the weights."""
_SIZES = {
    "prior": ("grid", "text_slots", "width", "depth", "heads"),
    "dvae": ("image_size_px", "grid", "codebook_size"),
    "clip": ("reads", "image_size_px", "vision_width", "vision_layers", "text_layers"),
}
_SAID = {"dvae": "discrete VAE", "prior": "sparse transformer", "clip": "reranker", "codes-clip": "reader of codes"}


@dataclass(frozen=True)
class Told:
    """What the card cannot find in the folder.

    Args:
        name: of the model: what `--model` takes
        title: of the card
        card: what it draws, its licence, a caption to try, the hardware; figures, where `runs` has none
        runs: folder of the trainings, whose figures it tells
    """

    name: str
    title: str
    card: Card
    runs: Path


def is_ours(path: Path) -> bool:
    """Whether a card was written here and not touched since, so that it may be written anew. One that is missing may be, too."""
    if not path.exists():
        return True
    text = path.read_text(encoding="utf-8", errors="replace")
    return text == _marked(text[: text.rfind(_MARK.partition("{")[0])])


def make_card(folder: Path, told: Told) -> str:
    """The card of a whole model.

    Args:
        folder: of the model
        told: what is not in it

    Raises:
        ValueError: a part, or what its training has left, cannot be read
    """
    sections = [_heading(told), _drawing(told), _parts(folder), _data(folder), _recipe(folder), _figures(told)]
    return _marked("\n".join(section for section in sections if section))


def _marked(text: str) -> str:
    return text + _MARK.format(hashlib.sha256(text.encode()).hexdigest()[:16]) + "\n"


def _heading(told: Told) -> str:
    ours = {
        "license": told.card.licence,
        "library_name": "dalle",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "dalle", "discrete-vae", "safetensors"],
        **({"widget": [{"text": told.card.example}]} if told.card.example else {}),
    }
    front = yaml.safe_dump({**told.card.front, **ours}, sort_keys=False, allow_unicode=True)
    about = told.card.about or "Pictures for captions in the manner of those that it was trained on."
    return f"---\n{front}---\n# {_cell(told.title)}\n\n{about}\n"


def _drawing(told: Told) -> str:
    caption = told.card.example or "a caption"
    return f"""## Drawing

```bash
{drawing_line(told.name, caption)}
```

```python
import dalle

for drawing in dalle.load({json.dumps(told.name)}).generate({json.dumps(caption, ensure_ascii=False)}, n=32, keep=4):
    drawing.image.save(f"{{drawing.rank}}.png")
```
"""


def _parts(folder: Path) -> str:
    lines = ["## Parts", "", "| part | what it is | weights | sizes |", "|---|---|---|---|"]
    for part in parts_of(folder):
        kind = part.rpartition("-")[2]
        config = read_config(folder / part, kind)
        sizes = ", ".join(f"{name.replace('_', ' ')} {getattr(config, name)}" for name in _SIZES[kind])
        lines.append(f"| `{part}` | {_SAID[part]} | {in_millions(num_weights(folder / part))} | {sizes} |")
    return "\n".join(lines) + "\n"


def _data(folder: Path) -> str:
    path = folder / ATTRIBUTION
    if not path.is_file():
        return ""
    body = re.sub(r"^# .*\n+", "", read_text(path))  # its heading is this section's
    return f"## Training data and licences\n\n{re.sub(r'(?m)^#', '##', body).strip()}\n"


def _recipe(folder: Path) -> str:
    rows = []
    for part in parts_of(folder):
        path = folder / part / "config.yaml"
        settings = _flat(without_places(read_settings(path))) if path.is_file() else {}
        said = [f"{name} {_cell(settings[name])}" for name in _RECIPE if settings.get(name) is not None]
        rows += [f"| `{part}` | {'; '.join(said)} |"] if said else []
    if not rows:
        return ""
    lines = [
        "## Recipe",
        "",
        "All settings stand in the `config.yaml` of each part.",
        "",
        "| part | settings |",
        "|---|---|",
    ]
    return "\n".join([*lines, *rows]) + "\n"


def _figures(told: Told) -> str:
    """Hours and last figures of each training, and those of an evaluation, where there are any."""
    rows = []
    for part in _SAID:
        records = read_lines(told.runs / part / "metrics.jsonl")
        run = read_run(told.runs / part)
        if not records:
            continue
        hours = max(float(record.get("time_s", 0)) for record in records) / 3600
        last = {name: value for record in records for name, value in record.items() if name.startswith("valid/")}
        said = ", ".join(
            f"{_cell(name.removeprefix('valid/'))} {value:.4g}" for name, value in last.items() if _is_figure(value)
        )
        steps = max(int(record.get("step", 0)) for record in records)
        unfinished = "" if run.get("status", "finished") == "finished" else f" ({run['status']})"
        rows.append(f"| `{part}` | {steps:,}{unfinished} | {hours:.2f} | {said} |")
    lines = ["| part | updates | hours | held out |", "|---|---|---|---|", *rows, ""] if rows else []
    measured = _read(told.runs / "metrics.json")
    if figures := [(name, value) for name, value in _flat(measured).items() if _is_figure(value)]:
        lines += ["| evaluation | |", "|---|---|", *(f"| {_cell(name)} | {value:.4g} |" for name, value in figures), ""]
    if not lines and told.card.figures:
        lines = [told.card.figures, ""]
    if told.card.hardware:
        lines += [f"Trained on {told.card.hardware}.", ""]
    return "\n".join([FIGURES, *lines]) if lines else ""


def _cell(value: Any) -> str:
    """A value as text in one line, no character of which Markdown or HTML takes for its own."""
    return re.sub(r"([|*\\`])", r"\\\1", " ".join(str(value).split())).replace("<", "&lt;")


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where there is none. Raises ValueError, with its name, where it is damaged."""
    return plain_json.read_mapping(path) if path.is_file() else {}


def _flat(settings: dict, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
