"""The outlines of the shapes: signed distances give antialiased coverage at any place, size and tilt, without supersampling.

Drawing and checking both stand on this file, so there is one definition of what a cross is.
"""

import math
from functools import cache

import numpy as np

MAX_TILT_DEG = 4.0
CROSS_ARM = 1 / 3  # an arm's share of the diameter


@cache
def outline(shape: str) -> np.ndarray:
    """Corners [corner, (x, y)] of a shape whose bounding box is centred on 0 and 1 wide at its wider side; a circle has none."""
    corners: list[tuple[float, float]]
    if shape == "square":
        corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    elif shape == "triangle":
        corners = [(0, -math.sqrt(3)), (1, 0), (-1, 0)]
    elif shape == "cross":
        a = CROSS_ARM
        corners = [
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        ]
    else:
        raise ValueError(f"shape {shape!r} has no corners; draw it as an ellipse")
    points = np.array(corners, dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) / (high - low).max()


def coverage(shape: str, x_px: np.ndarray, y_px: np.ndarray, diameter_px: float, tilt_deg: float = 0.0) -> np.ndarray:
    """How much of each pixel the shape covers, 0..1, float32 [Y,X].

    x_px [X], y_px [Y]: pixel centres relative to the shape's centre. diameter_px: the wider side of the upright bounding box.
    """
    x, y = np.broadcast_arrays(x_px[None, :].astype(np.float32), y_px[:, None].astype(np.float32))
    if shape == "circle":
        distance = np.hypot(x, y) - diameter_px / 2
    else:
        cos, sin = math.cos(math.radians(tilt_deg)), math.sin(math.radians(tilt_deg))
        corners = (outline(shape) * diameter_px) @ np.array([[cos, sin], [-sin, cos]])
        distance = _distance_to_polygon(x, y, corners.astype(np.float32))
    return np.clip(0.5 - distance, 0, 1)


def _distance_to_polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance, negative inside: the nearest edge gives the size, the parity of edges crossed on the way left gives the sign."""
    from_x, from_y = corners.T[:, :, None, None]
    edge_x, edge_y = (np.roll(corners, -1, axis=0) - corners).T[:, :, None, None]
    to_x, to_y = x - from_x, y - from_y
    share = np.clip((to_x * edge_x + to_y * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
    squared = ((to_x - share * edge_x) ** 2 + (to_y - share * edge_y) ** 2).min(axis=0)
    starts_above, ends_above = to_y < 0, to_y < edge_y
    right_of_edge = (to_x * edge_y > to_y * edge_x) == (edge_y > 0)
    inside = np.logical_xor.reduce((starts_above != ends_above) & right_of_edge, axis=0)
    return np.where(inside, -1, 1) * np.sqrt(squared)
