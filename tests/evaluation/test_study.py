"""The human study's page and who sees what: five votes, balanced sides, nothing that tells the models apart."""

import base64
import io
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from dalle.cli.evaluation.study import study
from dalle.evaluation.study.design import read_design
from tests.evaluation.study_folders import CAPTIONS, embedded, write_images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    write_images(folder / "real", ["a real cat", "a real dog", "a real fox"], seed=9)
    for seed, name in enumerate(("ours", "theirs", "third")):
        write_images(folder / name, seed=seed)
    return folder


def _make(folders, output, *options, models=("ours", "theirs")):
    images = " ".join(str(folders / name) for name in models)
    study(["--images", images, "--output", str(output), *options])
    return output


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    """30 votes on pairs of 12 captions, for 15 workers of four."""
    options = ["--pairs_per_worker", "4", "--real", str(folders / "real"), "--catch_trials", "3"]
    return _make(folders, tmp_path_factory.mktemp("made") / "study", *options)


def _pairs(design):
    return {name for name, trial in design.trials.items() if trial.right is None}


def _images(told):
    return {
        name: np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
        for name, url in told["images"].items()
    }


def test_each_pair_is_seen_by_five_workers_and_nobody_sees_too_many(made):
    design = read_design(made / "study.json")
    pairs, seen = _pairs(design), defaultdict(set)
    assert len(pairs) == len(CAPTIONS) and len(design.workers) == 15
    for worker, shown in enumerate(design.workers):
        own = [show.trial for show in shown if show.trial in pairs and not show.again]
        assert len(own) == len(set(own)) == 4
        for trial in own:
            seen[trial].add(worker)
        assert sum(show.trial not in pairs for show in shown) == 3  # the catch trials
        again = [show for show in shown if show.again]
        assert len(again) == 2
        for show in again:  # later, and with the sides changed
            first = next(s for s in shown if s.trial == show.trial)
            assert shown.index(first) < shown.index(show) and first.left != show.left and not first.again
    assert {len(workers) for workers in seen.values()} == {5} and set(seen) == pairs
    # people meet in other company each time, or nobody could tell who of five fixed ones is careless
    assert len({frozenset(workers) for workers in seen.values()}) > 6


@pytest.mark.parametrize(("votes", "per_worker", "workers"), [(5, 50, 5), (3, 5, 8), (4, 7, 7)])
def test_workers_have_as_many_pairs_give_or_take_one(folders, tmp_path, votes, per_worker, workers):
    options = ["--votes", str(votes), "--pairs_per_worker", str(per_worker), "--catch_trials", "0", "--repeats", "0"]
    design = read_design(_make(folders, tmp_path / "s", *options) / "study.json")
    loads = [len(shown) for shown in design.workers]
    assert len(loads) == workers and sum(loads) == votes * len(CAPTIONS)
    assert max(loads) - min(loads) <= 1 and max(loads) <= per_worker
    counts = Counter(show.trial for shown in design.workers for show in shown)
    assert set(counts.values()) == {votes}


def test_sides_are_balanced(folders, made, tmp_path):
    three = _make(folders, tmp_path / "three", models=("ours", "theirs", "third"))
    for folder, pairs in ((made, 12), (three, 36)):
        design = read_design(folder / "study.json")
        assert len(_pairs(design)) == pairs
        left = defaultdict(Counter)
        for shown in design.workers:
            for show in shown:
                if show.trial in _pairs(design) and not show.again:
                    left[show.trial][design.pictures[show.left].model] += 1
        assert all(sorted(counts.values()) == [2, 3] for counts in left.values())  # of each pair
        threes = Counter(counts.most_common(1)[0][0] for counts in left.values())
        if folder == made:
            assert set(threes.values()) == {6}, threes  # and of the whole
        assert {design.pictures[image].model for trial in _pairs(design) for image in design.trials[trial].images} == {
            *design.models
        }


def test_catch_trials_have_a_known_answer(made):
    design, told = read_design(made / "study.json"), embedded(made)
    images = _images(told)
    catch = [trial for trial in design.trials.values() if trial.right is not None]
    noise = [trial for trial in catch if trial.right["realistic"]]
    assert (len(catch), len(noise)) == (3, 2)
    for trial in noise:
        (whole,) = trial.right["realistic"]
        assert trial.right["matches"] == (whole, "neither")
        scrambled = next(image for image in trial.images if image != whole)
        assert not np.array_equal(images[whole], images[scrambled])
        ordered = [np.sort(images[name].reshape(-1, 3), axis=0) for name in (whole, scrambled)]
        assert np.array_equal(*ordered)  # no other colours
    (real,) = [trial for trial in catch if not trial.right["realistic"]]
    (right,) = real.right["matches"]
    assert {design.pictures[image].caption == real.caption for image in real.images} == {True, False}
    assert design.pictures[right].caption == real.caption and real.caption.startswith("a real")


def test_the_page_holds_the_images_and_does_not_tell_whose_they_are(folders, made):
    design, told = read_design(made / "study.json"), embedded(made)
    page = (made / "index.html").read_text()
    assert told["study"] == design.hash and set(told["images"]) == set(design.pictures)
    assert set(told) == {"study", "trials", "workers", "images"}
    said = page.split(",", 1)[0] + json.dumps({**told, "images": list(told["images"])}) + page.split("</script>")[1]
    for secret in ("ours", "theirs", str(folders)):
        assert secret not in said
    for url in told["images"].values():  # nor do the files
        assert b"drawn by" not in base64.b64decode(url.split(",")[1])
    images = _images(told)
    for name, picture in design.pictures.items():
        if picture.model is not None:
            number = CAPTIONS.index(picture.caption)
            file = Image.open(folders / picture.model / f"{number:05}/samples/0000.png")
            assert np.array_equal(images[name], np.asarray(file))
    assert list(told["images"]) == sorted(told["images"])
    # in the order of the ids a model comes first as often as the other, within what a coin does at 1 in 1,000
    first = Counter(design.pictures[design.trials[trial].images[0]].model for trial in _pairs(design))
    assert 1 <= first["ours"] <= 11
    for worker, shown in zip(told["workers"], design.workers, strict=True):
        assert [told["trials"][trial][1 + flipped] for trial, flipped in worker] == [show.left for show in shown]
        assert [trial for trial, _ in worker] == [show.trial for show in shown]
    assert not re.search(r"(?:https?:)?//[a-z]", page.split('id="study"')[0])  # nothing is fetched


def test_the_seed_decides_everything(folders, made, tmp_path):
    options = ["--pairs_per_worker", "4", "--real", str(folders / "real"), "--catch_trials", "3"]
    again = _make(folders, tmp_path / "again", *options)
    for name in ("index.html", "study.json"):
        assert (again / name).read_bytes() == (made / name).read_bytes()
    other = read_design(_make(folders, tmp_path / "other", *options, "--seed", "1") / "study.json")
    assert other.hash != read_design(made / "study.json").hash
    assert [show.trial for show in other.workers[0]] != [
        show.trial for show in read_design(made / "study.json").workers[0]
    ]


def test_captions_are_chosen_by_the_seed_and_may_say_anything(tmp_path):
    strange = [
        "</script><script>alert(1)</script>",
        "ein grüner Frosch \U0001f438",
        "a \x1b[31m red one",
        "a < b & c",
    ]
    for seed, name in enumerate(("a", "b")):
        write_images(tmp_path / name, strange, seed=seed)
    for count in (4, 2):
        folder = _make(tmp_path, tmp_path / f"study{count}", "--captions", str(count), models=("a", "b"))
        page, told = (folder / "index.html").read_text(), embedded(folder)
        captions = {told["trials"][name][0] for name in _pairs(read_design(folder / "study.json"))}
        assert len(captions) == count and captions <= set(strange)
        assert page.count("</script>") == 2


def test_a_page_of_jpegs_is_smaller(folders, tmp_path):
    told = embedded(_make(folders, tmp_path / "small", "--jpeg_quality", "50"))
    assert all(url.startswith("data:image/jpeg;base64,") for url in told["images"].values())
    image = next(iter(_images(told).values()))
    assert image.shape == (16, 16, 3)


def test_images_of_two_sizes_are_told(folders, tmp_path, capsys):
    write_images(tmp_path / "big", size_px=32)
    study(["--images", f"{folders}/ours {tmp_path}/big", "--output", str(tmp_path / "s")])
    printed = capsys.readouterr()
    assert "16 x 16, 32 x 32 pixels" in printed.err
    assert "12 pairs of 2 models, 5 votes each, for 5 workers of at most 18 pairs" in printed.out


def test_what_is_wrong_with_folders_is_one_line(folders, made, tmp_path):
    for name, captions in (("fewer", CAPTIONS[:7] + CAPTIONS[8:]), ("one", ["a"]), ("other", [*CAPTIONS, "a yak"])):
        write_images(tmp_path / name, captions)
    write_images(tmp_path / "broken")
    (tmp_path / "broken/00003/samples/0000.png").write_bytes(b"no image")
    for name, text in (("unsaid", '{"caption": "a"}'), ("unread", "{"), ("list", "[1]")):
        write_images(tmp_path / name)
        (tmp_path / name / "00005/metadata.jsonl").write_text(text)
    write_images(tmp_path / "bare")
    (tmp_path / "bare/00002/samples/0000.png").unlink()
    (tmp_path / "empty").mkdir()
    ours = folders / "ours"
    for images, told in (
        (f"{ours} {tmp_path}/fewer", r"images fewer: lacks 1 of the captions of ours, the first 'caption 7'"),
        (f"{ours} {tmp_path}/other", r"images ours: lacks 1 of the captions of other, the first 'a yak'"),
        (f"{ours}", "names one folder"),
        (f"{ours} {ours}/../ours", "names one folder twice"),
        (f"{ours} {tmp_path}/nowhere", "images .*nowhere: is no folder"),
        (f"{ours} {tmp_path}/nowhere*", "nothing is there"),
        (f"{ours} {tmp_path}/empty", "empty: holds no images"),
        (f"{ours} {tmp_path}/broken", "broken/00003/samples/0000.png"),
        (f"{ours} {tmp_path}/bare", "00002/samples: holds no image"),
        *((f"{ours} {tmp_path}/{name}", "must be a JSON object like") for name in ("unsaid", "unread", "list")),
    ):
        with pytest.raises(ValueError, match=told) as said:
            study(["--images", images, "--output", str(tmp_path / "out")])
        assert "\n" not in str(said.value) and not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="holds one caption"):
        _make(folders, tmp_path / "out", "--real", str(tmp_path / "one"))
    with pytest.raises(ValueError, match="images and answers: give one"):
        study(["--output", str(tmp_path / "out")])
    before = (made / "study.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds another study.*--overwrite"):
        _make(folders, made, "--seed", "5")
    assert (made / "study.json").read_bytes() == before


def test_two_folders_of_one_name_are_told_apart(folders, tmp_path):
    write_images(tmp_path / "ours", seed=4)
    study(["--images", f"{folders}/ours {tmp_path}/ours", "--output", str(tmp_path / "s")])
    assert read_design(tmp_path / "s/study.json").models == (str(folders / "ours"), str(tmp_path / "ours"))
