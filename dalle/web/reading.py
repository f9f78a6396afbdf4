"""From a request to an order that can be drawn: all that may be wrong with it is found here, before it waits for its turn.

One thread reads, one request at a time, so that a few large images are never in memory together, and so that what a caption's or
an image's reading warns of goes to the one who sent it.
"""

from __future__ import annotations

import base64
import binascii
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from dalle.config import Sampling, Serve
from dalle.data.images import decode
from dalle.sampling.drawing import codes_of, drawing_of
from dalle.sampling.model_set import Models
from dalle.sampling.prompt import Prompt, central_square, known_codes, make_prompt
from dalle.web.asking import Ask
from dalle.web.job import Order


def read_order(ask: Ask, models: Mapping[str, Models], limits: Serve) -> Order:
    """An order.

    Args:
        ask: what is asked for, within the schema
        models: by the names of the schema
        limits: of this server

    Raises:
        ValueError: one line of what is wrong with it
    """
    found = models[ask.model]
    with _noted() as notes:
        sampling = found.settle(
            Sampling(ask.temperature, ask.top_k, ask.top_p, ask.guidance, limits.chunk, limits.precision)
        )
        found.check([ask.caption])
        prompt, square_YX3 = (None, None) if ask.image is None else _read_image(ask, found, limits.most_pixels)
    ask = replace(ask, image=None)  # which is read, and would wait with it
    return Order(ask, sampling, prompt, square_YX3, tuple(dict.fromkeys(notes)))


def _read_image(ask: Ask, found: Models, most_pixels: int) -> tuple[Prompt, np.ndarray | None]:
    """What is kept of an image; and, where its codes are not known, what they are to be made of, uint8 [Y, X, 3] of the models'
    size."""
    assert ask.image is not None
    try:
        data = base64.b64decode(ask.image, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("image: is no base64; send it as such") from None
    try:
        image = decode(data, most_pixels)
    except ValueError as error:
        why = str(error).removeprefix("image ").removeprefix("of ")
        raise ValueError(f"image: {why}; send another") from None
    try:
        origin = drawing_of(data, "image", most_pixels)
    except ValueError:
        origin = None  # any other picture
    grid, size_px = found.prior_config.grid, found.image_size_px
    known, square = None, None
    if origin is not None:
        known = known_codes("image", origin, codes_of(found.hashes), found.prior_config, size_px)

    def encode_later(image_YX3: np.ndarray) -> np.ndarray:
        return np.zeros(grid**2, np.int64)  # the models are another thread's

    prompt = make_prompt(image, ask.rows, ask.region, grid, size_px, encode_later, known)
    if known is None:
        square = central_square(image, size_px)
    return prompt, square


_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def _noted() -> Iterator[list[str]]:
    """What this thread warns of within the block. Where warnings go is a matter of the whole process, so what others warn of
    meanwhile is handed on."""
    notes: list[str] = []
    mine = threading.get_ident()
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("always")
        others = warnings.showwarning

        def show(message: Any, *where: Any, **more: Any) -> None:
            if threading.get_ident() == mine:
                notes.append(str(message))
            else:
                others(message, *where, **more)

        warnings.showwarning = show
        yield notes
