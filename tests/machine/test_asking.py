"""Processes that are asked: what they tell, and how they end."""

import os
import time
from pathlib import Path

import pytest

from dalle.machine import group as module
from dalle.machine.asking import Asked, asked
from dalle.machine.group import deepspeed_finding, group_finding, summed

WELL = """
import os, sys
from dalle.machine.asking import telling
with telling() as tell:
    print("chatter")
    os.system("echo chatter of a child")
    tell({"arguments": sys.argv[1:], "rank": os.environ.get("RANK"), "given": os.environ.get("GIVEN")})
    tell({"more": 1})
"""


@pytest.fixture
def module_of(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(text):
        name = f"asked_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return made


def test_what_is_told_is_not_mixed_with_what_is_printed(module_of, monkeypatch):
    monkeypatch.setenv("RANK", "3")  # of a launcher, whose process this one is not
    told = asked(module_of(WELL), "a", "b", timeout_s=60, environment={"GIVEN": "1"})
    assert told == {"arguments": ["a", "b"], "rank": None, "given": "1", "more": 1}


def test_it_has_this_ones_path_and_not_the_folder_it_stands_in(module_of, tmp_path, monkeypatch):
    """Whose files may be called like any library's."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/json.py").write_text("raise SystemExit('a stranger')\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert asked(module_of(WELL), timeout_s=60)["more"] == 1


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        ("raise ValueError('first line\\nand the last')", "and the last"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("import os; os._exit(7)", "ended with exit code 7"),
    ],
)
def test_one_that_ends_badly_says_why(module_of, ends, why):
    begun = "from dalle.machine.asking import telling\nwith telling() as tell: tell({'before': 1})\n"
    assert asked(module_of(begun + ends), timeout_s=60) == {"before": 1, "failed": why}


def test_one_that_hangs_is_ended_with_all_that_it_started(module_of, tmp_path):
    script = (
        "import subprocess, time\n"
        f"child = subprocess.Popen(['sleep', '600']); open(r'{tmp_path}/child', 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    began_s = time.monotonic()
    told = asked(module_of(script), timeout_s=3)
    assert told == {"failed": "did not come back within 3 s"} and time.monotonic() - began_s < 60
    _is_gone(int((tmp_path / "child").read_text()))


def test_one_that_nobody_listens_to_any_longer_is_ended(module_of):
    begun = "import os, time\nfrom dalle.machine.asking import telling\n"
    process = Asked(
        module_of(begun + "with telling() as tell: tell({'pid': os.getpid()}); time.sleep(600)"), timeout_s=600
    )
    answers = process.answers()
    number = next(answers)["pid"]
    answers.close()
    _is_gone(number)


def _is_gone(number: int) -> None:
    """Ended, though perhaps not yet fetched by its parent."""
    until_s = time.monotonic() + 20
    while Path(f"/proc/{number}").exists():
        if Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        assert time.monotonic() < until_s
        time.sleep(0.05)


GOOD = {"sums": [11.0], "seconds": 0.02, "backend": "gloo", "size": 2}


@pytest.mark.parametrize(
    ("second", "verdict", "words"),
    [
        (GOOD, "ok", "a sum over 2 processes is right, in 20 ms"),
        ({"failed": "connection refused"}, "fail", "process 1 of 2: connection refused"),
        (GOOD | {"sums": [10.0]}, "fail", "process 1 of 2 has [10.0] by gloo over 2, not 11"),
        (GOOD | {"sums": [11.0, 12.0]}, "fail", "has [11.0, 12.0]"),
        (GOOD | {"size": 1}, "fail", "over 1"),
        (GOOD | {"backend": "NCCL"}, "fail", "by NCCL"),
    ],
)
def test_what_is_said_of_a_sum(second, verdict, words):
    found = group_finding("gloo", [GOOD, second], 2)
    assert found.verdict == verdict and words in found.fact and bool(found.advice) == (verdict == "fail")


def test_one_gpu_sums_alone():
    told = {"sums": [1.0], "seconds": 0.01, "backend": "NCCL", "size": 1}
    assert "over 1 process is right" in group_finding("NCCL", [told], 1).fact
    assert "NCCL_DEBUG" in group_finding("NCCL", [{"failed": "x"}], 1).advice


@pytest.mark.parametrize(("gpus", "hidden"), [(False, {"CUDA_VISIBLE_DEVICES": ""}), (True, {})])
def test_the_places_of_processes_in_a_group(gpus, hidden):
    given = []

    class Member:
        def __init__(self, name, timeout_s, environment):
            given.append(environment)

        def answers(self):
            # all of them are started before one is waited for
            assert len(given) == 2
            yield {"sums": [11.0]}
            yield {"size": 2}

    assert summed(2, gpus, 9.0, Member) == [{"sums": [11.0], "size": 2}] * 2
    assert [each["RANK"] for each in given] == [each["LOCAL_RANK"] for each in given] == ["0", "1"]
    assert len({each["MASTER_PORT"] for each in given}) == 1
    assert all(each["WORLD_SIZE"] == "2" and each.items() >= hidden.items() for each in given)
    assert gpus == ("CUDA_VISIBLE_DEVICES" not in given[0])


def test_a_deepspeed_that_does_not_load(monkeypatch):
    monkeypatch.setattr(module, "asked", lambda name, timeout_s: {"failed": "ImportError: no torch._six"})
    found = deepspeed_finding()
    assert found.verdict == "fail" and "torch._six" in found.fact and "deepspeed==0.19" in found.advice
    assert os.environ.get("RANK") is not None  # of the tests' own process group, which stays
