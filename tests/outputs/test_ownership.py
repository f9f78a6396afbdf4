"""A command writes where nothing is, or where it wrote before; all else it leaves as it was."""

import os
import stat
from contextlib import AbstractContextManager

import pytest

from dalle.outputs.ownership import check, claimed, claimed_file, read_mark, remove_mark, unfinished, write_mark


def _refused(told: str, claim: AbstractContextManager) -> None:
    with pytest.raises(ValueError, match=told), claim:
        pass


def test_a_folder_is_marked_and_known_again(tmp_path):
    with claimed(tmp_path / "a/out", "dalle-tokenize") as folder:
        (folder / "meta.json").write_text("{}")
        _refused(
            r"output .*out: dalle-tokenize \(process \d+ on .*\) is writing there", claimed(folder, "dalle-tokenize")
        )
    assert sorted(path.name for path in folder.iterdir()) == [".dalle-tokenize", "meta.json"]
    assert read_mark(folder, "dalle-tokenize") == {}
    with claimed(folder, "dalle-tokenize"):
        pass
    assert (folder / "meta.json").is_file()
    told = r"is not empty: it holds meta\.json, which dalle-sample did not make"
    _refused(told, claimed(folder, "dalle-sample"))
    assert sorted(path.name for path in folder.iterdir()) == [".dalle-tokenize", "meta.json"]


def test_what_nothing_was_written_in_is_left_as_it_was(tmp_path):
    for folder in (tmp_path / "new/and/deep", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(KeyError), claimed(folder, "dalle-tokenize"):
            raise KeyError
        assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    (tmp_path / "empty/train.log").touch()
    with claimed(tmp_path / "empty", "dalle-train-dvae", ("config.yaml",)):
        pass
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["train.log"]


def test_names_that_a_command_writes_may_not_be_there(tmp_path):
    (tmp_path / "train.log").touch()
    (tmp_path / ".hidden").touch()
    check(tmp_path, "dalle-train-dvae", ("config.yaml", "model.safetensors*"))
    (tmp_path / "model.safetensors.partial").touch()
    with pytest.raises(ValueError, match=r"holds model\.safetensors\.partial, which .*; name another --output$"):
        check(tmp_path, "dalle-train-dvae", ("config.yaml", "model.safetensors*"))
    with pytest.raises(
        ValueError, match=r"holds model\.saf.*name another --output, or write over it with --overwrite$"
    ):
        check(tmp_path, "dalle-tokenize", overwrite=False)
    check(tmp_path, "dalle-tokenize", overwrite=True)
    assert len(list(tmp_path.iterdir())) == 3


def test_hidden_files_are_not_in_the_way(tmp_path):
    (tmp_path / ".gitkeep").touch()
    with claimed(tmp_path, "dalle-tokenize"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".gitkeep"]


def test_partial_work_that_was_left_is_removed_by_the_next_claim_alone(tmp_path):
    left = unfinished(tmp_path)
    (left / "tokens").touch()
    (tmp_path / "theirs.partial").mkdir()
    with claimed(tmp_path, "dalle-tokenize", ("meta.json",)):
        assert left.is_dir(), "a folder without our mark is nothing to clean up"
    write_mark(tmp_path, "dalle-tokenize", {"data": "x"})
    with claimed(tmp_path, "dalle-tokenize"):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".dalle-lock", ".dalle-tokenize", "theirs.partial"]
    assert read_mark(tmp_path, "dalle-tokenize") == {"data": "x"}
    remove_mark(tmp_path, "dalle-tokenize")
    assert read_mark(tmp_path, "dalle-tokenize") is None


@pytest.mark.parametrize("content", [b"", b"[", b"[1]", b"\xff"])
def test_a_mark_is_one_whatever_is_in_it(tmp_path, content):
    (tmp_path / ".dalle-tokenize").write_bytes(content)
    assert read_mark(tmp_path, "dalle-tokenize") == {}


@pytest.mark.parametrize("output", ["file", "file/out", "/proc/dalle"])
def test_what_cannot_be_written_is_said(tmp_path, output):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(ValueError, match=r"output .* is not writable: \w+"),
        claimed(tmp_path / output, "dalle-tokenize"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_one_that_cannot_be_written(tmp_path):
    """As where a disk is mounted for a user: what is beside the output folder is not asked for."""
    (tmp_path / "out").mkdir()
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with claimed(tmp_path / "out", "dalle-tokenize") as folder:
            (folder / "meta.json").touch()
    finally:
        tmp_path.chmod(stat.S_IRWXU)
    assert read_mark(tmp_path / "out", "dalle-tokenize") == {}


def test_a_file_is_never_ones_own(tmp_path):
    path = tmp_path / "new/tokenizer.json"
    with pytest.raises(KeyError), claimed_file(path, "dalle-train-tokenizer", overwrite=False):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with claimed_file(path, "dalle-train-tokenizer", overwrite=False):
        _refused("is writing there", claimed_file(path, "x", overwrite=True))
        with claimed_file(path.with_name("other.json"), "dalle-train-tokenizer", overwrite=False):
            pass
        path.touch()
    told = r"tokenizer\.json is there already; .*--overwrite"
    _refused(told, claimed_file(path, "dalle-train-tokenizer", overwrite=False))
    path.unlink()
    os.symlink("gone", path)
    _refused("there already", claimed_file(path, "x", overwrite=False))
    with claimed_file(path, "dalle-train-tokenizer", overwrite=True):
        pass
    assert [each.name for each in path.parent.iterdir()] == ["tokenizer.json"]
