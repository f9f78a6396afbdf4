"""Drawing scenes: a plain background, antialiased shapes on top, and the PNG of it."""

import math
from io import BytesIO

import numpy as np
from PIL import Image

from dalle.data.shapes.outline import coverage
from dalle.data.shapes.scene import BACKGROUNDS, COLOURS, Scene


def draw(scene: Scene, size_px: int) -> Image.Image:
    """The scene as an RGB image of size_px by size_px. ValueError unless size_px is a multiple of 8 from 32 to 256."""
    if size_px % 8 or not 32 <= size_px <= 256:
        raise ValueError(f"size_px {size_px}: must be a multiple of 8 from 32 to 256")
    centres_px = np.arange(size_px, dtype=np.float32) + 0.5
    image_YXC = np.empty((size_px, size_px, 3), dtype=np.float32)
    image_YXC[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        x_px, y_px, diameter_px = thing.x * size_px, thing.y * size_px, thing.diameter * size_px
        half_px = diameter_px / 2 + 1
        rows = slice(max(0, math.floor(y_px - half_px)), min(size_px, math.ceil(y_px + half_px)))
        columns = slice(max(0, math.floor(x_px - half_px)), min(size_px, math.ceil(x_px + half_px)))
        alpha = coverage(thing.shape, centres_px[columns] - x_px, centres_px[rows] - y_px, diameter_px)[:, :, None]
        window = image_YXC[rows, columns]
        window += alpha * (np.asarray(COLOURS[thing.colour], dtype=np.float32) - window)
    return Image.fromarray(np.rint(image_YXC).astype(np.uint8))


def png_bytes(image: Image.Image) -> bytes:
    """The image as PNG; compress_level 1, for writing speed matters more here than a few hundred bytes."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
