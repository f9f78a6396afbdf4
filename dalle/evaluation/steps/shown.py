"""Pictures of the report: samples by caption beside the real image, and the best and worst by score. None is picked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dalle.evaluation.layout import Prompted
from dalle.evaluation.report.section import Section, folded, grid, picture, prose, row
from dalle.evaluation.steps.reference import Reference
from dalle.outputs.whole import save_picture

_SHOWN, _MORE = 24, 200
_ENDS = 12
REAL = "real"
_PX = 96


def samples_section(
    prompted: Sequence[Prompted],
    reals: Sequence[int | None],
    scores: np.ndarray | None,
    reference: Reference | None,
    folder: Path,
    keep: int,
) -> Section:
    """The first captions with their images, the rest folded; the best and worst by the judge's score.

    Args:
        prompted: captions and their images
        reals: the number of each caption's own reference image, null where it has none
        scores: the CLIP score of each caption's first image; null where nothing judged
        reference: the real images
        folder: of the page, into which the real images that are shown are written
        keep: images shown of each caption
    """
    order = [] if scores is None else sorted(range(len(prompted)), key=lambda place: scores[place], reverse=True)
    ends = [*order[:_ENDS], *order[-_ENDS:]]
    shown = [*range(min(len(prompted), _SHOWN + _MORE)), *ends]
    paths = _write_reals(reference, {reals[place] for place in shown} - {None}, folder)

    def line(place: int) -> str:
        each = prompted[place]
        real = paths.get(reals[place])
        pictures = [] if real is None else [picture(real, folder, "real", _PX)]
        for rank, path in enumerate(each.samples[:keep]):
            note = "" if scores is None or rank else f"{scores[place]:.1f}"
            pictures.append(picture(path, folder, note, _PX))
        return row(pictures, each.prompt)

    told = "The first captions, in their order" + ("; the real image of each first" if paths else "")
    told += "; below the first image, its CLIP score." if scores is not None else "."
    body = prose(told) + first_captions(len(prompted), line)
    if len(order) > 2 * _ENDS:
        for title, places in (("best", order[:_ENDS]), ("worst", order[: -_ENDS - 1 : -1])):
            body += folded(f"The {_ENDS} {title} by CLIP score", grid([line(place) for place in places]))
    return Section("samples", "Samples", body)


def first_captions(count: int, line: Callable[[int], str]) -> str:
    """The lines of the first captions, and folded those of some more.

    Args:
        count: of all captions
        line: the HTML of a caption's pictures, by its number
    """
    body = grid([line(number) for number in range(min(count, _SHOWN))])
    if count > _SHOWN:
        rest = range(_SHOWN, min(count, _SHOWN + _MORE))
        body += folded(f"{len(rest)} more of {count:,} captions", grid([line(number) for number in rest]))
    return body


def _write_reals(reference: Reference | None, numbers: set[int], folder: Path) -> dict[int | None, Path]:
    if reference is None or not numbers:
        return {}
    (folder / REAL).mkdir(exist_ok=True)
    paths: dict[int | None, Path] = {}
    for number, image_YX3 in reference.images(numbers):
        paths[number] = folder / REAL / f"{number:05}.png"
        save_picture(Image.fromarray(image_YX3), paths[number])
    return paths
