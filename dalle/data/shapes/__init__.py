"""The drawn data set: captioned scenes of simple shapes, drawn by our own code, and a checker that tells whether an image shows its caption.

Train on `write_shards(...)`, generate an image for a caption, and ask `shows(image, Claim.from_json(about["scene"]))`. Validation scenes
hold combinations of attributes that training never shows. Needs numpy, Pillow and scipy alone.
"""

from dalle.data.shapes.captions import captions, word
from dalle.data.shapes.check import Reading, SeenObject, holds, read, shows
from dalle.data.shapes.claim import Claim, ClaimedObject
from dalle.data.shapes.draw import draw, png_bytes
from dalle.data.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    is_held_out,
    is_pair_held_out,
    is_place_held_out,
    sample_scene,
)
from dalle.data.shapes.shards import write_shards

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "POSITIONS",
    "SHAPES",
    "SIZES",
    "Claim",
    "ClaimedObject",
    "Reading",
    "Scene",
    "SceneObject",
    "SeenObject",
    "captions",
    "draw",
    "holds",
    "is_held_out",
    "is_pair_held_out",
    "is_place_held_out",
    "png_bytes",
    "read",
    "sample_scene",
    "shows",
    "word",
    "write_shards",
]
