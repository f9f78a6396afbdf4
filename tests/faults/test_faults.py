"""Wherever a command that writes is killed, or finds the disk full, broken or read-only: called again it gives what it gives
undisturbed, byte for byte, or says what to do; and what it says names the file.

The quick part tries some calls of the commands that are quick; the long one, `bash tools/faults.sh`, all calls of those and many of
all others, and prints its counts.
"""

import errno
import os
import random
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from tests.faults.frame import counts
from tests.faults.frame.commands import commands
from tests.faults.frame.trials import ERRORS, KILL, Command, Server, Trials

QUICK = {"train-tokenizer": 7, "train-tokenizer over": 4, "tokenize over": 3, "filter": 5, "export": 6}
"""Calls of each that are tried with a kill; half as many with each error."""
NAMES = (
    *("train-tokenizer", "train-tokenizer over", "tokenize", "tokenize over", "filter", "draw-shapes"),
    *("train-dvae", "train-prior", "train-clip", "train-text-encoder", "train-stackgan"),
    *("train-prior, two processes", "train-dvae, two processes"),
    *("export", "publish", "sample", "sample many", "evaluate", "dedup", "study", "plan"),
    *("demo", "train"),
)


MOST = int(os.environ.get("DALLE_FAULTS", "30"))
SEED = os.environ.get("DALLE_FAULTS_SEED", "0")


@pytest.fixture(scope="module")
def server(tmp_path_factory, request):
    server = Server(tmp_path_factory.mktemp("faults") / "server", of_all="faults" in request.config.option.markexpr)
    yield server
    server.close()


@pytest.fixture(scope="module")
def tried(models, shapes_folder, tokenizer_file, tmp_path_factory):
    found = commands(models, shapes_folder, tokenizer_file, tmp_path_factory.mktemp("inputs"))
    assert set(found) == set(NAMES)
    return found


def _calls(trials: Trials, most: int, seed: object) -> list[int]:
    """Which are tried: all, or as many at random."""
    return sorted(random.Random(str(seed)).sample(range(trials.calls), min(most, trials.calls)))


@pytest.mark.parametrize("name", QUICK)
def test_some_faults_of_quick_commands(server, tried, tmp_path, name):
    trials = Trials(server, tried[name], tmp_path / "trials")
    for error in (KILL, *ERRORS):
        for at in _calls(trials, QUICK[name] if error == KILL else QUICK[name] // 2, seed=error):
            trials.try_at(at, error)


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", (KILL, *ERRORS), ids=lambda error: errno.errorcode.get(error, "killed"))
def test_many_faults(server, tried, tmp_path, error, name, capsys):
    kind = "killed at a write" if error == KILL else f"{errno.errorcode[error]} at a write"
    trials = Trials(server, tried[name], tmp_path / "trials")
    _try_all(
        kind, name, capsys, [partial(trials.try_at, at, error) for at in _calls(trials, MOST, seed=f"{error} {SEED}")]
    )


def _try_all(kind: str, name: str, capsys, trials: Sequence[Callable[[], str]]) -> None:
    """Each of them, and what became of it is counted."""
    failed = []
    with counts.counted(kind, name, capsys) as outcomes:
        for trial in trials:
            try:
                outcomes[trial()] += 1
            except AssertionError as complaint:
                outcomes["FAILED"] += 1
                failed.append(str(complaint))
    assert not failed, "\n\n".join(failed)


def _moments(trials: Trials, most: int, seed: str) -> list[tuple[float, list[int]]]:
    """When, within the time that it takes undisturbed, and which processes: one, or as a machine goes, all of them."""
    chance, ranks = random.Random(seed), range(trials.command.processes)
    return [
        (chance.uniform(0, trials.took_s), chance.choice([[*ranks], *([rank] for rank in ranks)])) for _ in range(most)
    ]


@pytest.mark.parametrize("name", ["filter", "tokenize over", "export"])
def test_quick_commands_killed_at_some_moments(server, tried, tmp_path, name):
    trials = Trials(server, tried[name], tmp_path / "trials")
    for after_s, victims in _moments(trials, 3, name):
        trials.try_after(after_s, victims)


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_many_moments(server, tried, tmp_path, name, capsys):
    trials = Trials(server, tried[name], tmp_path / "trials")
    moments = _moments(trials, MOST, f"{name} {SEED}")
    _try_all("killed at a random moment", name, capsys, [partial(trials.try_after, *moment) for moment in moments])


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_too_little_memory(server, tried, tmp_path, name, capsys):
    """Of address space, as `ulimit -v` has it. A cgroup's limit is a kill."""
    trials = Trials(server, tried[name], tmp_path / "trials")
    sizes = [2**20 * size for size in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)][: max(1, MOST // 3)]
    _try_all("too little memory", name, capsys, [partial(trials.try_with_memory, size) for size in sizes])


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: errno.errorcode[error])
def test_from_some_call_on_all_fail(server, tried, tmp_path, error, name, capsys):
    """A disk that stays full, broken or read-only, until it is called again."""
    trials = Trials(server, tried[name], tmp_path / "trials")
    calls = _calls(trials, max(1, MOST // 3), seed=f"{error} lasts {SEED}")
    _try_all(
        f"{errno.errorcode[error]} from a write on",
        name,
        capsys,
        [partial(trials.try_at, at, error, True) for at in calls],
    )


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_a_small_disk(server, tried, tmp_path, name, capsys):
    """A real one, which is full somewhere on the way."""
    trials = Trials(server, tried[name], tmp_path / "trials")
    shares = [step / 10 for step in range(0, 10, max(1, 30 // MOST))]
    _try_all("a small disk", name, capsys, [partial(trials.try_with_disk, share) for share in shares])


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_a_slow_disk(server, tried, tmp_path, name, capsys):
    trials = Trials(server, tried[name], tmp_path / "trials")
    _try_all("a slow disk", name, capsys, [trials.try_slowly])


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_a_clock_that_jumps(server, tried, tmp_path, name, capsys):
    trials = Trials(server, tried[name], tmp_path / "trials")
    _try_all("a clock that jumps", name, capsys, [trials.try_with_jumps])


def test_quick_commands_with_a_clock_that_jumps_too_little_memory_and_bad_disks(server, tried, tmp_path):
    for name in ("export", "filter"):
        trials = Trials(server, tried[name], tmp_path / name)
        trials.try_with_jumps()
        trials.try_with_memory(2**20)
        trials.try_with_disk(0.5)
        for error in ERRORS:
            trials.try_at(trials.calls // 2, error, lasts=True)


def test_the_frame_finds_what_is_lost(server, tmp_path):
    """A command that takes half of its work for all of it."""
    trials = Trials(server, Command("tests.faults.frame.loses:main", []), tmp_path / "trials")
    outcomes = []
    for at in range(trials.calls):
        try:
            outcomes.append(trials.try_at(at))
        except AssertionError as complaint:
            assert "differs: ['out/" in str(complaint)
            outcomes.append("lost")
    assert "lost" in outcomes and outcomes[0] == "whole when called again"


@pytest.mark.parametrize("lasts", [False, True])
def test_the_frame_finds_what_is_lost_in_silence(server, tmp_path, lasts):
    trials = Trials(server, Command("tests.faults.frame.loses:in_silence", []), tmp_path / "trials")
    with pytest.raises(AssertionError, match="something is missing, and nothing was said"):
        trials.try_at(1, errno.ENOSPC, lasts)
