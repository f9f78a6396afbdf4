"""The experiment of learning from one's own candidates: its cells' commands, its figures, its table."""

import importlib.util
import itertools
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from dalle.cli import arguments
from dalle.config import Sampling, TrainPrior
from dalle.data.shapes import read
from dalle.evaluation.accuracy import distinct
from dalle.sampling.loading import load
from tests.conftest import ROOT

_spec = importlib.util.spec_from_file_location("best_of", ROOT / "tools/best_of.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def _options(tmp_path, *more: str):
    return tool.parse(["--model", str(tmp_path / "demo"), "--output", str(tmp_path / "out"), *more])


def _config(words: list[str]) -> TrainPrior:
    return arguments.parse(TrainPrior, "test", words[3:])


def test_control_and_test_differ_in_the_candidates_alone(tmp_path):
    options = _options(tmp_path, "--share", "0.3")
    control, test, checked = (
        _config(tool.command(arm, 2, tmp_path / "cell", options)) for arm in ("control", "clip@1.0", "checker")
    )
    assert control.best_of is None and test.best_of.judge == "clip" and test.best_of.sampling.temperature == 1
    assert (
        checked.best_of.scenes == f"{tmp_path}/demo/data/train-*.tar" and checked.best_of.sampling.temperature is None
    )
    assert test.best_of.share == 0.3 and test.best_of.seed == test.run.seed == 2
    for other in (test, checked):
        assert {**vars(control), "best_of": None} == {**vars(other), "best_of": None}
    assert control.start_from == f"{tmp_path}/demo/prior" and control.run.steps == 800


def test_the_difference_is_over_paired_captions(tmp_path):
    hard = [0.0, 0.5, 1.0, 0.25]
    control = [{"unranked": hard}, {"unranked": [x + 0.1 for x in hard]}]
    test = [{"unranked": [x + 0.1 for x in hard]}, {"unranked": [x + 0.4 for x in hard]}]
    mean, low, high = tool.difference(test, control, "unranked")
    assert mean == pytest.approx(0.2) and low == pytest.approx(0.2) and high == pytest.approx(0.2)
    varied = [{"unranked": [0.0, 0.2, 0.4, 0.6]}]
    mean, low, high = tool.difference(varied, [{"unranked": [0.0] * 4}], "unranked")
    # 1.96 · the standard deviation of (0, 0.2, 0.4, 0.6), √(0.2/3), over √4
    assert mean == pytest.approx(0.3) and high - mean == mean - low == pytest.approx(0.98 * (0.2 / 3) ** 0.5)


def test_the_spread_over_seeds_is_told_from_two_on():
    figures = [{name: [value] for name in tool.COLUMNS if name != "seconds"} | {"seconds": 1.0} for value in (0.5, 0.7)]
    one, two = (tool.table({tool.CONTROL: runs}).splitlines()[-1] for runs in (figures[:1], figures))
    assert "±" not in one and "| 50.0% |" in one
    assert "| 60.0% ± 14.1% |" in two  # of 50 and 70, with one degree of freedom


def test_a_finished_cell_is_not_repeated_and_the_table_has_all(tmp_path, monkeypatch, capsys):
    values = {name: [0.5, 0.7] for name in tool.COLUMNS if name != "seconds"}
    for arm, seed, gain in (("before", 0, 0), ("control", 0, 0), ("clip", 0, 0.1)):
        folder = tmp_path / "out" / f"{arm}-{seed}"
        folder.mkdir(parents=True)
        told = {name: [x + gain for x in each] for name, each in values.items()}
        (folder / "result.json").write_text(json.dumps({**told, "seconds": 61.0}))
    monkeypatch.setattr(tool, "_run", None)
    inputs = ["--model", str(tmp_path), "--output", str(tmp_path / "out"), "--seeds", "1", "--arms", "clip"]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tools/best_of.py"), *inputs])
    tool.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["before", "control", "clip"]
    assert (
        lines[4]
        == "| clip | 70.0% | 70.0% | 0.7 | 0.7 | 70.0% | 61 | +10.0 (+10.0 to +10.0) | +10.0 (+10.0 to +10.0) |"
    )
    assert lines[3].endswith("|  |  |")


@pytest.fixture
def demo(models, shapes_folder, tmp_path):
    """A folder as `dalle-demo` leaves it."""
    (tmp_path / "demo").mkdir()
    for name in ("prior", "dvae", "clip", "tokens"):
        (tmp_path / "demo" / name).symlink_to(models / name)
    (tmp_path / "demo/data").symlink_to(shapes_folder)
    return tmp_path / "demo"


def test_a_cell_is_trained_once_and_judged_by_all_candidates(demo, tmp_path, monkeypatch):
    """Killed as its result was to be written, it is judged anew, not trained."""
    options = _options(tmp_path, "--judged_captions", "3", "--judged_candidates", "6")
    folder, ran = tmp_path / "out/clip-1", []

    def run(words, into):
        assert into == folder
        ran.append("train" if "--data" in words else "judge")
        if ran[-1] == "train":
            (folder / "model.safetensors").touch()
            return
        argv = [f"--judge={demo}/prior" if word.startswith("--judge=") else word for word in words[1:]]
        assert f"--judge={folder}" in words
        monkeypatch.setattr(sys, "argv", argv)
        tool.main()

    def shown(image_YX3, claim=None):
        """Stands in for the checker, which a tiny prior never pleases."""
        return int(image_YX3.astype(int).sum()) % 3 == 0

    monkeypatch.setattr("dalle.evaluation.accuracy.shows", shown)
    monkeypatch.setattr(
        "dalle.data.shapes.read",
        lambda image: SimpleNamespace(objects=read(image).objects, right=shown(np.asarray(image))),
    )
    monkeypatch.setattr("dalle.data.shapes.holds", lambda reading, claim: reading.right)
    monkeypatch.setattr(tool, "_run", run)
    clock = iter([100.0, 130.0])
    monkeypatch.setattr(tool.time, "monotonic", lambda: next(clock))
    write = tool._write

    def die(path, value):
        if path.name == "result.json":
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tool, "_write", die)
        tool.cell("clip", 1, options)
    found = tool.cell("clip", 1, options)
    assert ran == ["train", "judge", "judge"] and found["seconds"] == 30.0
    assert json.loads((folder / "result.json").read_text()) == found
    assert tool.cell("clip", 1, options) == found and len(ran) == 3

    pipeline, pairs = load(demo, device="cpu"), distinct(f"{demo}/data/valid-*.tar", 32, 3)
    captions = [pair.captions[0] for pair in pairs]
    (chunk,) = pipeline.candidates(captions, 6, tool._EVALUATION_SEED + 6, Sampling(chunk=6))
    for i in range(3):
        codes_NI, right = chunk.codes_CNI[i], [shown(image) for image in chunk.images_CNYX3[i]]
        alike = [np.mean(one == other) for one, other in itertools.combinations(codes_NI, 2)]
        assert found["unranked"][i] == np.mean(right)
        assert found["reranked"][i] == right[int(chunk.scores_CN[i].argmax())]
        assert found["differing"][i] == len(np.unique(codes_NI, axis=0))
        assert found["agreement"][i] == pytest.approx(np.mean(alike))
        assert min(1, sum(right)) <= found["scenes"][i] <= sum(right)
    assert 0 < np.mean(found["unranked"]) < 1
