"""Exact neighbours: against all cosines in numpy, whatever the blocks."""

import numpy as np
import pytest

from dalle.evaluation.overlap.nearest import nearest, unit

pytest.importorskip("faiss")


def _all(queries, rows, k):
    """The reference: every cosine in float64, sorted by nearness and then by row."""
    q, r = (x.astype(np.float64) for x in (unit(queries.astype(np.float32)), unit(rows.astype(np.float32))))
    cosines = np.clip((q[:, None] * r[None]).sum(-1), -1, 1)
    order = np.array([sorted(range(len(rows)), key=lambda j, c=c: (-c[j], j))[:k] for c in cosines])
    return np.take_along_axis(cosines, order, 1), order


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("sizes", [[300], [1, 2, 297], [100, 100, 100], [3] * 100])
def test_the_nearest_are_those_of_all_cosines_for_any_blocks(k, sizes):
    generator = np.random.default_rng(0)
    queries, rows = generator.normal(size=(40, 24)) * 7, generator.normal(size=(300, 24)).astype(np.float16)
    found = nearest(queries, np.split(rows, np.cumsum(sizes)[:-1]), k)
    cosines, order = _all(queries, rows, k)
    assert np.array_equal(found.rows_QK, order)
    # the same float64 products; sums of 24 may differ in order
    assert np.allclose(found.cosines_QK, cosines, rtol=0, atol=1e-14)


def test_of_equal_rows_the_lowest_comes_first_however_many_there_are():
    """More than the candidates that are taken beside those asked for, before and behind a nearer one, over blocks."""
    generator = np.random.default_rng(1)
    query, near, other = generator.normal(size=(3, 33))
    near = query + 0.1 * near
    rows = np.stack([other] * 50 + [near] * 30 + [query * 3] + [near * 1] * 60).astype(np.float32)
    for sizes in ([141], [7] * 20 + [1], [70, 71], [81, 60]):
        found = nearest(query[None], np.split(rows, np.cumsum(sizes)[:-1]), 4)
        assert found.rows_QK.tolist() == [[80, 50, 51, 52]], sizes


def test_equal_images_are_equally_near_in_every_bit():
    rows = np.random.default_rng(2).normal(size=(37, 1280)).astype(np.float32)
    rows[30] = rows[5]
    found = nearest(rows + 0.01, [rows[:20], rows[20:]], 37)
    for cosines, order in zip(found.cosines_QK, found.rows_QK.tolist(), strict=True):
        assert cosines[order.index(5)] == cosines[order.index(30)] and order.index(5) + 1 == order.index(30)


def test_fewer_rows_than_asked_for():
    rows = np.eye(3, dtype=np.float32)
    found = nearest(rows[:1], [rows[:2], rows[:0], rows[2:]], 5)
    assert found.rows_QK.tolist() == [[0, 1, 2, -1, -1]]
    assert found.cosines_QK.tolist() == [[1, 0, 0, -np.inf, -np.inf]]
    assert nearest(rows[:0], [rows], 2).rows_QK.shape == (0, 2)


def test_a_vector_of_zeros_is_near_to_nothing():
    rows = np.zeros((40, 4), np.float32)
    rows[7] = [0, 1, 0, 0]
    found = nearest(np.array([[0, 2, 0, 0], [0, 0, 0, 0]]), [rows], 2)
    assert found.rows_QK.tolist() == [[7, 0], [0, 1]] and found.cosines_QK[:, 0].tolist() == [1, 0]


def test_unit_keeps_directions_and_types():
    rows = np.array([[3, 4], [0, 0]], np.float16)
    assert unit(rows).dtype == np.float16
    # 0.6 and 0.8 to half a step of float16, 2^-12
    assert np.allclose(unit(rows), [[0.6, 0.8], [0, 0]], rtol=0, atol=2.0**-12)


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match="features of 4 numbers cannot be compared with features of 3"):
        nearest(np.ones((1, 4)), [np.ones((2, 3))])
