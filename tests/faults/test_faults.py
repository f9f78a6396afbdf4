"""Wherever a command that writes is killed, or finds the disk full, broken or read-only: called again it gives what it gives
undisturbed, byte for byte, or says what to do; and what it says names the file.

The quick part tries some calls of the commands that are quick; the long one, `bash tools/faults.sh`, all calls of those and many of
all others, and prints its counts.
"""

import errno
import os
import random
from collections import Counter

import pytest

from tests.faults.frame import ERRORS, KILL, Command, Server, Trials, commands

QUICK = {"train-tokenizer": 7, "train-tokenizer over": 4, "tokenize over": 3, "filter": 5, "export": 6}
"""Calls of each that are tried with a kill; half as many with each error."""
NAMES = (
    *("train-tokenizer", "train-tokenizer over", "tokenize", "tokenize over", "filter", "export", "sample"),
    *("sample many", "train-dvae", "train-prior", "train-clip"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("faults") / "server")
    yield server
    server.close()


@pytest.fixture(scope="module")
def tried(models, shapes_folder, tokenizer_file, tmp_path_factory):
    found = commands(models, shapes_folder, tokenizer_file, tmp_path_factory.mktemp("inputs"))
    assert set(found) == set(NAMES)
    return found


def _calls(trials: Trials, most: int, seed: int) -> list[int]:
    """Which are tried: all, or as many at random."""
    return sorted(random.Random(seed).sample(range(trials.calls), min(most, trials.calls)))


@pytest.mark.parametrize("name", QUICK)
def test_some_faults_of_quick_commands(server, tried, tmp_path, name):
    trials = Trials(server, tried[name], tmp_path / "trials")
    for error in (KILL, *ERRORS):
        for at in _calls(trials, QUICK[name] if error == KILL else QUICK[name] // 2, seed=error):
            trials.try_at(at, error)


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_many_faults(server, tried, tmp_path, name, capsys):
    trials = Trials(server, tried[name], tmp_path / "trials")
    most = int(os.environ.get("DALLE_FAULTS", "30"))
    failed = []
    for error in (KILL, *ERRORS):
        outcomes = Counter()
        for at in _calls(trials, most, seed=error):
            try:
                outcomes[trials.try_at(at, error)] += 1
            except AssertionError as complaint:
                outcomes["FAILED"] += 1
                failed.append(str(complaint))
        told = ", ".join(f"{count} {word}" for word, count in sorted(outcomes.items()))
        with capsys.disabled():
            kind = "killed" if error == KILL else errno.errorcode[error]
            print(f"\n{name}: {kind} at {outcomes.total()} of {trials.calls} calls: {told}", flush=True)
    assert not failed, "\n\n".join(failed)


def test_the_frame_finds_what_is_lost(server, tmp_path):
    """A command that takes half of its work for all of it."""
    trials = Trials(server, Command("tests.faults.loses:main", []), tmp_path / "trials")
    outcomes = []
    for at in range(trials.calls):
        try:
            outcomes.append(trials.try_at(at))
        except AssertionError as complaint:
            assert "differs: ['out/" in str(complaint)
            outcomes.append("lost")
    assert "lost" in outcomes and outcomes[0] == "whole when called again"
