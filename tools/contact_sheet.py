"""All captions of an evaluation on one picture, none picked: of each the real image, and beside it the first that was drawn.

    python tools/contact_sheet.py icons/evaluation contact-sheet.webp

The captions go row by row, in the order of the reference; beside each pair is a gap. `--captions FILE` writes them as a list.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from PIL import Image

_GAP_PX = 4


def pairs(evaluation: Path) -> list[tuple[str, Path, Path]]:
    """(caption, real image, drawn image) of every caption that has both. Raises ValueError where one has not.

    Args:
        evaluation: a finished folder of `dalle-evaluate --model … --reference …`
    """
    manifest = json.loads((evaluation / "manifest.json").read_text(encoding="utf-8"))
    captions = manifest["captions"]
    numbers = {
        each["real"]: number for number, each in enumerate(captions) if "real" in each
    }  # of equal images the last
    found = []
    for number, each in enumerate(captions):
        if "real" not in each:
            raise ValueError(f"{evaluation}: caption {number} has no real image: evaluate the captions of a reference")
        real = evaluation / f"real/{numbers[each['real']]:05}.png"
        drawn = evaluation / f"samples/{number:05}/samples/0000.png"
        for path in (real, drawn):
            if not path.is_file():
                raise ValueError(f"{path}: is missing")
        found.append((each["prompt"], real, drawn))
    return found


def sheet(found: list[tuple[str, Path, Path]], side_px: int, columns: int) -> Image.Image:
    """The picture: real and drawn side by side, each `side_px` wide, so many pairs in a row."""
    width = 2 * side_px + _GAP_PX
    rows = math.ceil(len(found) / columns)
    whole = Image.new("RGB", (columns * width - _GAP_PX, rows * (side_px + _GAP_PX) - _GAP_PX), "white")
    for place, (_, *both) in enumerate(found):
        row, column = divmod(place, columns)
        for number, path in enumerate(both):
            with Image.open(path) as image:
                shown = image.convert("RGB").resize((side_px, side_px), Image.Resampling.LANCZOS)
            whole.paste(shown, (column * width + number * side_px, row * (side_px + _GAP_PX)))
    return whole


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("output", type=Path, help="a picture; WebP is the smallest")
    parser.add_argument("--side_px", type=int, default=64)
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--quality", type=int, default=80)
    parser.add_argument("--captions", type=Path, help="also a text file of the captions, in the same order")
    options = parser.parse_args(argv)
    try:
        found = pairs(options.evaluation)
    except (ValueError, OSError) as error:
        sys.exit(f"contact_sheet: {error}")
    sheet(found, options.side_px, options.columns).save(options.output, quality=options.quality)
    if options.captions:
        options.captions.write_text("".join(f"{caption}\n" for caption, *_ in found), encoding="utf-8")
    print(f"{options.output}: {len(found)} captions, {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
