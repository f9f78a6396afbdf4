"""What is told of drawings: as JSON, with their files in it, and the command that draws one again."""

from __future__ import annotations

import base64
import io
import json
import shlex
import zipfile
from typing import Any

from dalle.config import Serve
from dalle.sampling.drawing import Drawing, drawing_of, finite_score, png_of
from dalle.sampling.grid import grid_png
from dalle.web.job import Order


def drawing_json(drawing: Drawing, order: Order) -> dict[str, Any]:
    """A drawing, with its file, which has its whole record inside."""
    return {
        "seed": drawing.seed,
        "score": finite_score(drawing),
        "rank": drawing.rank,
        "times": drawing.times,
        "file": file_name(drawing),
        "png": base64.b64encode(png_of(drawing)).decode(),
        "command": command(drawing, order),
    }


def file_name(drawing: Drawing) -> str:
    """What a drawing's file is called: plain letters, whatever its caption is."""
    letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in drawing.caption.lower())
    words = "-".join(filter(None, letters.split("-")))[:40].strip("-") or "drawing"
    return f"{words}-{drawing.seed}.png"


def command(drawing: Drawing, order: Order) -> str:
    """A line that draws it again. With an image it needs that image's codes, which the drawing's file has."""
    ask, sampling = order.ask, order.sampling
    words = ["dalle-sample", "--model", ask.model]
    if order.prompt is not None:
        return shlex.join([*words, "--again", file_name(drawing)])
    words += ["--n", "1", "--keep", "1", "--seed", str(drawing.seed)]
    asked: dict[str, Any] = {"temperature": ask.temperature, "top_k": ask.top_k, "top_p": ask.top_p}
    asked |= {"guidance": ask.guidance, "chunk": drawing.settings["chunk"], "precision": sampling.precision}
    for name, value in asked.items():
        if value is not None and (name, value) != ("precision", type(sampling).precision):
            words += [f"--sampling.{name}", str(value)]
    caption = [f"--caption={ask.caption}"] if ask.caption.startswith("-") else [ask.caption]
    return shlex.join([*words, *caption])


def bundle(values: Any, limits: Serve) -> tuple[bytes, str]:
    """Drawings that were drawn before, as one picture or as a zip of their files; and its media type. Their files are checked like
    any that are uploaded, and what is written is made anew from them.

    Args:
        values: {"as": "grid" or "zip", "drawings": files in base64}

    Raises:
        ValueError: one line of what is wrong
    """
    if not isinstance(values, dict) or set(values) != {"as", "drawings"} or values["as"] not in ("grid", "zip"):
        raise ValueError('the request: must be {"as": "grid" or "zip", "drawings": [files in base64]}')
    files, most = values["drawings"], limits.most_n
    if not isinstance(files, list) or not 0 < len(files) <= most or not all(isinstance(file, str) for file in files):
        raise ValueError(f"drawings: must be a list of 1 to {most} files in base64")
    drawings, left = [], limits.most_pixels
    for number, file in enumerate(files):
        try:
            data = base64.b64decode(file, validate=True)
        except ValueError:
            raise ValueError(f"drawings[{number}]: is no base64; send it as such") from None
        drawings.append(drawing_of(data, f"drawings[{number}]", left))
        image = drawings[-1].image
        left -= image.width * image.height if image is not None else 0
    if values["as"] == "grid":
        return grid_png(drawings), "image/png"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # PNGs do not get smaller
        for place, drawing in enumerate(drawings, 1):
            archive.writestr(f"{place:02}-{file_name(drawing)}", png_of(drawing))
    return buffer.getvalue(), "application/zip"


def event_text(event: str, values: dict[str, Any]) -> bytes:
    """An event of a stream."""
    return f"event: {event}\ndata: {json.dumps(values, separators=(',', ':'))}\n\n".encode()
