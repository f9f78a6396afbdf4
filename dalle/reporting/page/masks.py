"""The masks of a prior's layers as pictures, as the paper's Figure 11 has them, but of the run's own size."""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from dalle.config import PriorModel, plain_json, plain_yaml
from dalle.masks import Kind, attention_mask, layer_kinds
from dalle.outputs.whole import save_picture

_LEAST_SIDE_PX = 480
"""Of a whole picture; fewer slots are drawn as squares."""
_SHOWN_SIDE_PX, _SMALL_SIDE_PX = 320, 80
"""Of what the page shows: a line of one slot in a thousand would be lost where a browser shrinks it."""
_MOST_SLOTS = 4096
_NOT_SEEN, _CAPTION, _IMAGE = (0, 0, 0, 0), (134, 148, 170, 255), (37, 99, 201, 255)
"""Colours, on light and on dark."""
_TOLD = {
    "row": "the slots before it, back to the same column one row up",
    "column": "the slots above it in its column",
    "conv": "the slots before it in a square around it, by raster order",
    "dense": "all slots before it",
}


def masks_section(folder: Path) -> str:
    """The part of a report with the masks; empty for what is no prior. Pictures are written beside the run's others.

    folder: of the run, whose `config.yaml` says what its prior is
    """
    model = _prior_of(folder / "config.yaml")
    if model is None or model.slots > _MOST_SLOTS:
        return ""
    kinds = layer_kinds(model)
    files = {kind: _pictures(folder, kind, model) for kind in dict.fromkeys(kinds)}
    figures = "".join(_figure(kind, kinds, files[kind], model) for kind in files)
    layers = "".join(
        f'<a href="{files[kind][0]}"><img src="{files[kind][2]}" alt="{kind}" width="72" height="72" loading="lazy">'
        f"{number} {kind}</a>"
        for number, kind in enumerate(kinds, 1)
    )
    note = (
        f"From top to bottom the slot that looks, from left to right what it sees: {model.text_slots} slots of the caption in "
        f"grey, {model.grid}×{model.grid} of the image in blue."
    )
    return (
        f'<h2>Attention masks</h2><p class="soft">{note}</p><div class="masks">{figures}</div>'
        f'<h3>Layer by layer</h3><div class="row layers">{layers}</div>'
    )


STYLE = """
.masks { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr)); }
.masks img { display: block; width: 100%; height: auto; margin: .5rem 0; border: 1px solid var(--line); }
.row.layers img { border-radius: 0; }
"""


def _prior_of(config: Path) -> PriorModel | None:
    """Null where a configuration is of something else, or damaged: a page is drawn of whatever there is."""
    try:
        values = plain_yaml.read_mapping(config)["model"]
        return plain_json.made(PriorModel, values, "model") if "heads" in values and "depth" in values else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _figure(kind: Kind, kinds: list[Kind], files: list[str], model: PriorModel) -> str:
    numbers = [str(number) for number, each in enumerate(kinds, 1) if each == kind]
    shown = ", ".join(numbers) if len(numbers) <= 12 else f"{', '.join(numbers[:4])}, …, {numbers[-1]}"
    where = f"layer{'s' * (len(numbers) > 1)} {shown}" + (
        f" ({len(numbers)} of {len(kinds)})" if len(kinds) > 1 else ""
    )
    name = f"convolutional, {model.conv_kernel}×{model.conv_kernel}" if kind == "conv" else kind
    share = _share(kind, model.text_slots, model.grid, model.conv_kernel)
    alt = f"mask of the {name} layers"
    return (
        f"<figure><figcaption><b>{html.escape(name)}</b><i>{where}</i></figcaption>"
        f'<a href="{files[0]}"><img src="{files[1]}" alt="{html.escape(alt)}" width="480" height="480"></a>'
        f'<p class="soft">An image slot sees the whole caption and {_TOLD[kind]}: {share:.1%} of the causal triangle.</p></figure>'
    )


def _pictures(folder: Path, kind: Kind, model: PriorModel) -> list[str]:
    """Links to a mask's pictures: whole, as it is shown, and small. They are written where they are not there yet."""
    size = f"{model.text_slots}-{model.grid}" + (f"-{model.conv_kernel}" if kind == "conv" else "")
    links = [f"pictures/mask-{kind}-{size}{end}.png" for end in ("", "-shown", "-small")]
    if not all((folder / link).is_file() for link in links):
        (folder / "pictures").mkdir(exist_ok=True)
        whole = mask_colours(kind, model.text_slots, model.grid, model.conv_kernel)
        sides = (len(whole), _SHOWN_SIDE_PX, _SMALL_SIDE_PX)
        for link, side_px in zip(links, sides, strict=True):
            colours = shrunken(whole, side_px)
            # squares of whole pixels, so that they stay sharp
            scale = -(-max(side_px, _LEAST_SIDE_PX if link == links[0] else 0) // len(colours))
            save_picture(Image.fromarray(colours.repeat(scale, axis=0).repeat(scale, axis=1)), folder / link)
    return links


def shrunken(colours_SS4: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows and columns: a square of slots in which one is seen counts as seen, and as of the image where one of these
    is."""
    block = -(-len(colours_SS4) // most)
    if block == 1:
        return colours_SS4
    more = -len(colours_SS4) % block
    padded = np.pad(colours_SS4, ((0, more), (0, more), (0, 0)))
    side = len(padded) // block
    # of each square the seen ones, and among them those of the image, whose colour has more blue
    order = padded[..., 3].astype(int) * 256 + padded[..., 2]
    flat = order.reshape(side, block, side, block).swapaxes(1, 2).reshape(side, side, -1)
    squares = padded.reshape(side, block, side, block, 4).swapaxes(1, 2).reshape(side, side, -1, 4)
    return np.take_along_axis(squares, flat.argmax(axis=2)[:, :, None, None], axis=2)[:, :, 0]


def mask_colours(kind: Kind, text_slots: int, grid: int, conv_kernel: int) -> np.ndarray:
    """A layer's mask, of each query (row) and key (column) a colour with its opacity: uint8 [S, S, 4]."""
    seen_SS = attention_mask(kind, text_slots, grid, conv_kernel).numpy()
    palette = np.array([_NOT_SEEN, _CAPTION, _IMAGE], dtype=np.uint8)
    is_image_S = np.arange(len(seen_SS)) >= text_slots
    return palette[seen_SS * (1 + is_image_S)]


@cache
def _share(kind: Kind, text_slots: int, grid: int, conv_kernel: int) -> float:
    """Of the causal triangle, what the mask keeps."""
    seen_SS = attention_mask(kind, text_slots, grid, conv_kernel)
    return int(seen_SS.sum()) / (len(seen_SS) * (len(seen_SS) + 1) / 2)
