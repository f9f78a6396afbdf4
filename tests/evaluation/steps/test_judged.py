"""Captions found, where the real images lie in another order than the captions, and captions repeat."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dalle.evaluation.steps.judged import judged_section, scores

CAPTIONS = ["a", "b", "c", "a"]


class _Judge:
    """Whose vector of an image is the unit vector that its only pixel names."""

    name, hash, chose = "judge", "0" * 64, False

    def images(self, batches) -> np.ndarray:
        return np.concatenate([np.eye(4, dtype=np.float32)[images[:, 0, 0, 0]] for images in batches])


class _Reference:
    """Four images, of which each is the number of its place; read in their own order, as shards are."""

    def batches(self, size: int, numbers) -> Iterator[np.ndarray]:
        for number in sorted(numbers):
            yield np.full((1, 1, 1, 3), number, np.uint8)


def _figures(images: list[int], texts: list[int], reals: list[int | None]) -> dict:
    images_NE, texts_NE = (np.eye(4, dtype=np.float32)[each] for each in (images, texts))
    return judged_section(_Judge(), CAPTIONS, images_NE, texts_NE, reals, _Reference(), 2).figures


def test_real_images_meet_their_own_captions_in_whatever_order_they_are_read():
    found = _figures([0, 1, 2, 0], [2, 0, 1, 3], [2, 0, 1, 3])
    assert found["real images"]["clip_score"] == pytest.approx(100)
    assert found["real images"]["image_to_caption_r1"] == 1


def test_equal_captions_are_right_for_one_another():
    found = _figures([0, 1, 2, 0], [0, 1, 2, 0], [None] * 4)
    assert found["samples"]["image_to_caption_r1"] == found["samples"]["caption_to_image_r1"] == 1
    assert "real images" not in found


def test_the_score_is_a_hundred_times_the_cosine_but_never_negative():
    images_NE = np.array([[0.6, 0.8], [0.6, 0.8], [0.6, 0.8]], np.float32)
    texts_NE = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    np.testing.assert_allclose(scores(images_NE, texts_NE), [60, 80, 0], rtol=1e-6)  # cosines of fp32 vectors


def test_captions_that_differ_in_capitals_alone_are_one():
    images_NE = texts_NE = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    found = judged_section(_Judge(), ["A cat", "a  cat", "b", "c"], images_NE, texts_NE, [None] * 4, None, 2).figures
    assert found["samples"]["image_to_caption_r1"] == 1


def test_what_is_left_out_is_left_out_with_its_caption():
    """The second sample shows nothing of its caption."""
    images_NE, texts_NE = (np.eye(4, dtype=np.float32)[each] for each in ([0, 3, 2, 0], [0, 1, 2, 0]))
    given = (_Judge(), CAPTIONS, images_NE, texts_NE, [0, 1, 2, 0], _Reference(), 2)
    found = judged_section(*given, frozenset({1})).figures
    assert found["samples"]["clip_score"] == pytest.approx(75)
    assert found["samples, 1 left out"]["clip_score"] == pytest.approx(100)
    assert found["samples, 1 left out"]["candidates"] == 3
    assert found["real images, 1 left out"]["image_to_caption_r1"] == 1
