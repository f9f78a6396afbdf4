"""The minutes are shared among the stages, and kept."""

import pytest

from dalle.own import budget
from dalle.own.budget import STAGES, in_words, share, still_to_come

UPDATE_S = {"dvae": 0.25, "prior": 0.3, "clip": 0.4}
MANY = {"dvae": 10**9, "prior": 10**9, "clip": 10**9}


@pytest.mark.parametrize("minutes", [3, 30, 480])
def test_the_time_is_used_up(minutes):
    shared = share(60 * minutes, STAGES, UPDATE_S, MANY)
    # what is lost are parts of an update, one a stage
    assert shared.total_s == pytest.approx(60 * minutes, abs=sum(UPDATE_S.values()))
    assert shared.seconds["prior"] > shared.seconds["dvae"] > shared.seconds["clip"]


@pytest.mark.parametrize(("left_s", "gallery_s"), [(1, 10), (60, 10), (400, 20), (1800, 90), (10**5, 90)])
def test_drawing_takes_a_twentieth_within_limits(left_s, gallery_s):
    assert share(left_s, STAGES, UPDATE_S, MANY).seconds["gallery"] == pytest.approx(gallery_s)


def test_each_stage_takes_its_start_as_well():
    """By hand: of 100 s ten are the gallery's, and six go by before and after the updates of each stage."""
    shared = share(100, ("dvae", "gallery"), {"dvae": 0.5}, MANY)
    assert shared.updates == {"dvae": 168} and shared.seconds == {"dvae": 90.0, "gallery": 10.0}
    both = share(100, ("dvae", "clip", "gallery"), {"dvae": 0.5, "clip": 1.0}, MANY, fixed={"clip": 22})
    assert both.updates == {"dvae": 112, "clip": 22} and both.seconds == {"dvae": 62.0, "clip": 28.0, "gallery": 10.0}


def test_what_one_cannot_use_goes_to_the_others():
    shared = share(1800, STAGES, UPDATE_S, MANY | {"dvae": 100})
    assert shared.updates["dvae"] == 100
    assert shared.total_s == pytest.approx(1800, abs=1)
    alone = share(1800, STAGES, UPDATE_S, MANY)
    assert shared.updates["prior"] > alone.updates["prior"] and shared.updates["clip"] > alone.updates["clip"]


def test_a_late_stage_leaves_less_to_those_behind_it():
    """The plan is for 1,800 s; the dVAE took twice its time: the end is still kept."""
    planned = share(1800, STAGES, UPDATE_S, MANY)
    left_s = 1800 - 2 * planned.seconds["dvae"]
    rest = share(left_s, still_to_come(["prior", "clip"]), UPDATE_S, MANY)
    assert rest.total_s == pytest.approx(left_s, abs=1)
    assert rest.updates["prior"] < planned.updates["prior"]


def test_what_a_person_has_set_is_kept_and_reckoned_with():
    shared = share(1800, STAGES, UPDATE_S, MANY, fixed={"clip": 1000})
    assert shared.updates["clip"] == 1000
    assert shared.total_s == pytest.approx(1800, abs=1)
    assert share(1800, STAGES, UPDATE_S, MANY, fixed={"dvae": 7, "prior": 8, "clip": 9}).updates == {
        "dvae": 7,
        "prior": 8,
        "clip": 9,
    }


def test_without_time_there_is_still_a_little_of_each():
    shared = share(-100, STAGES, UPDATE_S, MANY)
    assert set(shared.updates.values()) == {20}


def test_still_to_come():
    assert still_to_come([]) == ("gallery",)
    assert still_to_come(["clip", "prior"]) == ("prior", "clip", "gallery")


def test_more_than_helps_is_not_planned():
    from dalle.own.plan import choose_sizes
    from tests.own.test_plan import TWO_CORES, pictures

    few, many = pictures(12), pictures(100_000)
    for found, updates in ((few, 4_000), (many, 1_000_000)):
        most = budget.most_updates(choose_sizes(found, TWO_CORES, 30), found)
        assert most["prior"] == updates
        assert most["dvae"] == 12_000
    found = pictures(500)  # 1,500 passes in batches of 128
    assert budget.most_updates(choose_sizes(found, TWO_CORES, 30), found)["clip"] == 500 * 1500 // 128


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((4, "4 s"), (89.4, "89 s"), (90, "1 min 30 s"), (119, "2 min"), (204, "3 min 20 s"), (598, "10 min")),
        *((600, "10 min"), (1800, "30 min"), (5399, "90 min"), (5400, "1.5 h")),
    ],
)
def test_in_words(seconds, words):
    assert in_words(seconds) == words
