"""What is warned of from Python points at the line that called this program, not at one within it."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import dalle
from dalle.config import Sampling
from dalle.sampling.captioning import score
from dalle.sampling.model_set import Tuning

pytestmark = pytest.mark.usefixtures("two_threads")

FAST = Sampling(chunk=4, precision="fp32")
WIDE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
LONG = "a red circle " * 10


@pytest.fixture(scope="module")
def pipeline(models):
    return dalle.load(models, device="cpu")


def _untold(pipeline, **tuning):
    pipeline.tuning = replace(Tuning(), **tuning)
    return pipeline


CASES = {
    "cut off": lambda p: p.generate(LONG, n=1, sampling=FAST),
    "captions .* were cut": lambda p: list(p.candidates(["a red circle", LONG], 1, sampling=FAST)),
    "in no training caption": lambda p: p.generate(["a zebra"], n=1, sampling=FAST),
    "the reranker reads only": lambda p: p.generate(LONG, n=1, sampling=FAST),
    "sampling.chunk 1 is quicker": lambda p: p("a red circle", n=1, precision="fp32"),
    "central square was brought": lambda p: p.generate("a red circle", 1, prompt_image=WIDE, rows=1, sampling=FAST),
    "drawn are whole cells": lambda p: p.prompt(WIDE, region=(12, 0, 29, 15)),
    "nothing says whether": lambda p: _untold(p).generate("a red circle", n=1, sampling=replace(FAST, guidance=2)),
    "the gain means nothing": lambda p: score(_untold(p, caption_dropout=0.0), WIDE, ["a red circle"]),
}


@pytest.mark.parametrize("match", CASES)
def test_the_line_is_the_callers(pipeline, match, monkeypatch):
    monkeypatch.setattr(pipeline, "tuning", pipeline.tuning)  # and back
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.warns(UserWarning, match=match) as said:
            CASES[match](pipeline)
    assert {warning.filename for warning in said} == {__file__}
    assert {warning.lineno for warning in said} == {CASES[match].__code__.co_firstlineno}


def test_memory_that_runs_out_is_told_at_the_callers_line_too(pipeline, monkeypatch):
    chunk = pipeline.chunk

    def short(reading, first_seed, sampling, *more):
        if sampling.chunk > 2:
            raise torch.OutOfMemoryError("out of memory")
        return chunk(reading, first_seed, sampling, *more)

    monkeypatch.setattr(pipeline, "chunk", short)
    with pytest.warns(UserWarning, match="out of memory with 4") as said:
        pipeline.generate("a red circle", n=2, sampling=FAST)
    assert {warning.filename for warning in said} == {__file__}


def test_the_same_of_one_line_is_shown_once(pipeline):
    """As Python has it; of another line, which somebody may not have thought of, again."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(2):
            pipeline.tokens([LONG])
        pipeline.tokens([LONG])
    assert len(said) == 2
    assert said[0].lineno + 1 == said[1].lineno
