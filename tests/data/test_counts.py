"""Counting what becomes of samples: by reason, with names, once."""

import json

import pytest

from dalle.data.counts import Broken, Counts, Filtered, OtherFile, totalled


def _sample(key: str, shard: str = "x.tar") -> dict:
    return {"__key__": key, "__url__": shard}


def _some() -> Counts:
    counts = Counts()
    for i in range(1200):
        counts.add(_sample(f"good {i}"))
    for i in range(5):
        counts.add(_sample(str(i), f"{i // 2}.tar"), Broken("no image"))
    counts.add(_sample("wide"), Filtered("too wide", "9×1"))
    counts.add(_sample("README"), OtherFile("another kind of file"))
    return counts


def test_the_line_tells_all_by_reason_with_the_first_names():
    assert _some().line() == (
        "of 1,206 samples 1,200 were used, 1 filtered out, 5 broken (1 × too wide: wide (9×1) of x.tar; "
        "5 × no image: 0, 1 of 0.tar; 2 of 1.tar, …); files that are neither images nor captions: "
        "1 × another kind of file: README of x.tar"
    )
    assert Counts().line() == "of 0 samples 0 were used, 0 filtered out, 0 broken"


def test_counts_add_up_and_are_left_as_they_were():
    counts, before = _some(), _some()
    total = counts + counts
    assert (total.read, total.num_filtered, total.num_broken) == (2412, 2, 10)
    assert len(total.broken["no image"].first) == 3
    total.add(_sample("z"), Broken("no image"))
    total.add(_sample("z"), Filtered("too wide"))
    assert counts == before
    counts.take(before)
    assert counts + Counts() == counts == before + before
    assert totalled([{"data": before}, {}, {"data": before, "valid_data": before}]) == {
        "data": counts,
        "valid_data": before,
    }


def test_they_are_the_same_after_json():
    counts = _some()
    assert Counts.from_json(json.loads(json.dumps(counts.to_json()))) == counts


@pytest.mark.parametrize(
    ("good", "broken", "at_end", "refused"),
    [
        (0, 1, False, False),
        (0, 19, False, False),
        (0, 20, False, True),
        (0, 1, True, True),
        (1, 30, False, False),
        (94, 6, False, True),
        (95, 5, False, False),
        (93, 6, False, False),
        (18, 2, True, True),
        (17, 2, True, False),
    ],
)
def test_the_limit(good, broken, at_end, refused):
    counts = Counts()
    for i in range(good + broken):
        counts.add(_sample(str(i)), Broken("no image") if i >= good else None)
    if refused:
        with pytest.raises(
            ValueError, match=rf"{broken} of {good + broken} samples .*no image: {good}.*bad_fraction 0\.05"
        ):
            counts.check_limit(0.05, at_end)
    else:
        counts.check_limit(0.05, at_end)


def test_names_are_printable_whatever_a_tar_holds():
    counts = Counts()
    for key in ("a\x1b[2J", "b\udcff", "c\nd", "<é>"):
        counts.add(_sample(key), Broken("no image", "e\x07"))
    names = [key for _, key, _ in counts.broken["no image"].first]
    assert names == [r"a\x1b[2J", r"b\udcff", r"c\nd"]
    assert counts.line().isprintable()
    counts.line().encode()
