"""What a drawn scene holds: the vocabulary, the scene itself, how scenes are sampled, and which combinations training never sees.

A scene is one to three coloured shapes on a light background, arranged so that a short sentence describes them without doubt.
Everything is a fraction of the image's side, x to the right and y down, so one scene can be drawn at any resolution.
The drawn data set is ours (the paper has nothing like it): small enough to learn in minutes, and with a checker that needs no judge.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import combinations, product
from typing import TypeVar

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross")
# Every two of these are at least 90 apart in RGB, and none lies on the line from another to a light background for more than a
# quarter of its length: blurring a red cross must not make it pink.
COLOURS = {
    "red": (205, 25, 35),
    "yellow": (240, 208, 20),
    "green": (25, 145, 60),
    "blue": (30, 85, 220),
    "purple": (115, 35, 155),
    "black": (25, 25, 30),
}
# Scenes are laid out on a grid of cells, so that a small codebook can learn in minutes what there is to see.
CELLS = 8
# Bounding-box diameters in cells. The gap between the classes lets a checker tell them apart in a blurred image.
SIZES = {"small": 3, "large": 4}
GAP_CELLS = 1  # at least so much lies between two objects, so that a blur does not run them together
BACKGROUNDS = {
    "white": (253, 253, 253),
    "cream": (253, 243, 214),
    "sky blue": (206, 230, 252),
}
# Where a lone object stands: (x, y) of the corner that it touches, or of the middle.
POSITIONS = {
    "top left": (0.0, 0.0),
    "top right": (1.0, 0.0),
    "bottom left": (0.0, 1.0),
    "bottom right": (1.0, 1.0),
    "centre": (0.5, 0.5),
}
# What each arrangement states, as (relation, index, index): rows read left to right, columns top to bottom.
ARRANGEMENTS = {
    "alone": (),
    "left of": (("left of", 0, 1),),
    "above": (("above", 0, 1),),
    "one above two": (("above", 0, 1), ("above", 0, 2)),
    "one below two": (("above", 1, 0), ("above", 2, 0)),
}
ARRANGEMENTS_BY_COUNT = {1: ("alone",), 2: ("left of", "above"), 3: ("one above two", "one below two")}

HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class SceneObject:
    """One object: names of its shape, colour and size class; diameter and centre as fractions of the side."""

    shape: str
    colour: str
    size: str
    size_stated: bool
    diameter: float
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """A scene ready to draw. `position` is that of a lone object, None for several."""

    objects: tuple[SceneObject, ...]
    arrangement: str
    position: str | None
    position_stated: bool
    background: str


@cache
def _one_in_eight(words: str) -> bool:
    # Not Python's hash(), which differs from process to process.
    digest = blake2b(f"dalle shapes {words}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def is_place_held_out(colour: str, shape: str, position: str) -> bool:
    """Whether training never shows this colour and shape alone at this position."""
    return _one_in_eight(f"{colour} {shape} {position}")


def is_pair_held_out(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether training never shows these two (colour, shape) in one scene; the order does not matter."""
    low, high = sorted((first, second))
    return _one_in_eight(" ".join((*low, "with", *high)))


def _has_held_out_pair(looks: list[tuple[str, str]]) -> bool:
    return any(is_pair_held_out(a, b) for a, b in combinations(looks, 2))


def is_held_out(scene: Scene) -> bool:
    """Whether the scene shows a held-out combination; False for every training scene, True for every validation scene."""
    looks = [(o.colour, o.shape) for o in scene.objects]
    if scene.position:
        return is_place_held_out(*looks[0], scene.position)
    return _has_held_out_pair(looks)


@cache
def _places(held_out: bool) -> tuple[tuple[str, str, str], ...]:
    """(colour, shape, position) of the lone objects of one split."""
    return tuple(place for place in product(COLOURS, SHAPES, POSITIONS) if is_place_held_out(*place) == held_out)


_T = TypeVar("_T")


def pick(rng: np.random.Generator, names: Collection[_T]) -> _T:
    return tuple(names)[int(rng.integers(len(names)))]


def _sample_looks(rng: np.random.Generator, num_objects: int, held_out: bool) -> list[tuple[str, str]]:
    """(colour, shape) of each of several objects, all different, obeying the hold-out."""
    while True:
        looks = [(pick(rng, COLOURS), pick(rng, SHAPES)) for _ in range(num_objects)]
        if len(set(looks)) == num_objects and held_out == _has_held_out_pair(looks):
            return looks


def _sample_sizes(rng: np.random.Generator, num_objects: int) -> list[str]:
    """Two objects are not both large and three are all small: they have to fit side by side."""
    if num_objects == 1:
        return [pick(rng, SIZES)]
    if num_objects == 2:
        return list(pick(rng, (("small", "small"), ("small", "large"), ("large", "small"))))
    return ["small"] * 3


def _along(rng: np.random.Generator, first: int, second: int) -> tuple[int, int]:
    """First cells of two objects side by side, of those widths, the free cells dealt out at random."""
    free = CELLS - first - second - GAP_CELLS
    cuts = sorted(int(rng.integers(free + 1)) for _ in range(2))
    return cuts[0], cuts[1] + first + GAP_CELLS


def _middle(rng: np.random.Generator, width: int) -> int:
    """The first cell of an object in the middle of the image, half a cell to either side where it cannot be just there."""
    return (CELLS - width + int(rng.integers((CELLS - width) % 2 + 1))) // 2


def _place(rng: np.random.Generator, arrangement: str, position: str | None, widths: list[int]) -> list[tuple]:
    """First cells (x, y) of objects of those widths."""
    if arrangement == "alone":
        assert position is not None
        starts = {0.0: 0, 0.5: _middle(rng, widths[0]), 1.0: CELLS - widths[0]}
        return [tuple(starts[side] for side in POSITIONS[position])]
    if arrangement in ("left of", "above"):
        pairs = [(along, _middle(rng, width)) for along, width in zip(_along(rng, *widths), widths, strict=True)]
        return pairs if arrangement == "left of" else [(x, y) for y, x in pairs]
    one, *two = widths
    (top, bottom), (left, right) = _along(rng, one, two[0]), _along(rng, *two)
    if arrangement == "one below two":
        top, bottom = CELLS - one - top, CELLS - two[0] - bottom
    return [(_middle(rng, one), top), (left, bottom), (right, bottom)]


def sample_scene(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """Draw one scene's contents at random.

    held_out: False gives a training scene (nothing held out), True a validation scene: a lone object stands, as stated, where training
    never shows its colour and shape; of two or three objects training never shows some two together.
    """
    draw = rng.random()
    num_objects = 1 if draw < 0.30 else 2 if draw < 0.75 else 3
    arrangement = pick(rng, ARRANGEMENTS_BY_COUNT[num_objects])
    if num_objects == 1:
        *look, position = pick(rng, _places(held_out))
        looks = [(look[0], look[1])]
    else:
        looks, position = _sample_looks(rng, num_objects, held_out), None
    sizes = _sample_sizes(rng, num_objects)
    places = _place(rng, arrangement, position, [SIZES[size] for size in sizes])
    # Fewer stated sizes where there are more objects keeps captions short.
    chance = (0.6, 0.5, 0.35)[num_objects - 1]
    objects = tuple(
        SceneObject(
            shape=shape,
            colour=colour,
            size=size,
            size_stated=bool(rng.random() < chance),
            diameter=SIZES[size] / CELLS,
            x=(x + SIZES[size] / 2) / CELLS,
            y=(y + SIZES[size] / 2) / CELLS,
        )
        for (colour, shape), size, (x, y) in zip(looks, sizes, places, strict=True)
    )
    return Scene(
        objects=objects,
        arrangement=arrangement,
        position=position,
        position_stated=num_objects == 1 and (held_out or bool(rng.random() < 0.5)),
        background=pick(rng, BACKGROUNDS),
    )
