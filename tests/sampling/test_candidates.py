"""Candidates as a stream: the best of them, chunks that shrink, and processes that share the work."""

import os
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import dalle
from dalle.config import Sampling
from dalle.config.checks import out_of_memory
from dalle.sampling.candidates import Best, Part, Work, draw
from dalle.sampling.drawing import Drawing, fingerprint
from dalle.sampling.prompt import Prompt
from dalle.sampling.workers import WorkerDied, draw_with_workers

pytestmark = pytest.mark.usefixtures("two_threads")  # C++ and products share work among them

FAST = Sampling(chunk=4, precision="fp32")
WORK = Work(("a red circle", "a blue cross"), n=10, keep=3, seed=5, sampling=FAST)
# of which all but the last code are given: so there are at most 16 drawings
REPEATED = replace(WORK, n=20, prompt=Prompt(np.arange(16), np.arange(16) < 15))


@pytest.fixture(scope="module")
def pipeline(models):
    return dalle.load(models, device="cpu")


def _drawing(seed, score, code=None):
    codes_I = np.array([seed if code is None else code, 0])
    return Drawing(Image.new("RGB", (1, 1)), "", score, seed, 0, {}, codes_I)


def _part(*drawings):
    return Part(0, [fingerprint(d.codes_I) for d in drawings], list(drawings))


def _best(parts, work=WORK):
    """The drawings of each caption, best first, and how many candidates they are of."""
    best, drawn = [Best(work.keep) for _ in work.captions], [0] * len(work.captions)
    for part in parts:
        best[part.caption].take(part)
        drawn[part.caption] += part.drawn
    return [caption.ranked() for caption in best], drawn


def _assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        facts = [[(d.seed, d.score, d.rank, d.times) for d in drawings] for drawings in (ours, theirs)]
        assert facts[0] == facts[1]
        assert all(np.array_equal(a.image, b.image) for a, b in zip(ours, theirs, strict=True))


def test_captions_may_have_seeds_of_their_own(pipeline):
    work = replace(WORK, keep=WORK.n, seeds=(100, 7))
    found, _ = _best(draw(pipeline, work), work)
    for caption, seed, drawings in zip(work.captions, work.seeds, found, strict=True):
        alone = replace(work, captions=(caption,), seed=seed, seeds=None)
        _assert_same([drawings], _best(draw(pipeline, alone), alone)[0])
        assert all(seed <= drawing.seed < seed + work.n for drawing in drawings)


def test_the_best_are_kept_and_only_they_are_handed_on():
    best = Best(2)
    assert [d.seed for d in best.add([_drawing(0, 0.5), _drawing(1, 0.1), _drawing(2, 0.9)])] == [0, 2]
    assert best.add([_drawing(3, 0.5)]) == []  # of equal ones the lowest seed
    assert [d.seed for d in best.add([_drawing(4, 0.7), _drawing(5, 0.2)])] == [4]
    assert [(d.seed, d.rank) for d in best.ranked()] == [(2, 1), (4, 2)]
    unranked = Best(2)
    unranked.add(_drawing(seed, None) for seed in (7, 3, 5))
    assert [d.seed for d in unranked.ranked()] == [3, 5]


def test_without_codes_equal_pixels_are_one_drawing():
    drawings = [Drawing(Image.new("RGB", (2, 1), colour), "", None, 0, 0, {}) for colour in ("red", "blue", "red")]
    best = Best(3)
    best.take(Part(0, [d.fingerprint() for d in drawings], [replace(d, seed=i) for i, d in enumerate(drawings)]))
    assert [(d.seed, d.times) for d in best.ranked()] == [(0, 2), (1, 1)]


def test_equal_drawings_are_one_that_is_counted_and_the_next_best_fills_up():
    best = Best(2)
    best.take(_part(_drawing(0, 0.5, 10), _drawing(1, 0.9, 11), _drawing(2, 0.9, 11), _drawing(3, 0.2, 12)))
    assert [(d.seed, d.rank, d.times) for d in best.ranked()] == [(1, 1, 2), (0, 2, 1)]
    best.take(_part(_drawing(4, 0.2, 12), _drawing(5, 0.9, 11), _drawing(6, 0.7, 13)))
    assert [(d.seed, d.rank, d.times) for d in best.ranked()] == [(1, 1, 3), (6, 2, 1)]
    assert best.differing == 4
    # what dropped out is counted all the same, should a lower seed bring it back, as workers may
    unranked = Best(2)
    for seed, code in ((8, 10), (7, 11), (6, 12), (5, 10)):
        unranked.take(_part(_drawing(seed, None, code)))
    assert [(d.seed, d.rank, d.times) for d in unranked.ranked()] == [(5, 1, 2), (6, 2, 1)]
    # one that is there already is handed on when its seed is lower, and not otherwise
    handed = Best(1)
    assert [d.seed for d in handed.add([_drawing(3, 0.5, 1)])] == [3]
    assert handed.add([_drawing(4, 0.5, 1), _drawing(5, 0.4, 2)]) == []
    assert [d.seed for d in handed.add([_drawing(2, 0.5, 1), _drawing(1, 0.5, 1)])] == [1]


def test_the_best_of_many_are_those_of_a_sort():
    """Of 2,000 candidates with 300 different drawings, in any order and from several workers."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 300, 2000)
    scores = generator.integers(0, 40, 300) / 40  # some equal
    drawings = [_drawing(seed, float(scores[code]), int(code)) for seed, code in enumerate(codes)]
    expected = {}
    for drawing in drawings:
        expected.setdefault(drawing.codes_I[0], drawing)
    expected = sorted(expected.values(), key=lambda d: (-d.score, d.seed))[:25]
    counts = np.bincount(codes)
    facts = [(d.seed, counts[d.codes_I[0]]) for d in expected]
    for order in (np.arange(2000), generator.permutation(2000), np.arange(2000)[::-1]):
        whole, workers = Best(25), [Best(25) for _ in range(3)]
        for block in np.array_split(order, 100):
            worker = workers[generator.integers(3)]
            part = _part(*(drawings[i] for i in block))
            whole.take(Part(0, part.fingerprints, worker.add(part.drawings)))
        assert [(d.seed, d.times) for d in whole.ranked()] == facts
        assert whole.differing == (counts > 0).sum()


def test_parts_do_not_depend_on_who_draws_them(pipeline):
    """Blocks drawn in two halves, as two workers would, give the best of all."""
    expected, drawn = _best(draw(pipeline, WORK))
    assert drawn == [10, 10]
    assert [len(drawings) for drawings in expected] == [3, 3]
    halves = [*draw(pipeline, WORK, [0, 3, 4]), *draw(pipeline, WORK, [1, 2, 5, 6, 9])]
    found, drawn = _best(halves)
    assert drawn == [10, 10]
    _assert_same(found, expected)


def test_out_of_memory_halves_the_chunk_and_loses_nothing(pipeline, monkeypatch):
    whole = pipeline.chunk
    widths = []

    def tight(reading, first_seed, sampling, *more):
        widths.append(sampling.chunk)
        if first_seed >= 9 and sampling.chunk > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(reading, first_seed, sampling, *more)

    monkeypatch.setattr(pipeline, "chunk", tight)
    with pytest.warns(UserWarning) as said:
        drawings = pipeline.generate("a red circle", n=10, seed=5, sampling=FAST)
    assert widths == [4, 4, 2, 1, 1, 1, 1, 1, 1]
    assert [str(w.message) for w in said if "out of memory" in str(w.message)] == [
        "out of memory with 4 candidates at a time; from seed 9 on 2 at a time",
        "out of memory with 2 candidates at a time; from seed 9 on 1 at a time",
    ]
    assert sorted(d.seed for d in drawings) == list(range(5, 15))
    assert {d.seed: d.settings["chunk"] for d in drawings} == {seed: 4 if seed < 9 else 1 for seed in range(5, 15)}
    monkeypatch.setattr(pipeline, "chunk", _no_memory)
    with pytest.raises(ValueError, match="even with one candidate"), pytest.warns(UserWarning):
        pipeline.generate("a red circle", n=1, sampling=FAST)


def test_a_chunk_that_is_much_too_wide_is_said(pipeline, recwarn):
    for sampling, n in ((Sampling(precision="fp32"), 17), (Sampling(precision="fp32", chunk=64), 2)):
        pipeline.generate("a red circle", n=n, sampling=sampling)
    assert not [w for w in recwarn if "drawn together" in str(w.message)]
    with pytest.warns(UserWarning, match="64 candidates are drawn together, 2 are asked for: sampling.chunk 2 is"):
        pipeline.generate("a red circle", n=2, sampling=Sampling(precision="fp32"))


def _no_memory(*_):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")


def test_other_errors_are_not_taken_for_a_want_of_memory(pipeline, monkeypatch):
    assert not out_of_memory(RuntimeError("shapes do not match"))
    monkeypatch.setattr(pipeline, "chunk", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        pipeline.generate("a red circle", n=1, sampling=FAST)


def _load(folder, device):
    """In a worker."""
    return dalle.load(folder, device=device)


def _die(device):
    os.kill(os.getpid(), signal.SIGKILL)


def test_two_processes_draw_what_one_draws(models, pipeline):
    """With as many threads: oneDNN's convolutions round by their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))  # what each of two workers gets
    try:
        expected, _ = _best(draw(pipeline, WORK))
    finally:
        torch.set_num_threads(threads)
    found, drawn = _best(draw_with_workers(partial(_load, models), WORK, processes=2))
    assert drawn == [10, 10]
    _assert_same(found, expected)


def test_two_processes_count_what_one_counts(models, pipeline):
    expected, _ = _best(draw(pipeline, REPEATED), REPEATED)
    assert max(d.times for drawings in expected for d in drawings) > 1
    found, drawn = _best(draw_with_workers(partial(_load, models), REPEATED, processes=2), REPEATED)
    assert drawn == [20, 20]
    _assert_same(found, expected)


def test_a_worker_that_dies_is_named():
    with pytest.raises(WorkerDied, match=r"worker [12] of 2 \((cpu|cuda:\d)\) died with exit code -9 \(SIGKILL"):
        list(draw_with_workers(_die, WORK, processes=2))
