"""Which cells of an image are given, and which are drawn."""

import warnings

import numpy as np
import pytest
from PIL import Image

from dalle.sampling.prompt import Prompt, make_prompt

CODES = np.arange(16)


def _prompt(size=(32, 32), rows=0, region=None, **options):
    """A grid of 4×4 cells of 8 px."""
    return make_prompt(Image.new("RGB", size), rows, region, 4, 32, lambda image: CODES, **options)


def _drawn(prompt):
    return {(int(i) // 4, int(i) % 4) for i in np.flatnonzero(~prompt.kept_I)}


def test_rows_are_kept_from_the_top():
    assert _drawn(_prompt(rows=3)) == {(3, column) for column in range(4)}


def test_a_region_of_whole_cells_is_drawn_as_it_is():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _drawn(_prompt(region=(8, 16, 24, 24))) == {(2, 1), (2, 2)}


@pytest.mark.parametrize(
    ("size", "region", "cells", "snapped"),
    [
        ((32, 32), (9, 16, 17, 17), {(2, 1), (2, 2)}, "8,16,24,24"),
        ((32, 32), (7, 0, 8, 1), {(0, 0)}, "0,0,8,8"),
        # twice as large, with 10 px cut off at the left and right: cells of 16 px
        ((84, 64), (0, 0, 27, 16), {(0, 0), (0, 1)}, "10,0,42,16"),
        ((84, 64), (60, 50, 84, 64), {(3, 3)}, "58,48,74,64"),
    ],
)
def test_a_region_is_snapped_outward(size, region, cells, snapped):
    with pytest.warns(UserWarning) as said:
        prompt = _prompt(size=size, region=region)
    assert _drawn(prompt) == cells
    assert any(f"whole cells of tokens, {snapped} of the prompt image" in str(w.message) for w in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "rows and region: give one of them"),
        ({"rows": 1, "region": (0, 0, 8, 8)}, "rows and region: give one of them"),
        ({"rows": 4}, "rows 4: must lie between 1 and 3"),
        ({"region": (8, 8, 8, 16)}, "8,8,8,16: is empty"),
        ({"region": (8, 8, 33, 16)}, "leaves the prompt image, which has 32×32 px"),
        ({"region": (-1, 8, 3, 16)}, "leaves the prompt image"),
        ({"region": (0, 0, 32, 32)}, "whole image"),
        ({"size": (84, 64), "region": (0, 0, 10, 64)}, "centre crop of 64×64 px cuts off"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        _prompt(**options)


def test_another_size_is_said_and_known_codes_need_no_image():
    with pytest.warns(UserWarning, match=r"70×50 px: its central square was brought to 32×32"):
        _prompt(size=(70, 50), rows=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _prompt(size=(70, 50), rows=1, known_codes_I=CODES[::-1]).codes_I[0] == 15


def test_metadata_hold_what_is_kept():
    prompt = _prompt(region=(8, 16, 24, 24))
    back = Prompt.from_json(prompt.to_json())
    assert np.array_equal(back.kept_I, prompt.kept_I)
    assert np.array_equal(back.codes_I, np.where(prompt.kept_I, CODES, 0))
    given = prompt.given(2)
    assert given.codes_CI.shape == (2, 16)
    assert given.kept_I.tolist() == prompt.kept_I.tolist()
    for damaged in ({"codes": "?"}, {"kept": "AA=="}, {"kept": "AAAAAA=="}, {"codes": "AAAA"}):
        with pytest.raises(ValueError, match="cannot be read"):
            Prompt.from_json({**prompt.to_json(), **damaged})
