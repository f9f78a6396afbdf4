"""The human study's scoring: majorities, intervals and agreement against independent counts, and files from anyone."""

import json
import math
import random
from collections import Counter, defaultdict
from fractions import Fraction

import pytest

from dalle.cli.evaluation.study import study
from dalle.config import WorkerChecks
from dalle.evaluation.study.design import read_design
from dalle.evaluation.study.results import printed, score, section
from dalle.evaluation.study.votes import agreement, fleiss_kappa, interval
from tests.evaluation.study_folders import CAPTIONS, by_model, save, saved, write_images

ALL = WorkerChecks(fast_share=2, catch_share=0, same_side=2)
"""Counts everyone."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of three models: 36 pairs, for twenty workers of nine, with three catch trials and two pairs again."""
    folder = tmp_path_factory.mktemp("scored")
    images = [write_images(folder / name, seed=seed) for seed, name in enumerate(("ours", "theirs", "third"))]
    options = ["--pairs_per_worker", "9", "--catch_trials", "3"]
    study(["--images", " ".join(images), "--output", str(folder / "study"), *options])
    return folder / "study"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A study of two models: 12 pairs that all five workers see."""
    folder = tmp_path_factory.mktemp("two")
    images = [write_images(folder / name, seed=seed) for seed, name in enumerate(("ours", "theirs"))]
    study(["--images", " ".join(images), "--output", str(folder / "study")])
    return folder / "study"


def _at_random(seed):
    """Someone who throws dice, at pairs shown again too."""
    dice = random.Random(seed)
    return lambda design: (
        lambda shown: {
            question: dice.choice(design.options(shown.trial, question)) for question in ("realistic", "matches")
        }
    )


def _files(folder, tmp_path, answer, **options):
    design = read_design(folder / "study.json")
    return [
        save(tmp_path / "answers", f"{worker:03}.json", saved(design, worker, answer(worker)(design), **options))
        for worker in range(1, len(design.workers) + 1)
    ]


def test_results_are_those_of_a_recount(folder, tmp_path):
    files = _files(folder, tmp_path, lambda worker: _at_random(worker))
    results = score(folder, files, ALL)
    # from the files and study.json alone, by other code
    told = json.loads((folder / "study.json").read_text())
    votes = defaultdict(list)
    for file in files:
        values = json.loads(file.read_text())
        seen = set()
        for answer in values["answers"]:
            if told["trials"][answer["trial"]]["right"] is None and answer["trial"] not in seen:
                seen.add(answer["trial"])
                for question in ("realistic", "matches"):
                    chosen = told["pictures"].get(answer[question], {"model": "neither"})["model"]
                    votes[answer["trial"], question].append(chosen)
    ties = 0
    for comparison in results["comparisons"]:
        for question in ("realistic", "matches"):
            pairs = [
                given
                for (trial, asked), given in votes.items()
                if asked == question
                and {told["pictures"][i]["model"] for i in told["trials"][trial]["images"]} == set(comparison["models"])
            ]
            counts = Counter()
            for given in pairs:
                assert len(given) == 5
                most = max(given.count(option) for option in given)
                winners = [option for option in set(given) if given.count(option) == most]
                counts[winners[0] if len(winners) == 1 else "tie"] += 1
            figures = comparison[question]
            assert {name: one["pairs"] for name, one in figures["majority"].items() if one["pairs"]} == counts
            assert (figures["pairs"], figures["votes"], figures["pairs_with_all_votes"]) == (12, 60, 12)
            assert figures["fleiss_kappa"] == pytest.approx(_kappa_by_pairs(pairs), abs=1e-12)  # fp64 of exact
            ties += counts["tie"]
            for name, one in figures["majority"].items():
                assert one["share"] == counts[name] / 12
                assert one["interval_95"] == pytest.approx(_wilson(counts[name], 12), abs=1e-9)
    assert ties > 0  # of 36 questions with three answers: none is less likely than 1 in a million
    assert {name for c in results["comparisons"] for name in c["models"]} == {"ours", "theirs", "third"}
    assert "neither" not in results["comparisons"][0]["realistic"]["majority"]


def _wilson(count, total):
    """Wilson, 1927, written out."""
    z, share = 1.959963984540054, count / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return middle - half, middle + half


def _kappa_by_pairs(items):
    """Agreement of all ordered pairs of votes on an item, beyond that of two votes drawn with replacement from all."""
    agreements = [
        Fraction(sum(a == b for i, a in enumerate(votes) for j, b in enumerate(votes) if i != j))
        / (len(votes) * (len(votes) - 1))
        for votes in items
        if len(votes) > 1
    ]
    every = [vote for votes in items if len(votes) > 1 for vote in votes]
    chance = Fraction(sum(a == b for a in every for b in every), len(every) ** 2)
    return float((sum(agreements) / len(agreements) - chance) / (1 - chance))


def test_fleiss_kappa_of_a_published_table():
    """14 raters, 10 subjects, 5 categories: 0.210, the worked example that is found with the measure."""
    rows = [
        *((0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1)),
        *((7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7)),
    ]
    assert round(fleiss_kappa(rows), 3) == 0.210
    assert round(agreement(rows), 3) == 0.378


def test_fleiss_kappa_at_its_ends():
    assert fleiss_kappa([(5, 0), (0, 5), (5, 0)]) == 1
    assert fleiss_kappa([(1, 1), (1, 1)]) == -1
    assert fleiss_kappa([(5, 0), (5, 0)]) is None  # agreement by chance is certain
    assert agreement([(1, 0)]) is None and agreement([(2, 1), (1, 0)]) == pytest.approx(1 / 3)
    assert fleiss_kappa([(1, 0), (0, 1)]) is None and fleiss_kappa([]) is None
    uneven = [(3, 2), (1, 1), (1, 0), (0, 4)]
    votes = [["a"] * a + ["b"] * b for a, b in uneven]
    assert fleiss_kappa(uneven) == pytest.approx(_kappa_by_pairs(votes), abs=1e-12)


def test_the_interval_is_wilsons():
    for count, total in ((0, 10), (10, 10), (900, 1000), (1, 3)):
        assert interval(count, total) == pytest.approx(_wilson(count, total), abs=1e-9)
    assert interval(0, 0) is None


def test_a_study_like_the_papers(two, tmp_path):
    """Five workers of whom four prefer ours: ours wins all, by majority."""
    files = _files(two, tmp_path, lambda w: lambda design: by_model(design, "theirs" if w == 4 else "ours"))
    results = score(two, files, WorkerChecks())
    (comparison,) = results["comparisons"]
    for question in ("realistic", "matches"):
        assert comparison[question]["majority"]["ours"]["share"] == 1
        assert comparison[question]["majority"]["theirs"]["pairs"] == 0
        assert comparison[question]["agreement"] == pytest.approx(0.6)  # 6 of the 10 twos of five workers
        assert comparison[question]["fleiss_kappa"] == pytest.approx(-0.25)  # (0.6 − 0.68) / 0.32
    assert [worker["agreement"] for worker in results["workers"]] == [1, 1, 1, 0, 1]
    assert [worker["steady"] for worker in results["workers"]] == [1] * 5
    assert [worker["catch"] for worker in results["workers"]] == [1] * 5
    assert all(worker["pairs"] == 12 and not worker["left_out"] for worker in results["workers"])
    assert all(worker["median_s"] == 8 and worker["fast"] == 0 for worker in results["workers"])


def test_workers_are_compared_with_the_others_alone(two, tmp_path):
    """Of three against two, the others of the three are two against two, which is no majority."""
    files = _files(two, tmp_path, lambda w: lambda design: by_model(design, "ours" if w < 4 else "theirs"))
    assert [worker["agreement"] for worker in score(two, files, ALL)["workers"]] == [None, None, None, 0, 0]


def test_who_is_fast_and_disagrees_is_left_out(two, tmp_path):
    """The check that the paper tells of: neither alone is enough."""
    design = read_design(two / "study.json")

    def results(times, preferred):
        files = []
        for worker in range(1, 6):
            careful = by_model(design, preferred.get(worker, "ours"))
            files.append(save(tmp_path, f"{worker}.json", saved(design, worker, careful, seconds=times.get(worker, 4))))
        return score(two, files, WorkerChecks())

    both = results({4: 3.9}, {4: "theirs"})
    assert [w["left_out"] for w in both["workers"]] == [[], [], [], ["fast, and disagrees with the others"], []]
    assert both["comparisons"][0]["realistic"]["votes"] == 48
    assert both["with_all_workers"][0]["realistic"]["votes"] == 60
    assert both["comparisons"][0]["realistic"]["pairs_with_all_votes"] == 0
    assert "12 of 12 pairs have fewer than 5 votes" in printed(both)
    assert not any(w["left_out"] for w in results({4: 3.9}, {})["workers"])
    told = saved(design, 4, by_model(design, "theirs"))
    for fast, left_out in ((len(told["answers"]) // 2, True), (len(told["answers"]) // 2 - 1, False)):
        for number, answer in enumerate(told["answers"]):
            answer["ms"] = 3999 if number < fast else 4000
        files = [save(tmp_path, f"{w}.json", saved(design, w, by_model(design, "ours"))) for w in (1, 2, 3)]
        files.append(save(tmp_path, "4.json", told))
        assert bool(score(two, files, WorkerChecks())["workers"][3]["left_out"]) == left_out  # half is many
        assert not score(two, files, WorkerChecks(agreement=0))["workers"][3]["left_out"]  # as much as is asked for
    assert not any(w["left_out"] for w in results({}, {4: "theirs"})["workers"])


def test_who_misses_catch_trials_or_stays_on_one_side_is_left_out(two, tmp_path):
    design = read_design(two / "study.json")
    ours = by_model(design, "ours")

    def blind(shown):
        right = design.trials[shown.trial].right
        if right is None:
            return ours(shown)
        wrong = next(image for image in design.trials[shown.trial].images if image not in right["realistic"])
        return {"realistic": wrong, "matches": "neither"}  # of the eight known answers half are right

    def lazy(shown):
        return {"realistic": shown.left, "matches": shown.left}

    def lazy_too(shown):
        right = next(image for image in design.trials[shown.trial].images if image != shown.left)
        return {"realistic": right, "matches": right}

    answer = {1: ours, 2: blind, 3: lazy, 4: ours, 5: lazy_too}
    files = [save(tmp_path, f"{w}.json", saved(design, w, answer[w])) for w in answer]
    results = score(two, files, WorkerChecks())
    workers = {worker["worker"]: worker for worker in results["workers"]}
    assert (workers[2]["catch"], workers[2]["left_out"]) == (0.5, ["catch trials"])
    assert workers[3]["one_side"] == 1 and "always the same side" in workers[3]["left_out"]
    assert workers[3]["steady"] == 0  # the sides had been changed
    assert workers[5]["one_side"] == 1 and "always the same side" in workers[5]["left_out"]
    assert not any(workers[worker]["left_out"] for worker in (1, 4))
    assert not any(w["left_out"] for w in score(two, files, ALL)["workers"])


def test_a_catch_trial_asks_what_is_known_of_it(tmp_path):
    """Of two real images the caption's is known, and nobody knows which is more realistic."""
    images = [write_images(tmp_path / name, seed=seed) for seed, name in enumerate(("ours", "theirs"))]
    real = write_images(tmp_path / "real", ["a cat", "a dog"], seed=7)
    options = ["--output", str(tmp_path / "study"), "--real", real, "--catch_trials", "2"]
    study(["--images", " ".join(images), *options])
    design = read_design(tmp_path / "study/study.json")
    ours = by_model(design, "ours")

    def swapped(shown):
        """Wrong of the real images alone."""
        trial = design.trials[shown.trial]
        if trial.right is None or trial.right["realistic"]:
            return ours(shown)
        wrong = next(image for image in trial.images if image not in trial.right["matches"])
        return {"realistic": wrong, "matches": wrong}

    files = [save(tmp_path, f"{w}.json", saved(design, w, answer)) for w, answer in ((1, ours), (2, swapped))]
    assert [w["catch"] for w in score(tmp_path / "study", files, ALL)["workers"]] == [1, 2 / 3]


def test_what_is_wrong_in_a_file_is_left_out_and_counted(two, tmp_path):
    design = read_design(two / "study.json")
    good = saved(design, 1, by_model(design, "ours"), name="Ada")
    answers = good["answers"]
    odd = [
        *({**answers[0], "realistic": wrong} for wrong in ("neither", "nobody", None, 3, ["x"])),
        *({**answers[0], "matches": wrong} for wrong in ("left", None, {})),
        *({**answers[0], "ms": wrong} for wrong in (-1, "8", None, True, math.inf, math.nan)),
    ]
    unknown = [{**answers[0], "trial": "nowhere"}, {**answers[0], "trial": []}, {**answers[0], "left": "nowhere"}]
    second = saved(design, 2, by_model(design, "theirs"))
    files = {
        "a-good.json": good,
        "b-fewer.json": {**good, "answers": answers[:3]},
        "c-none.json": "{",
        "d-bytes.json": "\x00",
        "e-deep.json": "[" * 100_000,
        "f-list.json": [1],
        "g-other.json": {**good, "study": "0" * 64},
        **{f"h-worker{i}.json": {**good, "worker": w} for i, w in enumerate((0, 6, "1", True, None, 1.0, 10**30))},
        "i-odd.json": {**second, "answers": [*odd, *unknown, "x", None, *second["answers"], second["answers"][0]]},
        "j-digits.json": '{"study": ' + "9" * 5000 + "}",
        "k-noanswers.json": {**good, "answers": {}},
        "l-name.json": {**good, "name": 4},
    }
    paths = [save(tmp_path, name, values) for name, values in files.items()]
    # the file of worker 2 has another's first pair; a shown one with a wrong value has to be of its own
    own = {(show.trial, show.left) for show in design.workers[1]}
    misplaced = sum((value["trial"], value["left"]) not in own for value in odd)
    paths += [tmp_path / "missing.json", save(tmp_path, "m-latin.json", "x")]
    (tmp_path / "m-latin.json").write_bytes(b'{"name": "\xff"}')
    large = tmp_path / "n-large.json"
    with large.open("wb") as file:
        file.truncate((16 << 20) + 1)
    results = score(two, [*paths, large], ALL)
    counts = {reason: told["count"] for reason, told in results["skipped"].items()}
    assert counts.pop("a pair that this worker was not shown") == len(unknown) + misplaced
    assert counts.pop("an answer with a wrong value", 0) == len(odd) - misplaced
    assert counts == {
        "another file of the same worker": 1,
        "no JSON": 5,
        "no answers of a study": 2,
        "answers to another study": 1,
        "no worker of this study": 8,
        "an answer that is none": 2,
        "a second answer to one pair": 1,
        "cannot be read": 1,
        "larger than answers can be": 1,
    }
    assert results["skipped"]["no JSON"]["first"] == ["c-none.json", "d-bytes.json", "e-deep.json"]
    assert [worker["pairs"] for worker in results["workers"]] == [12, 12]
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("realistic", value) for value in ("neither", "nobody", None, 3, ["x"])),
        *(("matches", value) for value in ("left", None, {})),
        *(("ms", value) for value in (-1, "8", None, True, math.inf, math.nan)),
    ],
)
def test_a_wrong_value_costs_its_answer_alone(two, tmp_path, name, wrong):
    design = read_design(two / "study.json")
    values = saved(design, 1, by_model(design, "ours"))
    place = next(i for i, show in enumerate(design.workers[0]) if design.trials[show.trial].right is None)
    values["answers"][place][name] = wrong
    results = score(two, [save(tmp_path, "one.json", values)], ALL)
    assert results["skipped"] == {"an answer with a wrong value": {"count": 1, "first": ["one.json"]}}
    assert results["comparisons"][0]["realistic"]["votes"] in (11, 12)  # 12: the pair was shown again


def test_a_fuller_file_of_a_worker_is_taken_wherever_it_stands(two, tmp_path):
    design = read_design(two / "study.json")
    whole = saved(design, 1, by_model(design, "ours"))
    part = {**whole, "answers": whole["answers"][:4]}
    for order in ((part, whole, part), (whole, part, part), (part, part, whole)):
        paths = [save(tmp_path, f"{number}.json", values) for number, values in enumerate(order)]
        results = score(two, paths, ALL)
        assert results["workers"][0]["pairs"] == 12
        assert results["skipped"]["another file of the same worker"]["count"] == 2
        # one that is kept is never named as skipped
        assert f"{order.index(whole)}.json" not in results["skipped"]["another file of the same worker"]["first"]


def test_of_two_files_as_full_the_first_is_taken(two, tmp_path):
    design = read_design(two / "study.json")
    paths = [save(tmp_path, f"{name}.json", saved(design, 1, by_model(design, name))) for name in ("ours", "theirs")]
    for order in (paths, paths[::-1]):
        results = score(two, order, ALL)
        assert results["comparisons"][0]["realistic"]["majority"][order[0].stem]["pairs"] == 12
        assert results["skipped"]["another file of the same worker"]["first"] == [order[1].name]


def test_a_person_votes_once_on_a_pair(two, tmp_path):
    """Under two numbers, with one worker ID."""
    design = read_design(two / "study.json")
    for names, votes in (("same", 12), (None, 24)):
        paths = [
            save(tmp_path, f"{w}.json", saved(design, w, by_model(design, "ours"), name=names or f"person {w}"))
            for w in (1, 2)
        ]
        results = score(two, paths, ALL)
        assert results["comparisons"][0]["matches"]["votes"] == votes
        # catch trials stay: 12 pairs and the two that were shown again
        reason = "a pair that the same person answered under another number"
        assert results["skipped"].get(reason, {"count": 0})["count"] == (14 if names else 0)


def test_nothing_to_score_is_one_line(two, tmp_path):
    design = read_design(two / "study.json")
    bad = save(tmp_path, "bad.json", "{")
    lazy = save(
        tmp_path, "lazy.json", saved(design, 1, lambda shown: dict.fromkeys(("realistic", "matches"), shown.left))
    )
    before = {path: path.read_bytes() for path in two.iterdir()}
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    told = json.loads((two / "study.json").read_text())
    for number, values in enumerate(("{", "[]", json.dumps({**told, "votes": 4}), json.dumps({**told, "format": 9}))):
        (damaged / "study.json").write_text(values)
        with pytest.raises(ValueError, match="is damaged or of another version"):
            score(damaged, [lazy], ALL)
        assert number < 4
    for options, said in (
        (["--answers", str(bad)], r"none of 1 files has an answer to this study \(1 x no JSON: bad.json\)"),
        (["--answers", str(lazy)], "leave out all 1 workers .worker 1: .*always the same side"),
        (["--answers", str(tmp_path / "none*.json")], "answers .*nothing is there"),
        (["--answers", str(lazy), "--output", str(tmp_path / "nowhere")], "no study.json there"),
        (["--answers", str(lazy), "--images", "a b"], "images and answers: give one"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            study([*([] if "--output" in options else ["--output", str(two)]), *options])
        assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in two.iterdir()} == before and not (tmp_path / "nowhere").exists()


def test_the_command_writes_prints_and_reports(two, tmp_path, capsys):
    _files(two, tmp_path, lambda w: lambda design: by_model(design, "ours"))
    study(["--output", str(two), "--answers", f"{tmp_path}/answers/*.json"])
    out = capsys.readouterr().out
    assert "ours / theirs  more realistic" in out and "100.0%" in out and "Fleiss' kappa" in out
    results = json.loads((two / "results.json").read_text())
    made = section(results)
    assert made.key == "study" and made.figures == results and made.notes == ()
    page = made.html()
    assert "Human study" in page and "75.8%" in page  # Wilson's lower end of 12 of 12
    assert len(CAPTIONS) == results["captions"] == 12
    results["comparisons"][0]["models"][0] = "<b>"
    assert "<b>" not in section(results).body
    (two / "results.json").unlink()
