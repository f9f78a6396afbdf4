"""Retrieval against a count by hand, pair by pair."""

import numpy as np
import pytest

from dalle.evaluation import retrieval as module
from dalle.evaluation.retrieval import retrieval


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _by_hand(images, texts, ids) -> dict[str, float]:
    """Sorted lists, in double precision."""
    found = {"candidates": float(len(ids))}
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    for name, table in (("image_to_caption", scores), ("caption_to_image", scores.T)):
        for k in (1, 5, 10):
            hits = [
                any(ids[c] == ids[q] for c in sorted(range(len(ids)), key=lambda c: -row[c])[:k])
                for q, row in enumerate(table)
            ]
            found[f"{name}_r{k}"] = sum(hits) / len(hits)
    return found


@pytest.mark.parametrize("together", [7 * 60, 1, 2**24])
def test_recalls_are_those_of_sorted_lists(monkeypatch, together):
    """Also in parts that do not divide the pairs; with captions that occur several times, and directions that differ."""
    monkeypatch.setattr(module, "_SCORES_TOGETHER", together)
    generator = np.random.default_rng(0)
    texts = _unit(generator.normal(size=(60, 5)))
    images = _unit(texts + 0.8 * generator.normal(size=(60, 5)))
    images[:20] = _unit(images[:20] + 1.0)  # hubs: captions find other images than images captions
    ids = np.arange(60)
    plain = retrieval(images, texts, ids)
    assert plain == pytest.approx(_by_hand(images, texts, ids))
    assert plain["image_to_caption_r1"] != plain["caption_to_image_r1"]
    assert 0 < plain["image_to_caption_r1"] < plain["image_to_caption_r5"] < plain["image_to_caption_r10"] < 1
    ids = np.arange(60) // 3
    found = retrieval(images, texts, ids)
    assert found == pytest.approx(_by_hand(images, texts, ids))
    assert found["caption_to_image_r1"] > plain["caption_to_image_r1"]
    assert found["candidates"] == 60


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    same = np.full((30, 4), 0.5, np.float32)
    found = retrieval(same, same, np.arange(30))
    assert set(found.values()) == {0.0, 30.0}
    broken = np.full((30, 4), np.nan, np.float32)
    assert set(retrieval(broken, broken, np.arange(30)).values()) == {0.0, 30.0}


def test_equal_captions_tie_among_themselves():
    """Their vectors are the same to the last bit; neither is ahead of the other."""
    texts = np.eye(12, dtype=np.float32)
    texts[1] = texts[0]
    ids = np.array([0, 0, *range(2, 12)])
    assert retrieval(texts, texts, ids)["image_to_caption_r1"] == 1
    assert retrieval(texts, texts, np.arange(12))["image_to_caption_r1"] == pytest.approx(10 / 12)
