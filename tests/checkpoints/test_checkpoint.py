"""Checkpoints of several ranks: written whole or not at all, read by any number, and damage found and named."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dalle.checkpoints import checkpoint, rank_file
from dalle.checkpoints.checkpoint import Fragment, NotSaved, latest, open_checkpoint, save, verify
from dalle.cluster.topology import World

SHAPES = {
    "model/matrix": (7, 11),
    "model/gain": (5,),
    "model/counter": (),
    "model/empty": (0, 3),
    "exp_avg/matrix": (7, 11),
    "exp_avg_sq/matrix": (7, 11),
    "ema/matrix": (7, 11),
    "error/matrix": (2, 77),
    "model/mask": (3, 3),
}
DTYPES = {
    "model/counter": torch.int64,
    "exp_avg/matrix": torch.int16,
    "exp_avg_sq/matrix": torch.float16,
    "ema/matrix": torch.bfloat16,
    "error/matrix": torch.uint8,
    "model/mask": torch.bool,
}


@dataclass
class _Meeting:
    size: int
    values: dict = field(default_factory=dict)

    def __post_init__(self):
        # a rank that never comes breaks the others' wait, in place of a test that hangs
        self.barrier = threading.Barrier(self.size, timeout=30)


@dataclass(frozen=True)
class _World:
    """The part of `topology.World` that checkpoints use, among threads."""

    rank: int
    size: int
    meeting: _Meeting

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value):
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait()
        values = [self.meeting.values[rank] for rank in range(self.size)]
        self.meeting.barrier.wait()
        return values


def _on_all(size: int, action) -> list:
    """What the action returns on each rank, or the ValueError that it raises there."""
    meeting = _Meeting(size)

    def run(rank: int):
        try:
            return action(_World(rank, size, meeting))
        except ValueError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def _tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, 100, shape, generator=generator).to(DTYPES.get(name, torch.float32))
        for name, shape in SHAPES.items()
    }


def _fragments(tensors: dict[str, torch.Tensor], rank: int, size: int) -> list[Fragment]:
    """This rank's share: each tensor cut into `size` runs of equal length, the last ones shorter or empty."""
    fragments = []
    for name, tensor in tensors.items():
        length = math.ceil(tensor.numel() / size)
        start = min(rank * length, tensor.numel())
        fragments.append(Fragment(name, tuple(tensor.shape), start, tensor.flatten()[start : start + length]))
    return fragments


def _save(folder: Path, step: int, size: int = 2, keep: int = 2, seed: int = 0, values: dict | None = None) -> list:
    tensors = _tensors(seed)
    return _on_all(size, lambda w: save(folder, step, _fragments(tensors, w.rank, size), values or {}, keep, w))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(("writers", "readers"), [(1, 3), (2, 1), (5, 2), (3, 4)])
def test_written_by_some_ranks_read_by_others(tmp_path, writers, readers):
    values = {"loaders": [{"position": 3}, None], "scale": 0.1 + 0.2, "export": {"kind": "prior"}}
    (path, *others) = _save(tmp_path, 1000, writers, values=values)
    assert path == latest(tmp_path) == tmp_path / "checkpoints/step-0001000"
    assert others == [path] * (writers - 1)
    tensors = _tensors()
    for rank, found in enumerate(_on_all(readers, lambda world: verify(path, world))):
        assert (found.step, found.values, found.shapes) == (1000, values, SHAPES)
        for fragment in _fragments(tensors, rank, readers):
            stop = fragment.start + fragment.values.numel()
            read = found.read(fragment.name, fragment.start, stop)
            assert read.dtype == fragment.values.dtype
            assert torch.equal(read, fragment.values), fragment.name


def test_any_slice_from_whichever_files_hold_it(tmp_path):
    (path, *_) = _save(tmp_path, 1, size=4)
    found, matrix = open_checkpoint(path), _tensors()["model/matrix"].flatten()
    assert len(found.tensors["model/matrix"]["parts"]) == 4
    for start in range(0, 78, 7):
        for stop in range(start, 78, 5):
            assert torch.equal(found.read("model/matrix", start, stop), matrix[start:stop])
    with pytest.raises(ValueError, match=r"step-0000001 holds no tensor model/matrx"):
        found.read("model/matrx")


def test_reads_only_the_files_that_overlap(tmp_path):
    (path, *_) = _save(tmp_path, 1, size=4)
    found, matrix = open_checkpoint(path), _tensors()["model/matrix"].flatten()
    for rank in (0, 1, 3):
        (path / f"rank-0000{rank}.safetensors").unlink()
    assert torch.equal(found.read("model/matrix", 40, 60), matrix[40:60])  # 40 to 60 are of rank 2
    with pytest.raises(ValueError, match=r"damaged: rank-00001\.safetensors"):
        found.read("model/matrix", 39, 60)


def test_a_ranks_file_is_safetensors(tmp_path):
    """Read by the library's own function: what we lay out by hand is its format, dtypes and alignment included."""
    (path,) = _save(tmp_path, 1, size=1)
    file = path / "rank-00000.safetensors"
    held = load_file(file)
    for name, tensor in _tensors().items():
        assert torch.equal(held[f"{name}@0"], tensor.flatten())
        assert held[f"{name}@0"].dtype == tensor.dtype
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + length])
    assert length % 8 == 0
    for name, tensor in _tensors().items():
        assert header[f"{name}@0"]["data_offsets"][0] % tensor.element_size() == 0


def test_ranks_without_fragments_write_nothing(tmp_path):
    tensors = _tensors()
    shares = {0: [], 1: _fragments(tensors, 0, 1), 2: []}
    (path, *_) = _on_all(3, lambda world: save(tmp_path, 1, iter(shares[world.rank]), {}, 2, world))
    assert sorted(p.name for p in path.iterdir()) == ["rank-00001.safetensors", "state.json"]
    assert torch.equal(open_checkpoint(path).read("model/gain"), tensors["model/gain"])


def test_the_last_ones_are_kept_and_others_folders_left_alone(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-0000002.partial").mkdir(parents=True)  # of a run that was cut off while it saved
    (checkpoints / "step-0000002.partial/state.json").touch()
    (checkpoints / "step-notes").mkdir()
    (checkpoints / "step-notes/state.json").touch()
    (checkpoints / "step-0000009").mkdir()  # incomplete
    assert latest(tmp_path) is None
    for step in (1, 3, 3, 9_000_000, 12_345_678):
        _save(tmp_path, step, seed=step)
    assert _names(tmp_path) == ["step-0000009", "step-12345678", "step-9000000", "step-notes"]
    assert latest(tmp_path).name == "step-12345678"
    # one who went back to an older checkpoint keeps what was just written, whatever lies ahead
    _save(tmp_path, 10_000_000, keep=1)
    assert _names(tmp_path) == ["step-0000009", "step-10000000", "step-12345678", "step-notes"]


def test_the_same_update_saved_again_replaces(tmp_path):
    for seed in (0, 1):
        (path, *_) = _save(tmp_path, 5, seed=seed)
    assert _names(tmp_path) == ["step-0000005"]
    assert torch.equal(open_checkpoint(path).read("model/gain"), _tensors(seed=1)["model/gain"])


def test_one_that_lost_its_name_before_the_next_had_it_is_still_found(tmp_path, monkeypatch):
    """The same update saved again, cut off between the two renames."""
    _save(tmp_path, 5)
    whole = os.replace

    def killed(source, target):
        if Path(target).name == "step-0000005":
            raise KeyboardInterrupt
        whole(source, target)

    with monkeypatch.context() as cut, pytest.raises(KeyboardInterrupt):
        cut.setattr(os, "replace", killed)
        save(tmp_path, 5, _fragments(_tensors(seed=1), 0, 1), {}, 1, World(0, 1, torch.device("cpu")))
    (found,) = _on_all(1, lambda world: verify(latest(tmp_path), world))
    assert (found.step, found.path.name) == (5, "step-0000005.old")
    assert torch.equal(found.read("model/gain"), _tensors()["model/gain"])
    _save(tmp_path, 6, keep=1)
    assert _names(tmp_path) == ["step-0000006"]


def _not_saved(folder: Path, outcomes: list, *words: str) -> None:
    """All ranks failed alike, and the older checkpoint is as it was."""
    assert [type(outcome) for outcome in outcomes] == [NotSaved] * len(outcomes)
    assert len({str(outcome) for outcome in outcomes}) == 1
    for word in words:
        assert word in str(outcomes[0])
    assert _names(folder) == ["step-0000001"]
    found = _on_all(1, lambda world: verify(latest(folder), world))[0]
    assert torch.equal(found.read("model/matrix"), _tensors()["model/matrix"].flatten())


def test_a_write_that_fails_in_the_middle_leaves_the_older_checkpoint(tmp_path):
    _save(tmp_path, 1)
    big = Fragment("model/big", (1_000_000,), 0, torch.zeros(1_000_000))
    tensors = _tensors()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # rank 1's 4 MB break off after the first
    try:
        shares = {0: _fragments(tensors, 0, 1), 1: [big]}
        outcomes = _on_all(3, lambda w: save(tmp_path, 2, shares.get(w.rank, []), {}, keep=1, world=w))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    _not_saved(tmp_path, outcomes, "step-0000002 was not saved", "rank 1, rank-00001.safetensors: File too large")
    assert isinstance(outcomes[1].__cause__, OSError)
    assert "rank 0," not in str(outcomes[0])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("NOT TESTED: a full disk. It takes the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_room_made_again(small_disk):
    _save(small_disk, 1)
    free = shutil.disk_usage(small_disk).free
    half = [Fragment("model/big", (300_000,), start, torch.zeros(150_000)) for start in (0, 150_000)]
    outcomes = _on_all(2, lambda world: save(small_disk, 2, [half[world.rank]], {}, keep=1, world=world))
    _not_saved(small_disk, outcomes, ".safetensors: No space left on device")
    assert shutil.disk_usage(small_disk).free == free
    outcomes = _save(small_disk, 3, keep=1)  # a smaller one fits, so training can go on
    assert latest(small_disk) == outcomes[0]


def test_a_disk_that_changes_what_is_written_is_noticed(tmp_path, monkeypatch):
    _save(tmp_path, 1)
    fsync = os.fsync

    def faulty(number: int) -> None:
        fsync(number)
        name = os.readlink(f"/proc/self/fd/{number}") if Path("/proc/self/fd").exists() else ""
        if name.endswith("rank-00001.safetensors"):
            _flip(Path(name))

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell whose file is written")
    monkeypatch.setattr(os, "fsync", faulty)
    _not_saved(tmp_path, _save(tmp_path, 2, keep=1), "rank 1, rank-00001.safetensors: it does not read back")


def test_what_goes_wrong_on_one_rank_ends_saving_on_all(tmp_path):
    _save(tmp_path, 1)
    tensors = _tensors()

    def attempt(fragments: dict[int, list], values: dict | None = None) -> list:
        return _on_all(2, lambda w: save(tmp_path, 2, fragments[w.rank], values or {}, keep=1, world=w))

    first, second = (_fragments(tensors, rank, 2) for rank in range(2))
    gap = [f for f in second if f.name != "error/matrix"]
    _not_saved(tmp_path, attempt({0: first, 1: gap}), "nothing holds elements 77 to 154 of error/matrix")
    twice = [*second, Fragment("model/gain", (5,), 1, torch.zeros(2))]
    _not_saved(tmp_path, attempt({0: first, 1: twice}), "of model/gain two parts hold element 1")
    beyond = [*second, Fragment("model/new", (4,), 0, torch.zeros(5))]
    _not_saved(tmp_path, attempt({0: first, 1: beyond}), "of model/new", "beyond the last")
    other = [Fragment(f.name, f.shape, f.start, f.values.double()) for f in second]
    _not_saved(tmp_path, attempt({0: first, 1: other}), "F32", "F64", "in rank-00001.safetensors")
    foreign = [*second, Fragment("model/new", (1,), 0, torch.zeros(1, dtype=torch.complex64))]
    _not_saved(tmp_path, attempt({0: first, 1: foreign}), "rank 1", "model/new is of dtype torch.complex64")
    _not_saved(tmp_path, attempt({0: first, 1: second}, {"x": torch}), "rank 0, state.json: TypeError")


def test_machines_that_do_not_share_the_folder_are_told(tmp_path):
    """Rank 1's folder is another one of the same name, as it is on a machine of its own."""
    tensors = _tensors()
    (tmp_path / "b/checkpoints").mkdir(parents=True)

    def attempt(world: _World):
        folder = tmp_path / "ab"[world.rank]
        return save(folder, 1, _fragments(tensors, world.rank, 2), {}, 2, world)

    outcomes = _on_all(2, attempt)
    assert all(isinstance(outcome, NotSaved) for outcome in outcomes)
    assert "rank-00001.safetensors is not seen here" in str(outcomes[0])
    assert "all machines have to share" in str(outcomes[0])
    assert _names(tmp_path / "a") == _names(tmp_path / "b") == []


def _flip(path: Path, at: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _as_of_before(path: Path) -> None:
    """A checkpoint of an earlier version, whose files have a hash alone."""
    state = json.loads((path / "state.json").read_text())
    for record in state["files"].values():
        del record["checksums"], record["block_bytes"]
    state["sha256"] = checkpoint.state_hash(state)
    (path / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "rank-00002.safetensors", "state.json"])
def test_a_flipped_byte_is_found_on_all_ranks(tmp_path, file):
    """In the index, and in the files of earlier versions, which are read for their hashes first."""
    _save(tmp_path, 1, size=3)
    (path, *_) = _save(tmp_path, 2, size=3)
    _as_of_before(path)
    assert torch.equal(
        _on_all(1, lambda world: verify(path, world))[0].read("ema/matrix"), _tensors()["ema/matrix"].flatten()
    )
    # of state.json within a name, where it stays JSON
    _flip(path / file, (path / file).read_bytes().index(b"gain") if file == "state.json" else -3)
    outcomes = _on_all(2, lambda world: verify(path, world))
    for outcome in outcomes:
        assert isinstance(outcome, ValueError)
        assert f"step-0000002 is damaged: {'state.json' if file == 'state.json' else f'the hash of {file}'}" in str(
            outcome
        )
        assert str(outcome).endswith(f"delete it to go on from {tmp_path / 'checkpoints/step-0000001'}")


def test_any_byte_that_changed_is_found_where_it_is_read(tmp_path, monkeypatch):
    """And nowhere else: what does not overlap its block is whole."""
    monkeypatch.setattr(rank_file, "BLOCK_BYTES", 64)
    (path,) = _save(tmp_path, 1, size=1)
    monkeypatch.undo()  # a reader knows the blocks from the file
    file, tensors = path / "rank-00000.safetensors", _tensors()
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for name, tensor in tensors.items():
        first, last = header[f"{name}@0"]["data_offsets"]
        for at in range(first, last, 5):
            _flip(file, start + at)
            found, element, number = open_checkpoint(path), (at - first) // tensor.element_size(), (at - first) // 64
            with pytest.raises(
                ValueError, match=rf"damaged: {file.name}: bytes {64 * number:,} to .* of {name}@0 are not"
            ):
                found.read(name, element, element + 1)
            per_block = 64 // tensor.element_size()
            for begin, end in ((0, number * per_block), ((number + 1) * per_block, tensor.numel())):
                if begin < end <= tensor.numel():
                    assert torch.equal(found.read(name, begin, end), tensor.flatten()[begin:end])
            _flip(file, start + at)
    # whole blocks of one place in another
    first = start + header["model/matrix@0"]["data_offsets"][0]
    swapped = content[:first] + content[first + 64 : first + 128] + content[first : first + 64] + content[first + 128 :]
    file.write_bytes(swapped)
    with pytest.raises(ValueError, match="bytes 0 to 64 of model/matrix@0 are not those that were written"):
        open_checkpoint(path).read("model/matrix")
    # another header, which would read other bytes
    file.write_bytes(
        content[:8] + content[8:start].replace(b'"data_offsets": [0, ', b'"data_offsets": [8, ') + content[start:]
    )
    with pytest.raises(ValueError, match=f"damaged: {file.name}"):
        open_checkpoint(path).read("model/counter")


@pytest.mark.parametrize(("writers", "readers"), [(3, 3), (2, 5), (5, 2), (1, 4)])
def test_nothing_is_read_twice_but_the_ends_of_blocks(tmp_path, monkeypatch, writers, readers):
    monkeypatch.setattr(rank_file, "BLOCK_BYTES", 1024)
    values = torch.randn(21_000)
    length = math.ceil(21_000 / writers)

    def part(world: _World) -> list[Fragment]:
        start = world.rank * length
        return [Fragment("model/big", (21_000,), start, values[start : start + length])]

    (path, *_) = _on_all(writers, lambda world: save(tmp_path, 1, part(world), {}, 2, world))
    num_bytes, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: num_bytes.append(preadv(*args)) or num_bytes[-1])
    monkeypatch.setattr(checkpoint, "hashing", None)  # nothing is read for its hash alone
    found = _on_all(1, lambda world: verify(path, world))[0]
    ends = [round(number * 21_000 / readers) for number in range(readers + 1)]
    read = [found.read("model/big", start, stop) for start, stop in itertools.pairwise(ends)]
    assert torch.equal(torch.cat(read), values)
    cuts_between = 0 if writers == readers else readers - 1
    assert 84_000 <= sum(num_bytes) <= 84_000 + cuts_between * 1024
    assert (sum(num_bytes) == 84_000) == (writers == readers)


def test_a_file_that_is_cut_off_is_found_without_reading_it(tmp_path, monkeypatch):
    (path, *_) = _save(tmp_path, 1, size=3)
    _as_of_before(path)
    part = path / "rank-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    hashed, hashing = [], checkpoint.hashing
    monkeypatch.setattr(checkpoint, "hashing", lambda path: hashed.append(path.name) or hashing(path))
    for outcome in _on_all(2, lambda world: verify(path, world)):
        assert "step-0000001 is damaged: rank-00001.safetensors has" in str(outcome)
    assert part.name not in hashed


def test_ranks_prove_in_step_and_mark_alike(tmp_path):
    """Whoever has less to read waits for nobody longer than a step takes; of files that have hashes alone."""
    (path, *_) = _save(tmp_path, 1, size=5)
    _as_of_before(path)
    marks = [0, 0]

    def prove(world: _World):
        def mark() -> None:
            marks[world.rank] += 1

        return verify(path, world, mark)

    _on_all(2, prove)
    assert marks[0] == marks[1] >= 1 + 3  # the index, and three of five files


def test_damage_that_opening_finds(tmp_path):
    (path, *_) = _save(tmp_path, 7)
    part, state = path / "rank-00001.safetensors", path / "state.json"
    part_was, state_was = part.read_bytes(), state.read_text()

    def refused(match: str) -> None:
        with pytest.raises(ValueError, match=match):
            open_checkpoint(path)
        part.write_bytes(part_was)
        state.write_text(state_was)

    part.write_bytes(part_was[:-1])
    refused(
        r"step-0000007 is damaged: rank-00001\.safetensors has [\d,]+ bytes, not [\d,]+; start anew, for there is no"
    )
    part.unlink()
    refused(r"damaged: rank-00001\.safetensors: No such file or directory")
    state.write_text(state_was[:-1])
    refused(r"damaged: state\.json: ")
    state.write_text("[1, 2]")
    refused(r"damaged: state\.json: ")
    state.write_text(json.dumps({"step": 7}))  # the form of earlier versions
    refused("step-0000007 was written by another version")
    index = json.loads(state_was)
    del index["tensors"]["model/matrix"]["parts"][0]
    index["sha256"] = checkpoint.state_hash(index)
    state.write_text(json.dumps(index))
    refused(r"damaged: state\.json: nothing holds elements 0 to 39 of model/matrix")
    state.unlink()
    refused("not a complete checkpoint")
    open_checkpoint(path)  # each time all was put back


def test_a_checkpoint_deleted_while_it_is_read(tmp_path):
    (path, *_) = _save(tmp_path, 1)
    found = open_checkpoint(path)
    shutil.rmtree(path)
    with pytest.raises(ValueError, match="step-0000001 was deleted while it was read"):
        found.read("model/gain")


def test_what_is_read_is_not_the_file(tmp_path):
    """Values may be changed, and the checkpoint deleted, without a trace on one another."""
    (path,) = _save(tmp_path, 1, size=1)
    found = open_checkpoint(path)
    found.read("model/matrix").zero_()
    assert torch.equal(found.read("model/matrix"), _tensors()["model/matrix"].flatten())
    assert isinstance(_on_all(1, lambda world: verify(path, world))[0], checkpoint.Checkpoint)
