"""Nearest neighbours by the cosine of the angle between features: exact, in bounded memory, and the same for any blocks.

faiss finds candidates by an fp32 inner product, whose last bits depend on where in a block a row stands. So a few more
are taken than are asked for, and those are compared again in float64, two vectors at a time: equal images are equally
near, and of these the lowest row comes first.

The search is over all rows: for Q queries, N rows and E numbers each, 2·Q·N·E operations. For 30,000 queries of 1,280
numbers, at the 100 GFLOP/s of a few cores, that is a quarter of an hour for a million rows and two days for the paper's 250
million. From some 10 million rows on, where it has to be done often, an approximate index (faiss IVF with product
quantisation) would be wanted in place of this one, at the price of a neighbour that is missed now and then. The queries are
in memory, 4 bytes a number.
Rows come in blocks, from as many indexes as there are: a set that lies in parts is searched part by part, and `merged`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalle.config.checks import installed

BLOCK_ROWS = 16_384
"""84 MB of 1,280 fp32 numbers each."""
_MORE = 8
"""Candidates beside those that are asked for. Where this many are as near as the last one, all rows of the block are compared."""
_COMPARED_VALUES = 1 << 22
"""Float64 numbers of the candidates that are compared at a time: 34 MB."""


@dataclass(frozen=True)
class Neighbours:
    """For each query its nearest rows, nearest first, of equally near ones the lowest first.

    Args:
        cosines_QK: float64 in [-1, 1]; −inf where there are fewer rows than K
        rows_QK: int64; −1 there
    """

    cosines_QK: np.ndarray
    rows_QK: np.ndarray

    def merged(self, other: Neighbours, first_row: int = 0) -> Neighbours:
        """The nearest among these and those of another part of the set, whose row 0 is row `first_row` of the whole."""
        rows_QK = np.where(other.rows_QK < 0, -1, other.rows_QK + first_row)
        return _best(
            np.concatenate([self.cosines_QK, other.cosines_QK], axis=1),
            np.concatenate([self.rows_QK, rows_QK], axis=1),
            self.rows_QK.shape[1],
        )


def nearest(queries_QE: np.ndarray, blocks: Iterable[np.ndarray], k: int = 1) -> Neighbours:
    """The k nearest rows of each query, by cosine. A vector of zeros is at cosine 0 of everything.

    Args:
        queries_QE: features, of any floating-point type, finite
        blocks: [N, E] each, of which the first row follows the last of the block before
        k: at least 1

    Raises:
        ValueError: faiss is not installed, or a block has another width
    """
    faiss = _faiss()
    queries_QE = unit(np.asarray(queries_QE, np.float32))
    num_queries, width = queries_QE.shape
    found = Neighbours(np.full((num_queries, k), -np.inf), np.full((num_queries, k), -1, np.int64))
    first_row = 0
    for block in blocks:
        if block.shape[1] != width:
            raise ValueError(
                f"features of {width} numbers cannot be compared with features of {block.shape[1]}; take one network for both"
            )
        rows_NE = unit(np.asarray(block, np.float32))
        if len(rows_NE) and num_queries:
            found = found.merged(_in_block(faiss, queries_QE, rows_NE, k), first_row)
        first_row += len(rows_NE)
    return found


def unit(rows_NE: np.ndarray) -> np.ndarray:
    """Rows of length 1 in their own type, for which a cosine is an inner product; rows of zeros stay zeros."""
    lengths_N1 = np.sqrt(np.square(rows_NE.astype(np.float64)).sum(axis=1, keepdims=True))
    return (rows_NE / np.where(lengths_N1 == 0, 1, lengths_N1)).astype(rows_NE.dtype)


def _in_block(faiss: Any, queries_QE: np.ndarray, rows_NE: np.ndarray, k: int) -> Neighbours:
    num_rows, width = rows_NE.shape
    index = faiss.IndexFlatIP(width)
    index.add(rows_NE)
    taken = min(k + _MORE, num_rows)
    rough_QK, rows_QK = index.search(queries_QE, taken)
    cosines_QK = _cosines(queries_QE, rows_NE, rows_QK)
    found = _best(cosines_QK, rows_QK, k)
    if taken == num_rows:
        return found
    # an fp32 inner product of unit vectors in any order of summation is off by less than E rounding errors
    slack = 2 * width * 2.0**-24
    for query in np.flatnonzero(rough_QK[:, -1] >= rough_QK[:, k - 1] - slack):
        near_R = np.flatnonzero(rows_NE @ queries_QE[query] >= rough_QK[query, k - 1] - slack)[None]
        one = _best(_cosines(queries_QE[query : query + 1], rows_NE, near_R), near_R, k)
        found.cosines_QK[query], found.rows_QK[query] = one.cosines_QK[0], one.rows_QK[0]
    return found


def _cosines(queries_QE: np.ndarray, rows_NE: np.ndarray, rows_QK: np.ndarray) -> np.ndarray:
    """Float64 [Q, K], each a function of its two vectors alone."""
    result_QK = np.empty(rows_QK.shape)
    few = max(1, _COMPARED_VALUES // (rows_QK.shape[1] * rows_NE.shape[1]))
    for first in range(0, len(queries_QE), few):
        part = slice(first, first + few)
        products_QKE = queries_QE[part, None].astype(np.float64) * rows_NE[rows_QK[part]]
        result_QK[part] = products_QKE.sum(axis=2)
    return np.clip(result_QK, -1, 1)


def _best(cosines_QK: np.ndarray, rows_QK: np.ndarray, k: int) -> Neighbours:
    order_QK = np.lexsort((rows_QK, -cosines_QK), axis=1)[:, :k]
    best = Neighbours(np.take_along_axis(cosines_QK, order_QK, 1), np.take_along_axis(rows_QK, order_QK, 1))
    if (missing := k - best.rows_QK.shape[1]) > 0:
        wider = ((0, 0), (0, missing))
        return Neighbours(
            np.pad(best.cosines_QK, wider, constant_values=-np.inf), np.pad(best.rows_QK, wider, constant_values=-1)
        )
    return best


def _faiss() -> Any:
    with installed("nearest neighbours need faiss: pip install 'dalle[eval]'"):
        import faiss
    return faiss
