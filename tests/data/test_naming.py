"""What a specification of shards names: a file is a file whatever it is called, and a command runs only where it may."""

import os
import shutil

import pytest

from dalle.config import Images, Run
from dalle.data.naming import escape, expand, is_url, names
from dalle.data.pairs import PairBatches
from dalle.data.shards import read


def test_expand_knows_ranges_globs_and_lists(shapes_folder):
    first, second = f"{shapes_folder}/train-000.tar", f"{shapes_folder}/train-001.tar"
    for spec in (f"{shapes_folder}/train-{{000..001}}.tar", f"{shapes_folder}/train-*.tar", f"{first} {second}"):
        assert expand(spec) == [first, second]
    assert expand("pipe:cat some file.tar", pipes=True) == ["pipe:cat some file.tar"]


def test_paths_may_hold_what_a_specification_gives_a_meaning(tmp_path, shapes_folder):
    folder = tmp_path / "my [demo], {1}"
    shutil.copytree(shapes_folder, folder)
    first, second = f"{folder}/train-000.tar", f"{folder}/train-001.tar"
    assert expand(first) == [first], "one existing file is taken as it stands"
    assert expand(f"{escape(folder)}/train-*.tar") == [first, second]
    assert expand(f"{escape(first)} {escape(second)}") == [first, second]


def test_what_is_no_shard_is_refused(tmp_path, shapes_folder):
    good = (shapes_folder / "train-000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.tar").write_bytes(b"\0" * 10240)
    (tmp_path / "nothing.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_bytes(b"hello" * 300)
    for name, message in (
        ("cut.tar", "cut off"),
        ("empty.tar", "empty tar"),
        ("nothing.tar", "empty tar"),
        ("text.tar", "not a tar"),
        ("missing.tar", "no such shard"),
        ("*.zip", "no shard matches"),
    ):
        with pytest.raises(ValueError, match=message):
            expand(str(tmp_path / name))
    with pytest.raises(ValueError, match="is a folder"):
        expand(str(tmp_path))


HOSTILE = ("pipe:touch PWNED;echo .tar", "http:x.tar", "t:1.tar", "gs:", "~x.tar", "{a,b}.tar", "[ab].tar")


@pytest.mark.parametrize("spec", ["*", "./*", *(escape(name) for name in HOSTILE), *HOSTILE])
def test_what_lies_somewhere_is_a_file_whatever_it_is_called(tmp_path, shapes_folder, monkeypatch, spec):
    for name in HOSTILE:
        shutil.copy(shapes_folder / "train-000.tar", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    shards = expand(spec)
    assert len(shards) == (len(HOSTILE) if "*" in spec else 1)
    for shard in shards:
        assert len(list(read([shard]))) == 32
    assert sorted(os.listdir()) == sorted(HOSTILE), "nothing was run"


def test_a_folder_listing_of_any_depth_gives_files(tmp_path, shapes_folder, monkeypatch):
    (tmp_path / "http:").mkdir()
    shutil.copy(shapes_folder / "train-000.tar", tmp_path / "http:" / "x.tar")
    monkeypatch.chdir(tmp_path)
    (shard,) = expand("*/*.tar")
    assert len(list(read([shard]))) == 32


@pytest.mark.parametrize("spec", ["pipe:touch PWNED", " pipe:touch PWNED", "x.tar pipe:touch", "{pipe:touch,x.tar}"])
def test_a_command_runs_only_where_a_setting_allows_it(tmp_path, shapes_folder, monkeypatch, spec):
    shutil.copy(shapes_folder / "train-000.tar", tmp_path / "x.tar")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="command"):
        expand(spec)
    assert os.listdir() == ["x.tar"]


def test_the_setting_allows_a_command(shapes_folder):
    spec = f"pipe:cat {shapes_folder}/train-000.tar"
    run = Run(steps=1, batch_size=4)
    for rank in (0, 1):
        assert PairBatches(spec, Images(pipes=True), 8, run, rank, 2).shards == [spec]
        with pytest.raises(ValueError, match=r"allow it with --images\.pipes"):
            PairBatches(spec, Images(), 8, run, rank, 2)


def test_urls_are_what_was_typed_and_webdataset_opens():
    spec = "https://host/a-{0..1}.tar hf://b/c.tar"
    assert names(spec) == ["https://host/a-0.tar", "https://host/a-1.tar", "hf://b/c.tar"]
    assert all(map(is_url, names(spec)))
    with pytest.raises(ValueError, match=r"no such shard: s3://b/c\.tar; give a URL of"):
        expand("s3://b/c.tar")


def test_spaces_in_names_need_no_backslash_where_the_file_is_found(tmp_path, shapes_folder):
    folder = tmp_path / "my own  pictures"
    shutil.copytree(shapes_folder, folder)
    (tmp_path / "my").mkdir()
    first, second = f"{folder}/train-000.tar", f"{folder}/train-001.tar"
    plain = f"{shapes_folder}/valid-000.tar"
    assert expand(f"{folder}/train-*.tar") == [first, second]
    assert expand(f"{folder}/train-{{000..001}}.tar") == [first, second]
    assert expand(f"{plain} {folder}/train-*.tar  {plain} {second}") == [plain, first, second, plain, second]
    with pytest.raises(ValueError, match=r"no such shard: .*/mi own\.tar; name one that is there$"):
        expand(f"{tmp_path}/mi\\ own.tar")
    with pytest.raises(ValueError, match=r"backslash"):
        expand(f"{tmp_path}/other own/*.tar {tmp_path}/*.tar")


def test_a_tilde_is_the_home_folder(tmp_path, shapes_folder, monkeypatch):
    home = tmp_path / "my [home]"
    shutil.copytree(shapes_folder, home)
    monkeypatch.setenv("HOME", str(home))
    first, second = f"{home}/train-000.tar", f"{home}/train-001.tar"
    assert expand("~/train-000.tar ~/train-001.tar") == [first, second]
    assert expand("~/train-*.tar") == expand("~/train-{000..001}.tar") == [first, second]


def test_ranks_but_the_first_do_not_look_at_shards(tmp_path, shapes_folder, monkeypatch):
    for name in ("a", "b"):
        shutil.copy(shapes_folder / "train-000.tar", tmp_path / f"{name}.tar")
    spec, run = f"{tmp_path}/{{a,b,gone}}.tar", Run(steps=1, batch_size=6)
    with pytest.raises(ValueError, match=r"no such shard: .*gone\.tar"):
        PairBatches(spec, Images(), 8, run, 0, 2)
    batches = PairBatches(spec, Images(augmentation="none", shuffle_buffer=0), 8, run, 1, 2)
    assert len(batches.shards) == 3
    with pytest.raises(ValueError, match=r"gone\.tar cannot be read: No such file"):
        next(iter(batches))
