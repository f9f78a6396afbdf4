"""All captions of an evaluation on one picture, none picked: of each the real image, and beside it the first that was drawn.

    python tools/contact_sheet.py icons/evaluation contact-sheet.webp
    python tools/contact_sheet.py transformer/evaluation gan/evaluation both.webp --most 48

The captions go row by row, in the order of the reference; between them is a gap. Of several evaluations, of the same captions, the
drawings stand beside each other. `--captions FILE` writes the captions as a list.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs without an installation

from PIL import Image

from dalle.evaluation.steps.reference import read_reference

_GAP_PX = 4


def pairs(
    evaluation: Path, reference: str | None = None, most: int | None = None
) -> list[tuple[str, Image.Image, Image.Image]]:
    """(caption, real image, drawn image) of every caption.

    Args:
        evaluation: a finished folder of `dalle-evaluate --model … --reference …`
        reference: where its real images lie now; null means where they were
        most: only so many captions, the first

    Raises:
        ValueError: a caption has no real image, or it is not among those that lie there
        OSError: a drawing is missing
    """
    manifest = json.loads((evaluation / "manifest.json").read_text(encoding="utf-8"))
    request, captions = manifest["request"], manifest["captions"][:most]
    drawn = []
    for number in range(len(captions)):
        with Image.open(evaluation / f"samples/{number:05}/samples/0000.png") as image:
            drawn.append(image.convert("RGB"))
    found = read_reference(reference or request["reference"], drawn[0].width, request["most"])
    numbers = {digest: number for number, digest in enumerate(found.digests)}
    if missing := [each["prompt"] for each in captions if each.get("real") not in numbers]:
        raise ValueError(f"{evaluation}: {len(missing)} captions have no real image in {found.spec}: {missing[0]!r}")
    reals = {number: Image.fromarray(image_YX3) for number, image_YX3 in found.images(numbers.values())}
    return [(each["prompt"], reals[numbers[each["real"]]], image) for each, image in zip(captions, drawn, strict=True)]


def beside(
    evaluations: list[Path], reference: str | None = None, most: int | None = None
) -> list[tuple[str, list[Image.Image]]]:
    """(caption, [real image, drawing of each evaluation]) of every caption.

    Raises:
        ValueError: two evaluations are not of the same captions and real images; as `pairs`
        OSError: as `pairs`
    """
    first, *others = (pairs(evaluation, reference, most) for evaluation in evaluations)
    for evaluation, other in zip(evaluations[1:], others, strict=True):
        one, two = ([(caption, real.tobytes()) for caption, real, _ in found] for found in (first, other))
        if one != two:
            raise ValueError(f"{evaluation}: not the captions and real images of {evaluations[0]}")
    return [
        (caption, [real, drawn, *(other[number][2] for other in others)])
        for number, (caption, real, drawn) in enumerate(first)
    ]


def sheet(found: list[tuple[str, list[Image.Image]]], side_px: int, columns: int) -> Image.Image:
    """The picture: real and drawn side by side, each `side_px` wide, so many captions in a row."""
    width = len(found[0][1]) * side_px + _GAP_PX
    rows = math.ceil(len(found) / columns)
    whole = Image.new("RGB", (columns * width - _GAP_PX, rows * (side_px + _GAP_PX) - _GAP_PX), "white")
    for place, (_, images) in enumerate(found):
        row, column = divmod(place, columns)
        for number, image in enumerate(images):
            shown = image.resize((side_px, side_px), Image.Resampling.LANCZOS)
            whole.paste(shown, (column * width + number * side_px, row * (side_px + _GAP_PX)))
    return whole


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path, nargs="+")
    parser.add_argument("output", type=Path, help="a picture; WebP is the smallest")
    parser.add_argument("--reference", help="shards of the real images, if they do not lie where they lay")
    parser.add_argument("--side_px", type=int, default=64)
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--quality", type=int, default=80)
    parser.add_argument("--most", type=int, help="only so many captions, the first")
    parser.add_argument("--captions", type=Path, help="also a text file of the captions, in the same order")
    options = parser.parse_args(argv)
    if options.most is not None and options.most < 1:
        parser.error(f"--most {options.most}: must be at least 1")
    try:
        found = beside(options.evaluations, options.reference, options.most)
    except (ValueError, OSError) as error:
        sys.exit(f"contact_sheet: {error}")
    sheet(found, options.side_px, options.columns).save(options.output, quality=options.quality)
    if options.captions:
        options.captions.write_text("".join(f"{caption}\n" for caption, *_ in found), encoding="utf-8")
    print(f"{options.output}: {len(found)} captions, {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
