"""Each evaluation image with its nearest training image, the closest first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dalle.evaluation.overlap.index import Index
from dalle.evaluation.overlap.nearest import nearest
from dalle.evaluation.overlap.stream import Place, shard_name
from dalle.outputs.whole import replace_text


@dataclass(frozen=True)
class Near:
    """An evaluation image and the training image nearest to it.

    Args:
        cosine: of their features
        row: of the evaluation image in its index
        place: of the evaluation image
        train_row: of the training image in its index
        train_place: of the training image
    """

    cosine: float
    row: int
    place: Place
    train_row: int
    train_place: Place


def near_pairs(evaluation: Index, train: Index) -> list[Near]:
    """All evaluation images, the closest first, of equally close ones the first in the shards.

    Raises:
        ValueError: the two were embedded by different networks, or at different sizes
    """
    ours, theirs = evaluation.header, train.header
    if ours.features["hash"] != theirs.features["hash"] or evaluation.size_px != train.size_px:
        raise ValueError(
            f"{evaluation.folder} and {train.folder}: of different feature networks or image sizes; embed both alike"
        )
    found = nearest(evaluation.rows_NE, train.blocks())
    cosines_Q, rows_Q = found.cosines_QK[:, 0], found.rows_QK[:, 0]
    places, train_places = evaluation.places(range(len(rows_Q))), train.places(rows_Q.tolist())
    order_Q = np.argsort(-cosines_Q, kind="stable")
    return [
        Near(float(cosines_Q[row]), row, places[row], train_row, train_places[train_row])
        for row, train_row in zip(order_Q.tolist(), rows_Q[order_Q].tolist(), strict=True)
    ]


def write_pairs(path: Path, pairs: list[Near], evaluation: Index, train: Index, threshold: float) -> None:
    """One JSON object a line."""
    lines = [
        json.dumps(
            {
                "cosine": round(pair.cosine, 6),
                "excluded": pair.cosine >= threshold,
                "evaluation": _told(pair.place, evaluation),
                "train": _told(pair.train_place, train),
            }
        )
        for pair in pairs
    ]
    replace_text(path, "".join(line + "\n" for line in lines))


def _told(place: Place, index: Index) -> dict[str, Any]:
    return {"shard": shard_name(index.shards[place.shard]), "key": place.key, "captions": list(place.captions)}
