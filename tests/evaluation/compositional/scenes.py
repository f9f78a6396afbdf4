"""Drawn pictures of claims, laid out plainly."""

from itertools import product

import numpy as np

from dalle.data.shapes import Claim, ClaimedObject, Scene, SceneObject, SeenObject, draw

PLACES = {
    "alone": [(0.5, 0.5)],
    "left of": [(0.25, 0.5), (0.75, 0.5)],
    "above": [(0.5, 0.25), (0.5, 0.75)],
    "one above two": [(0.5, 0.25), (0.25, 0.75), (0.75, 0.75)],
    "one below two": [(0.5, 0.75), (0.25, 0.25), (0.75, 0.25)],
}


def picture(things, size_px=32):
    """uint8 [Y, X, 3] of (shape, colour, x, y) and, where it is not 3/8, the diameter."""
    objects = [
        SceneObject(shape, colour, "", False, *(more or [3 / 8]), x=x, y=y) for shape, colour, x, y, *more in things
    ]
    return np.asarray(draw(Scene(tuple(objects), "alone", None, False, "white"), size_px))


def things(claim: Claim):
    """What `picture` draws for a claim without sizes."""
    return [
        [thing.shape, thing.colour, *place]
        for thing, place in zip(claim.objects, PLACES[claim.arrangement], strict=True)
    ]


def random_seen(rng, count):
    """Objects on a coarse grid, so that relations often hold, of few kinds, so that they are often those of a claim; some
    unnamed."""
    cells = rng.permutation(list(product((0.2, 0.5, 0.8), repeat=2)))[:count]
    return tuple(
        SeenObject(
            rng.choice(["circle", "square", None], p=[0.45, 0.45, 0.1]),
            rng.choice(["red", "blue", None], p=[0.45, 0.45, 0.1]),
            float(rng.choice([0.375, 0.5])),
            *map(float, cell),
            confidence=1.0,
        )
        for cell in cells
    )


def random_claim(rng):
    """Of the same few kinds."""
    arrangement = str(rng.choice(list(PLACES)))
    objects = tuple(
        ClaimedObject(
            str(rng.choice(["circle", "square"])),
            str(rng.choice(["red", "blue"])),
            rng.choice([None, "small", "large"], p=[0.8, 0.1, 0.1]),
        )
        for _ in PLACES[arrangement]
    )
    position = rng.choice([None, "centre", "top left"]) if arrangement == "alone" else None
    return Claim(objects, arrangement, position)
