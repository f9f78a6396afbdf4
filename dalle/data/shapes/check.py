"""The checker: reads which objects an image shows, and tells whether it shows what a caption claims.

It knows nothing of how the image was made, and is meant for images drawn by a small model: it forgives blur, ringing and slightly
wrong colours, but names neither a shape nor a colour it is not sure of, so that a blob earns nothing. The steps: fit the background
with a smooth surface, find the connected pieces that differ from it, turn each into a soft mask by its own colour, and compare the mask
with every shape at equal area. A blur keeps area and centroid, so both mask and shape are put in a frame where area is 1 and
the centroid is 0: no bounding box (whose edges a blur moves) is ever measured.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from PIL import Image
from scipy import ndimage

from dalle.data.shapes.claim import Claim, ClaimedObject
from dalle.data.shapes.outline import MAX_TILT_DEG, coverage
from dalle.data.shapes.scene import CELLS, COLOURS, POSITIONS, SHAPES, SIZES

# RGB distance from the background; the palest object, yellow on cream, is 197 from it, ringing stays under 40
FOREGROUND = 60
SPECK_AREA = 0.004  # share of the image; the smallest object, a small triangle, has 0.06
COLOUR_RADIUS = 55  # RGB distance; the palette's colours are at least 90 apart, so at most one is well inside
# Set between drawings under a blur of 1 px with noise (patchiness 0.04) and shapes half way between two or of two colours
# (0.09 and more), which tests/data/test_shapes.py holds each of the three to refuse.
MIN_CONFIDENCE = 0.86
MIN_LEAD = 0.03
MAX_PATCHINESS = 0.08
# The cut between the size classes: the middle of the gap that the drawings leave.
LARGE_FROM = (SIZES["small"] + SIZES["large"]) / 2 / CELLS

_FRAME_CELLS = 40
# half the frame's side in units of the square root of the area; the farthest point, a triangle's top, is at 0.88
_FRAME_HALF = 1.15
_BLURS_PX = (0.0, 0.7, 1.2)
_NEIGHBOURS = np.ones((3, 3), dtype=bool)  # along x, y and the diagonals


@dataclass(frozen=True)
class SeenObject:
    """One object in an image. `shape` and `colour` are None where the checker will not commit itself.

    diameter: wider side of the upright bounding box; x, y: its centre; fractions of the image's side. confidence: overlap with the shape, 0..1.
    """

    shape: str | None
    colour: str | None
    diameter: float
    x: float
    y: float
    confidence: float

    @property
    def size(self) -> str:
        """The size class the diameter falls in."""
        return "small" if self.diameter < LARGE_FROM else "large"


@dataclass(frozen=True)
class Reading:
    """All objects an image shows, the largest area first; pieces too small to be one are left out."""

    objects: tuple[SeenObject, ...]


def shows(image: Image.Image | np.ndarray, claim: Claim) -> bool:
    """Whether the image shows exactly what the caption claims: these objects, no others, so related and so placed."""
    return holds(read(image), claim)


def holds(reading: Reading, claim: Claim) -> bool:
    """Whether what was read satisfies the claim under some matching of seen to claimed objects."""
    if len(reading.objects) != len(claim.objects):
        return False
    return any(
        all(_is(seen, claimed) for seen, claimed in zip(matching, claim.objects, strict=True))
        and all(stands(matching[i], relation, matching[j]) for relation, i, j in claim.relations)
        and (claim.position is None or is_at(matching[0], claim.position))
        for matching in permutations(reading.objects)
    )


def _is(seen: SeenObject, claimed: ClaimedObject) -> bool:
    return (seen.shape, seen.colour) == (claimed.shape, claimed.colour) and claimed.size in (None, seen.size)


def stands(first: SeenObject, relation: str, second: SeenObject) -> bool:
    """Whether the first is "left of" or "above" the second."""
    right, down = second.x - first.x, second.y - first.y
    along, across = (right, down) if relation == "left of" else (down, right)
    # Clear of each other along the stated axis up to a quarter of their radii, and more along it than across it.
    return along >= 0.75 * (first.diameter + second.diameter) / 2 and along >= abs(across)


def is_at(seen: SeenObject, position: str) -> bool:
    """Whether it stands at one of `POSITIONS`."""
    x, y = POSITIONS[position]
    # Drawn within 0.07 of the centre; a large object in a corner has its centre 0.25 from both edges.
    reach = 0.09 if position == "centre" else 0.40
    return abs(seen.x - x) <= reach and abs(seen.y - y) <= reach


def read(image: Image.Image | np.ndarray) -> Reading:
    """Read an RGB image: a PIL image or uint8 [Y,X,3], at least 32 pixels each way. ValueError for anything else."""
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 32:
        raise ValueError(f"an image of {image.dtype} {list(image.shape)}: must be uint8 [Y,X,3] of at least 32 x 32")
    pixels_YXC = image.astype(np.float32)
    background_YXC = _background(pixels_YXC)
    away_YXC = pixels_YXC - background_YXC
    labels_YX, num_pieces = ndimage.label(np.square(away_YXC).sum(axis=2) > FOREGROUND**2, _NEIGHBOURS)
    areas = np.bincount(labels_YX.ravel(), minlength=num_pieces + 1)
    whole = [label for label in range(1, num_pieces + 1) if areas[label] >= SPECK_AREA * labels_YX.size]
    whole.sort(key=lambda label: (-areas[label], label))
    # Noise breaks into hundreds of pieces. Eight are already more than any claim has, and reading them all would only cost time.
    return Reading(tuple(_read_piece(away_YXC, background_YXC, labels_YX, label) for label in whole[:8]))


def _background(pixels_YXC: np.ndarray) -> np.ndarray:
    """A quadratic surface per channel: first a plane through the frame of the image, where objects hardly reach, then all that is near it."""
    num_rows, num_columns, _ = pixels_YXC.shape
    y, x = np.meshgrid(np.linspace(-1, 1, num_rows), np.linspace(-1, 1, num_columns), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1).reshape(-1, 6).astype(np.float32)
    flat = pixels_YXC.reshape(-1, 3)
    width = 2 / min(num_rows, num_columns)
    frame = (np.maximum(np.abs(x), np.abs(y)) > 1 - 2 * width).ravel()
    # The median start ignores an object at the edge; each refit then drops what is far from the surface so far.
    surface = np.broadcast_to(np.median(flat[frame], axis=0), flat.shape)
    for where, num_terms in ((frame, 3), (frame, 3), (None, 6), (None, 6)):
        near = np.square(flat - surface).sum(axis=1) < FOREGROUND**2
        near = near & where if where is not None else near
        if near.sum() < 0.05 * frame.sum():
            break
        basis = terms[near, :num_terms]
        # The ridge only matters where too few pixels are left to fix all six terms.
        gram = basis.T @ basis + 1e-2 * np.eye(num_terms, dtype=np.float32)
        surface = terms[:, :num_terms] @ np.linalg.solve(gram, basis.T @ flat[near])
    return surface.reshape(pixels_YXC.shape)


def _read_piece(away_YXC: np.ndarray, background_YXC: np.ndarray, labels_YX: np.ndarray, label: int) -> SeenObject:
    side_px = min(labels_YX.shape)
    rows, columns = np.nonzero(labels_YX == label)
    # The mask stops half way down the blurred edge; its foot is worth another two pixels or so.
    foot = max(2, round(0.03 * side_px))
    top, left = max(0, rows.min() - foot), max(0, columns.min() - foot)
    window = (slice(top, rows.max() + foot + 1), slice(left, columns.max() + foot + 1))
    away, labels = away_YXC[window], labels_YX[window]
    mine = labels == label
    distance = np.sqrt(np.square(away[mine]).sum(axis=1))
    # The pixels farthest from the background are the ones least mixed with it.
    core = distance >= np.quantile(distance, 0.6)
    core_away = np.median(away[mine][core], axis=0)
    core_background = background_YXC[window][mine].mean(axis=0)

    others = ndimage.binary_dilation((labels != label) & (labels != 0), _NEIGHBOURS, iterations=foot // 2)
    alpha = np.clip(away @ core_away / np.square(core_away).sum(), 0, 1)
    alpha = np.where(
        others & ~mine | ~ndimage.binary_dilation(mine, _NEIGHBOURS, iterations=foot) | (alpha < 0.1), 0, alpha
    )
    mass = float(alpha.sum())
    unexplained = np.sqrt(np.square(away - alpha[:, :, None] * core_away).sum(axis=2))
    patchiness = float((unexplained * alpha).sum()) / mass / float(np.sqrt(np.square(core_away).sum()))

    y_px = float(alpha.sum(axis=1) @ np.arange(alpha.shape[0])) / mass
    x_px = float(alpha.sum(axis=0) @ np.arange(alpha.shape[1])) / mass
    unit_px = float(np.sqrt(mass))
    cells_px = np.linspace(-_FRAME_HALF, _FRAME_HALF, _FRAME_CELLS) * unit_px
    frame = np.meshgrid(y_px + cells_px, x_px + cells_px, indexing="ij")
    framed = ndimage.map_coordinates(alpha, frame, order=1, mode="grid-constant").ravel()
    # Templates for a few blurs, rounded to steps of 0.02 of the unit so that they can be kept.
    best = dict.fromkeys(SHAPES, 0.0)
    for blur_px in _BLURS_PX:
        templates, owners = _templates(round(50 * np.hypot(blur_px, 0.4) / unit_px))
        overlap = np.minimum(templates, framed).sum(axis=1) / np.maximum(templates, framed).sum(axis=1)
        for value, shape in zip(overlap.tolist(), owners, strict=True):
            best[shape] = max(best[shape], value)
    (confidence, shape), (second, _) = sorted(((value, shape) for shape, value in best.items()), reverse=True)[:2]
    sure = confidence >= MIN_CONFIDENCE and confidence - second >= MIN_LEAD

    area, centroid_y = _area_and_centroid(shape)
    diameter_px = unit_px / np.sqrt(area)
    return SeenObject(
        shape=shape if sure else None,
        colour=_colour(core_away, core_background) if patchiness <= MAX_PATCHINESS else None,
        diameter=float(diameter_px / side_px),
        # The tilt moves the centroid of a triangle sideways by less than 0.02 diameters: not worth undoing.
        x=(left + x_px + 0.5) / labels_YX.shape[1],
        y=float((top + y_px + 0.5 - centroid_y * diameter_px) / labels_YX.shape[0]),
        confidence=confidence,
    )


def _colour(away: np.ndarray, background: np.ndarray) -> str | None:
    """The nearest colour of the palette, letting up to a fifth of the background shine through (a thin, blurred shape); None where none is near."""
    best, name = float(COLOUR_RADIUS), None
    for colour, rgb in COLOURS.items():
        for opacity in (1.0, 0.9, 0.8):
            distance = float(np.linalg.norm(away - opacity * (np.asarray(rgb) - background)))
            if distance < best:
                best, name = distance, colour
    return name


@cache
def _area_and_centroid(shape: str) -> tuple[float, float]:
    """Area and height of the centroid of the upright shape of diameter 1; every shape is symmetric left to right."""
    centres = np.arange(-150, 150) + 0.5
    alpha = coverage(shape, centres, centres, 256).astype(np.float64)
    return float(alpha.sum()) / 256**2, float(alpha.sum(axis=1) @ centres / alpha.sum()) / 256


@cache
def _templates(blur_step: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Every shape at a few tilts in the frame of unit area, blurred by 0.02 * blur_step: masks [template, cell] and their shapes."""
    fine = 4
    cell = 2 * _FRAME_HALF / (_FRAME_CELLS - 1)
    span = np.arange(-_FRAME_CELLS * fine // 2, _FRAME_CELLS * fine // 2) + 0.5
    sigma = max(0.02 * blur_step / cell * fine, 1e-3)
    kernel = np.exp(-0.5 * np.square((span[:, None] - span[None, :]) / sigma))
    kernel /= kernel.sum(axis=1, keepdims=True)
    masks, owners = [], []
    for shape in SHAPES:
        area, centroid_y = _area_and_centroid(shape)
        diameter = fine / cell / np.sqrt(area)
        for tilt in (
            (0.0,) if shape == "circle" else (-MAX_TILT_DEG, -MAX_TILT_DEG / 2, 0.0, MAX_TILT_DEG / 2, MAX_TILT_DEG)
        ):
            turn = np.radians(tilt)
            shift_x, shift_y = -np.sin(turn) * centroid_y * diameter, np.cos(turn) * centroid_y * diameter
            mask = kernel @ coverage(shape, span + shift_x, span + shift_y, diameter, tilt) @ kernel.T
            masks.append(mask.reshape(_FRAME_CELLS, fine, _FRAME_CELLS, fine).mean(axis=(1, 3)).ravel())
            owners.append(shape)
    return np.stack(masks).astype(np.float32), tuple(owners)
