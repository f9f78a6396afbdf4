"""What was done is known again, what it took is counted, and what is made anew is kept."""

import pytest

from dalle.own.progress import Progress, set_aside

INPUTS = {"plan": "1", "data": "2"}


def _seconds(progress):
    return {name: progress.of(name).seconds for name in ("dvae", "prior") if progress.of(name)}


def test_a_stage_is_finished_with_what_it_was_made_from(tmp_path):
    progress = Progress(tmp_path)
    assert progress.of("dvae") is None and progress.changes("dvae", INPUTS) == []
    progress.begin("dvae", INPUTS)
    progress.add("dvae", 2.5, finished=False)
    assert not progress.is_finished("dvae", INPUTS)
    progress.begin("dvae", INPUTS)  # gone on with
    progress.add("dvae", 4.0, finished=True)
    again = Progress(tmp_path)
    assert again.is_finished("dvae", INPUTS) and _seconds(again) == {"dvae": 6.5} and again.spent_s() == 6.5
    assert not again.is_finished("dvae", INPUTS | {"data": "3"})
    assert again.changes("dvae", INPUTS) == []
    assert again.changes("dvae", INPUTS | {"data": "3"}) == ["the pictures"]
    assert again.changes("dvae", {"plan": "1", "start": "4"}) == ["the pictures", "the ready weights"]


def test_what_is_made_anew_begins_with_no_time(tmp_path):
    progress = Progress(tmp_path)
    for stage in ("dvae", "prior"):
        progress.begin(stage, INPUTS)
        progress.add(stage, 8.0, finished=True)
    progress.begin("dvae", INPUTS | {"plan": "9"})
    assert _seconds(progress) == {"dvae": 0.0, "prior": 8.0}
    progress.begin_budget()
    assert _seconds(Progress(tmp_path)) == {"dvae": 0.0, "prior": 0.0}
    assert Progress(tmp_path).is_finished("prior", INPUTS)  # which its time has nothing to do with
    progress.forget("prior")
    assert Progress(tmp_path).of("prior") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_damaged_file_is_no_progress(tmp_path, text):
    (tmp_path / "progress.json").write_text(text)
    assert Progress(tmp_path).of("dvae") is None and Progress(tmp_path).spent_s() == 0


def test_what_goes_aside_lies_together_and_over_nothing(tmp_path):
    for name in ("dvae", "prior", "earlier-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "earlier-1/precious").write_text("mine")
    assert set_aside(tmp_path, ["clip"]) is None and not (tmp_path / "earlier-2").exists()
    aside = set_aside(tmp_path, ["dvae", "clip"])
    assert aside == tmp_path / "earlier-2" and set_aside(tmp_path, ["prior"], aside) == aside
    assert {path.name for path in aside.iterdir()} == {"dvae", "prior"}
    assert (tmp_path / "earlier-1/precious").read_text() == "mine"
