"""Captions found, where the real images lie in another order than the captions, and captions repeat."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dalle.evaluation.steps.judged import judged_section

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
