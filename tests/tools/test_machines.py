"""Machines made of network namespaces: what crosses the link and how fast, what processes are told, and that all of it goes."""

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
machines = importlib.import_module("benchmarks.machines")

needs_machines = pytest.mark.skipif(machines.why_none() is not None, reason=str(machines.why_none()))


def _namespaces() -> list[str]:
    return [line.split()[0] for line in subprocess.check_output(["ip", "netns", "list"], text=True).splitlines()]


def _processes(machine) -> list[str]:
    return subprocess.check_output(["ip", "netns", "pids", machine.name], text=True).split()


def _own_namespaces(pid: int) -> list[str]:
    return [name for name in _namespaces() if name.startswith(f"dalle-{pid}-")]


@needs_machines
def test_the_link_is_limited_in_each_direction_and_the_machine_itself_is_not():
    num_bytes, mbit = 2_000_000, 20.0
    with machines.joined(2, mbit) as (one, two):
        # what a bucket holds at once passes at any speed: 64 kB, of which there are two on the way
        fastest = mbit * num_bytes / (num_bytes - 2 * 64 * 1024)
        for sender, receiver in ((one, two), (two, one)):
            before = sender.sent_bytes(), receiver.sent_bytes()
            assert machines.measured_mbit(sender, receiver, num_bytes) < fastest
            # headers are a few per cent; the way back has acknowledgements alone
            assert num_bytes < sender.sent_bytes() - before[0] < 1.1 * num_bytes
            assert receiver.sent_bytes() - before[1] < 0.1 * num_bytes
        before = one.sent_bytes()
        # to oneself, through the card's own address: many times the limit even on a busy computer
        assert machines.measured_mbit(one, one, num_bytes) > 5 * mbit
        # now and then a card says who it is; a packet of it, not the data
        assert one.sent_bytes() - before < 1000


_SUMS = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
from benchmarks.machines import card_sent_bytes
groups = [[dist.new_group(ranks) for ranks in pairs] for pairs in (([0, 1], [2, 3]), ([0, 2], [1, 3]))]
values = torch.full((2**18,), 2.0**rank)
for kind, (first, second) in zip(("within", "between"), groups):
    mine = first if dist.get_rank(first) >= 0 else second
    before = card_sent_bytes()
    dist.barrier()  # nobody sends before all have read
    total = values.clone()
    dist.all_reduce(total, group=mine)
    dist.barrier()
    print(kind, int(total[0]), card_sent_bytes() - before)
dist.destroy_process_group()
"""


@needs_machines
def test_only_what_goes_to_another_machine_crosses_the_link():
    with machines.joined(2, None) as joined:
        environment = {"PYTHONPATH": str(ROOT / "tools") + os.pathsep + str(ROOT)}
        told = machines.run(joined, [sys.executable, "-c", _SUMS], 2, timeout_s=120, environment=environment)
    lines = [dict(line.split(maxsplit=1) for line in of_one.splitlines() if line[:1] in "wb") for of_one in told]
    sums = {kind: [int(of_one[kind].split()[0]) for of_one in lines] for kind in ("within", "between")}
    assert sums == {"within": [3, 3, 12, 12], "between": [5, 10, 5, 10]}
    for of_one in lines:
        within, between = (int(of_one[kind].split()[1]) for kind in ("within", "between"))
        # two all-reduces of 1 MB, of which a machine sends each half twice; barriers are small
        assert within < 2**17
        assert 2 * 2**20 < between < 1.1 * 2 * 2**20


@needs_machines
def test_every_process_is_told_its_place():
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "GLOO_SOCKET_IFNAME", "MINE")
    words = [sys.executable, "-c", f"import os; print(*(os.environ[name] for name in {names}))"]
    with machines.joined(3, None) as joined:
        told = machines.run(joined, words, 2, timeout_s=30, environment={"MINE": "x"})
        assert machines.measured_mbit(joined[2], joined[1], 1000) > 0  # the third is on the switch, too
    assert told == [f"{rank} {rank % 2} 6 2 10.0.0.1 eth0 x\n" for rank in range(6)]


_STUCK = (
    "import os, subprocess, sys, time; subprocess.Popen(['sleep', '987']); print('begun', flush=True); time.sleep(99)"
)


@needs_machines
@pytest.mark.parametrize("failing", [True, False])
def test_a_failure_or_a_time_out_names_the_rank_and_ends_all(failing):
    fails = "import os, sys; os.environ['RANK'] == '2' and sys.exit('out of paper')\n"
    words = [sys.executable, "-c", (fails if failing else "") + _STUCK]
    message = r"rank 2 ended with exit code 1:\nout of paper" if failing else r"not done .* rank 0, 1, 2, 3; .*\nbegun"
    with machines.joined(2, None) as joined:
        with pytest.raises(RuntimeError, match=message):
            machines.run(joined, words, 2, timeout_s=60 if failing else 3)
        deadline_s = time.monotonic() + 20  # their children were killed with them, and are gone soon
        while any(_processes(machine) for machine in joined):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    assert not _own_namespaces(os.getpid())


_WAITING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
sys.path.insert(0, "tools")
from benchmarks import machines
with machines.joined(2, 100) as joined, machines.started(joined, ["sleep", "987"], 1) as ranks:
    print(*(rank.process.pid for rank in ranks), flush=True)
    ranks[0].process.wait()
"""


@needs_machines
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_a_signal(sent):
    command = [sys.executable, "-c", _WAITING]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        sleeping = [int(pid) for pid in process.stdout.readline().split()]
        assert len(_own_namespaces(process.pid)) == 3  # with the switch
        process.send_signal(sent)
        try:
            process.wait(timeout=20)
        finally:
            process.kill()
    assert process.returncode != 0
    assert not _own_namespaces(process.pid)
    for pid in sleeping:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@needs_machines
def test_a_machine_that_cannot_be_made_leaves_none_behind():
    with pytest.raises(RuntimeError, match=r"tc .*rate 0bit"), machines.joined(2, 0.0):
        pass
    assert not _own_namespaces(os.getpid())


def test_why_there_are_no_machines(monkeypatch):
    monkeypatch.setattr(machines.shutil, "which", lambda tool: None if tool == "tc" else tool)
    monkeypatch.setattr(machines.os, "geteuid", lambda: 0)
    assert machines.why_none() == "no tc here: install iproute2"
    monkeypatch.setattr(machines.os, "geteuid", lambda: 1000)
    assert "only root" in machines.why_none()


def test_the_handler_of_sigterm_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    machines.why_none()
    assert signal.getsignal(signal.SIGTERM) is before
