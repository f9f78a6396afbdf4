"""The names of what trainings leave are the names of what they leave, and of nothing else."""

import shutil

import pytest

from dalle.cli.demo import _clear
from dalle.cli.train import train
from dalle.config import TrainDVAE
from dalle.outputs.ownership import check
from dalle.outputs.run_files import WRITES, is_of_a_run
from tests.conftest import TINY_DVAE


def _files(folder):
    """Those that are not hidden."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [path for path in paths if not any(part.startswith(".") for part in path.split("/"))]


@pytest.mark.parametrize("stage", ["dvae", "prior", "clip"])
def test_all_that_a_training_leaves_is_known(models, stage, tmp_path):
    """And each of it alone keeps another training out, and is removed by the next demo."""
    files = _files(models / stage)
    assert {"config.yaml", "model.safetensors", "report.html"} < set(files)
    assert not [path for path in files if not is_of_a_run(path)]
    for number, path in enumerate(files):
        alone = tmp_path / str(number) / path
        alone.parent.mkdir(parents=True)
        shutil.copy(models / stage / path, alone)
        with pytest.raises(ValueError, match="is not empty: it holds"):
            check(tmp_path / str(number), "dalle-train-x", WRITES)
    shutil.copytree(models / stage, tmp_path / "demo" / stage)
    _clear(tmp_path / "demo")
    assert not (tmp_path / "demo" / stage).exists()


def test_what_was_set_aside_is_known_too_and_in_nobodys_way(models, shapes_folder, tmp_path):
    folder = tmp_path / "dvae"
    folder.mkdir()
    for name in ("metrics.jsonl", "run.json", "samples.json", "report.html"):
        shutil.copy(models / "dvae" / name, folder / name)
    shutil.copytree(models / "dvae/pictures", folder / "pictures")
    (folder / ".dalle-train-dvae").write_text("{}")
    train(
        "dvae",
        TrainDVAE,
        [*TINY_DVAE, "--run.steps", "1", "--data", f"{shapes_folder}/train-*.tar", "--output", str(folder)],
    )
    files = _files(folder)
    assert [path for path in files if path.startswith("previous-1/pictures/")]
    assert not [path for path in files if not is_of_a_run(path)]
    (tmp_path / "other/previous-1").mkdir(parents=True)
    (tmp_path / "other/previous-1/run.json").touch()
    check(tmp_path / "other", "dalle-train-x", WRITES)


@pytest.mark.parametrize(
    "path", ["notes.txt", "pictures/mine.jpg", "checkpoints/best", "config.yaml.mine", "a/run.json"]
)
def test_nothing_else_is(tmp_path, path):
    assert not is_of_a_run(path)
    mine = tmp_path / "demo/prior" / path
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match=r"was not made by dalle-demo"):
        _clear(tmp_path / "demo")
    assert mine.read_text() == "mine"
