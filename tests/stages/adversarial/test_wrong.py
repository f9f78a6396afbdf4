"""Wrong captions are of another concept, always."""

import json

import numpy as np
import pytest

from dalle.config import Images
from dalle.data.captions import concepts, read_captions
from dalle.stages.adversarial.wrong import check_concepts, wrong_row_seeds, wrong_rows
from tests.data.pictures import encoded, flat, write_shard


def _sample(key, captions, **more):
    return {"__key__": key, "__url__": "x.tar", "json": json.dumps({"captions": captions, **more}).encode()}


def _concepts(sample, class_key=None):
    return concepts(sample, read_captions(sample)[0], class_key)


def test_no_wrong_caption_is_of_the_right_concept():
    """Shifting by one would often give one: rows come in pairs of a class."""
    samples = [
        _sample(f"{n}", [f"a {n // 2} of {n}", "a thing" if n < 4 else f"one {n}"], name=f"{n // 2}") for n in range(16)
    ]
    for class_key in ("name", None):
        found = [_concepts(sample, class_key) for sample in samples]
        for step in range(50):
            rows = wrong_rows(found, wrong_row_seeds(3, step, range(16)))
            for row, wrong in enumerate(rows):
                mine, theirs = (json.loads(samples[n]["json"]) for n in (row, wrong))
                assert not set(mine["captions"]) & set(theirs["captions"])
                assert class_key is None or mine["name"] != theirs["name"]


def test_all_others_are_as_likely_and_each_update_draws_anew():
    found = [(f"class {n % 3}",) for n in range(6)]
    drawn = [wrong_rows(found, wrong_row_seeds(0, step, range(6))) for step in range(600)]
    counts = np.bincount([rows[0] for rows in drawn], minlength=6)
    assert counts[0] == counts[3] == 0
    # four rows with 150 expected draws each: 6 standard deviations (of 10.6) either way fail once in 10⁸
    assert all(86 < counts[n] < 214 for n in (1, 2, 4, 5))
    assert drawn[7] == wrong_rows(found, wrong_row_seeds(0, 7, range(6)))
    assert drawn[7] != wrong_rows(found, wrong_row_seeds(1, 7, range(6)))


def test_parts_of_a_batch_draw_as_the_whole():
    found = [(f"class {n % 4}",) for n in range(8)]
    whole = wrong_rows(found, wrong_row_seeds(0, 5, range(8)))
    halves = [wrong_rows(found, wrong_row_seeds(0, 5, rows)) for rows in (range(4), range(4, 8))]
    assert whole == halves[0] + halves[1]


def test_a_batch_of_one_concept_has_no_wrong_caption():
    found = [("a", "b"), ("b", "c"), ("c", "d")]
    assert wrong_rows(found, wrong_row_seeds(0, 0, range(3))) == [2, None, 0]


def test_a_concept_is_a_class_or_the_captions():
    one = _sample("1", ["A cat", "a pet"], name="cat", scene={"b": 1, "a": [2]})
    assert _concepts(one) == ("caption a cat", "caption a pet")
    assert _concepts(one, "name") == ("caption a cat", "caption a pet", "class cat")
    assert _concepts(one, "scene")[-1] == 'class {"a": [2], "b": 1}'
    with pytest.raises(ValueError, match=r"class_key species: 1 of x.tar has no such key in its json"):
        _concepts(one, "species")


def _shard(folder, rows):
    samples = [{"png": encoded(flat((n, n, n))), "json": json.dumps(row).encode()} for n, row in enumerate(rows)]
    write_shard(folder / "a.tar", samples)
    return str(folder / "a.tar")


def test_data_of_one_class_are_refused_at_once(tmp_path):
    one = [{"captions": [f"bird {n}"], "class": "wren"} for n in range(5)]
    spec = _shard(tmp_path, one)
    with pytest.raises(ValueError, match=r"class_key class: all pairs of .* are of one class"):
        check_concepts(spec, Images(), "class")
    check_concepts(spec, Images(), None)  # by their captions they differ
    check_concepts(_shard(tmp_path, [*one, {"captions": ["a dove"], "class": "dove"}]), Images(), "class")
    same = [{"captions": ["a bird"]}, {"captions": ["a bird", "wings"]}, {"captions": ["A bird"]}]
    with pytest.raises(ValueError, match="told apart by their captions"):
        check_concepts(_shard(tmp_path, same), Images(), None)
    # the first shares with both others, which share nothing
    check_concepts(
        _shard(tmp_path, [{"captions": ["a", "b"]}, {"captions": ["a"]}, {"captions": ["b"]}]), Images(), None
    )
