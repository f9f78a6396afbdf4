"""What a drawn scene holds: the vocabulary, the scene itself, how scenes are sampled, and which combinations training never sees.

A scene is one to three coloured shapes on a light background, arranged so that a short sentence describes them without doubt.
Everything is a fraction of the image's side, x to the right and y down, so one scene can be drawn at any resolution.
The drawn data set is ours (the paper has nothing like it): small enough to learn in minutes, and with a checker that needs no judge.
"""

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import combinations, product

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross", "ring")
# Every two of these are at least 90 apart in RGB, and none lies on the line from another to a light background for more than a
# quarter of its length: blurring a red ring must not make it pink.
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
# Bounding-box diameters in cells. The gaps between the classes let a checker tell them apart from a blurred image.
SIZES = {"small": 3, "large": 4}
BACKGROUNDS = {
    "white": (253, 253, 253),
    "cream": (253, 243, 214),
    "mint": (212, 244, 224),
    "sky blue": (206, 230, 252),
}
# The place of a lone object's centre when the caption states it: (x, y) of the region's middle.
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

GAP = 1  # cells between objects side by side, so that a blur does not run them together
MAX_FROM_CORNER = 2.5  # cells from a corner to the centre of an object that a caption puts there
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
    """A scene ready to draw. `position` is named only where the captions state it (a lone object)."""

    objects: tuple[SceneObject, ...]
    arrangement: str
    position: str | None
    background: str


@cache
def _one_in_eight(words: str) -> bool:
    # Not Python's hash(), which differs from process to process.
    digest = blake2b(f"dalle shapes {words}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def is_triple_held_out(size: str, colour: str, shape: str) -> bool:
    """Whether training never shows an object of this size class, colour and shape."""
    return _one_in_eight(f"{size} {colour} {shape}")


def is_pair_held_out(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether training never shows these two (colour, shape) in one scene; the order does not matter."""
    low, high = sorted((first, second))
    return _one_in_eight(" ".join((*low, "with", *high)))


def _has_held_out_pair(objects) -> bool:
    return any(is_pair_held_out((a[1], a[2]), (b[1], b[2])) for a, b in combinations(objects, 2))


def is_held_out(scene: Scene) -> bool:
    """Whether the scene has any held-out triple or pair; False for every training scene, True for every validation scene."""
    triples = [(o.size, o.colour, o.shape) for o in scene.objects]
    return any(is_triple_held_out(*triple) for triple in triples) or _has_held_out_pair(triples)


@cache
def _held_out_stated_triples() -> tuple[tuple[str, str, str], ...]:
    return tuple(t for t in product(SIZES, COLOURS, SHAPES) if is_triple_held_out(*t))


def _pick(rng: np.random.Generator, names):
    return tuple(names)[int(rng.integers(len(names)))]


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _sample_triples(rng: np.random.Generator, num_objects: int, held_out: bool) -> list[tuple[str, str, str]]:
    """(size, colour, shape) of each object, obeying the hold-out; no two objects share both colour and shape."""
    if held_out and num_objects == 1:
        return [_pick(rng, _held_out_stated_triples())]
    sizes = ("small",) if num_objects == 3 else tuple(SIZES)
    while True:
        triples = [(_pick(rng, sizes), _pick(rng, COLOURS), _pick(rng, SHAPES)) for _ in range(num_objects)]
        if len({triple[1:] for triple in triples}) < num_objects:
            continue
        if held_out:
            if _has_held_out_pair(triples):
                return triples
        elif not _has_held_out_pair(triples) and not any(is_triple_held_out(*triple) for triple in triples):
            return triples


def _along(rng: np.random.Generator, halves: list[float]) -> list[float] | None:
    """Centres of objects side by side, in cells, the free room dealt out at random; None where they do not fit."""
    free = round(CELLS - 2 * sum(halves) - GAP * (len(halves) - 1))
    if free < 0:
        return None
    # Sorted uniform cuts share the free room among the gaps evenly in distribution.
    cuts = sorted(int(rng.integers(free + 1)) for _ in halves)
    centres, edge = [], 0.0
    for half, cut in zip(halves, cuts, strict=True):
        centres.append(edge + half + cut)
        edge += 2 * half + GAP
    return centres


def _anywhere(rng: np.random.Generator, half: float) -> float:
    """A centre, in cells, from which the object stays inside the image."""
    return half + int(rng.integers(round(CELLS - 2 * half) + 1))


def _across(rng: np.random.Generator, halves: list[float]) -> list[float]:
    """Centres on the other axis: one line, each object up to a cell off it, all inside the image."""
    line = _anywhere(rng, max(halves))
    places = [min(max(round(line - r) + int(rng.integers(-1, 2)), 0), CELLS - 2 * r) + r for r in halves]
    return places


def _place(rng: np.random.Generator, arrangement: str, position: str | None, halves: list[float]):
    """Centres [(x, y), ...], in cells, for objects of those half widths, or None where they do not fit."""
    if arrangement == "alone":
        if position is None:
            return [(_anywhere(rng, halves[0]), _anywhere(rng, halves[0]))]
        if position == "centre":
            return [tuple(CELLS / 2 + (halves[0] % 1) * int(rng.choice((-1, 1))) for _ in range(2))]
        nearest = halves[0]
        offsets = [nearest + int(rng.integers(max(0, int(MAX_FROM_CORNER - nearest)) + 1)) for _ in range(2)]
        return [tuple(abs(CELLS * side - offset) for side, offset in zip(POSITIONS[position], offsets, strict=True))]
    if arrangement in ("left of", "above"):
        along, across = _along(rng, halves), _across(rng, halves)
        if along is None:
            return None
        return list(zip(*((along, across) if arrangement == "left of" else (across, along)), strict=True))
    rows, columns = _along(rng, [halves[0], max(halves[1:])]), _along(rng, halves[1:])
    if rows is None or columns is None:
        return None
    top_x = _anywhere(rng, halves[0])
    # "Above" must be the plainest word for how the first stands to each of the others.
    if rows[1] - rows[0] < 1.15 * max(top_x - columns[0], columns[1] - top_x):
        return None
    places = [(top_x, rows[0]), (columns[0], rows[1]), (columns[1], rows[1])]
    return places if arrangement == "one above two" else [(x, CELLS - y) for x, y in places]


def sample_scene(
    rng: np.random.Generator, held_out: bool = False, count_weights: tuple[float, float, float] = (0.30, 0.45, 0.25)
) -> Scene:
    """Draw one scene's contents at random.

    held_out: False gives a training scene (no held-out triple or pair), True a validation scene: one object has a held-out triple
    and its size is stated; two or three objects have at least one held-out pair.
    count_weights: the shares of scenes with one, two and three objects, in any scale. ValueError unless three, none negative, some positive.
    """
    if len(count_weights) != 3 or min(count_weights) < 0 or sum(count_weights) <= 0:
        raise ValueError(
            f"count_weights {count_weights!r}: give three shares, for one, two and three objects, not all zero"
        )
    draw = _uniform(rng, 0, sum(count_weights))
    num_objects = 1 if draw < count_weights[0] else 2 if draw < count_weights[0] + count_weights[1] else 3
    arrangement = _pick(rng, ARRANGEMENTS_BY_COUNT[num_objects])
    position = _pick(rng, POSITIONS) if num_objects == 1 and rng.random() < 0.5 else None
    while True:  # until the sizes fit; the attributes are drawn anew, so nothing held out can creep in
        triples = _sample_triples(rng, num_objects, held_out)
        centres = _place(rng, arrangement, position, [SIZES[size] / 2 for size, _, _ in triples])
        if centres is not None:
            break
    # Fewer stated sizes where there are more objects keeps captions short.
    always, chance = held_out and num_objects == 1, (0.6, 0.5, 0.35)[num_objects - 1]
    objects = tuple(
        SceneObject(
            shape=shape,
            colour=colour,
            size=size,
            size_stated=always or bool(rng.random() < chance),
            diameter=SIZES[size] / CELLS,
            x=x / CELLS,
            y=y / CELLS,
        )
        for (size, colour, shape), (x, y) in zip(triples, centres, strict=True)
    )
    return Scene(
        objects=objects,
        arrangement=arrangement,
        position=position,
        background=_pick(rng, BACKGROUNDS),
    )
