"""The link between two machines of a training is slow and loses packets, is cut for a while, or for good: the same weights as
undisturbed, or an end in bounded time that names who is silent, after which `--resume` gives them.

The machines are network namespaces (`tools/benchmarks/machines.py`). Packets are lost at a queue of a few of them, since not every
kernel has `netem`.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY_PRIOR
from tests.processes import ON_CPU

sys.path.insert(0, str(ROOT / "tools"))
machines = importlib.import_module("benchmarks.machines")

SILENT_S = 60
"""Without a sign of life; a machine that is busy may take long for an update."""
BOUND_S = SILENT_S + 60
"""For a busy machine: the processes share its cores."""
PATIENCE_S = 1500
# each machine imports once, and runs what it is told to in processes that are forked from this one
_MACHINE = """
import json, os, sys, time
from pathlib import Path
import deepspeed, dalle.training.loop, dalle.stages.prior
from dalle.cli.train import train_prior
folder, rank, number = Path(sys.argv[1]), os.environ["RANK"], 0
while True:
    order = folder / f"order-{number}"
    if not order.exists():
        time.sleep(0.05)
        continue
    child = os.fork()
    if child == 0:
        log = os.open(folder / f"said-{number}-{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        os.environ["MASTER_PORT"] = str(29500 + number)
        sys.argv = ["dalle-train-prior", *json.loads(order.read_text())]
        train_prior()
        sys.exit()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (folder / f"code-{number}-{rank}.new").write_text(str(code))
    (folder / f"code-{number}-{rank}.new").rename(folder / f"code-{number}-{rank}")
    number += 1
"""


class Pair:
    """Two machines that train when they are told to."""

    def __init__(self, folder: Path, words: list[str]):
        self.folder, self.words, self.number = folder, words, -1

    def begin(self, output: Path, *more: str) -> None:
        self.number += 1
        path = self.folder / f"order-{self.number}"
        path.with_suffix(".new").write_text(json.dumps([*self.words, "--output", str(output), *more]))
        path.with_suffix(".new").rename(path)

    def end(self, within_s: float = PATIENCE_S) -> tuple[list[int], str]:
        """The exit codes, and what both said."""
        codes = [self.folder / f"code-{self.number}-{rank}" for rank in (0, 1)]
        _wait(lambda: all(code.exists() for code in codes), within_s)
        said = [(self.folder / f"said-{self.number}-{rank}").read_text() for rank in (0, 1)]
        return [int(code.read_text()) for code in codes], "\n".join(said)


def _wait(until, within_s: float) -> float:
    began_s = time.monotonic()
    while not until():
        assert time.monotonic() < began_s + within_s, f"not within {within_s} s"
        time.sleep(0.05)
    return time.monotonic() - began_s


def _updates(output: Path) -> int:
    path = output / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.faults
@pytest.mark.skipif(machines.why_none() is not None, reason=str(machines.why_none()))
def test_a_link_that_is_slow_loses_packets_or_is_cut(models, tmp_path):
    inputs = ["--dvae", f"{models}/dvae", "--tokenizer", f"{models}/prior/tokenizer.json"]
    words = [*TINY_PRIOR, "--data", f"{models}/tokens/train", *inputs, "--run.steps", "30"]
    words += ["--run.checkpoint_every_minutes", "1e-6", "--run.silence_limit_s", "900"]
    pair = Pair(tmp_path, words)
    with machines.joined(2, mbit=None) as both:
        switch = f"{both[0].name.rpartition('-')[0]}-switch"

        def link(state: str) -> None:
            subprocess.run(["ip", "-n", switch, "link", "set", "port1", state], check=True)

        def limit(verb: str, *how: str) -> None:
            subprocess.run(["tc", "-n", both[1].name, "qdisc", verb, "dev", machines.CARD, "root", *how], check=True)

        def trained(name: str) -> bytes:
            codes, said = pair.end()
            assert codes == [0, 0], said
            return (tmp_path / name / "model.safetensors").read_bytes()

        environment = {**ON_CPU, "PYTHONPATH": str(ROOT)}
        with machines.started(both, [sys.executable, "-c", _MACHINE, str(tmp_path)], 1, environment):
            pair.begin(tmp_path / "undisturbed")
            expected = trained("undisturbed")

            limit("add", "tbf", "rate", "2mbit", "burst", "4kb", "limit", "6kb")
            pair.begin(tmp_path / "lossy")
            assert trained("lossy") == expected
            told = subprocess.check_output(["tc", "-s", "-n", both[1].name, "qdisc", "show"], text=True)
            assert int(re.search(r"qdisc tbf.*\n.*dropped (\d+)", told)[1]) > 0, told
            limit("del")

            pair.begin(tmp_path / "cut for a while")
            _wait(lambda: _updates(tmp_path / "cut for a while") > 3, PATIENCE_S)
            link("down")
            time.sleep(5)
            link("up")
            assert trained("cut for a while") == expected

            pair.begin(tmp_path / "cut")
            _wait(lambda: _updates(tmp_path / "cut") > 3, PATIENCE_S)
            link("down")
            codes, said = pair.end(within_s=BOUND_S)
            assert codes == [75, 75], said
            assert re.search(r"rank 1 \(.*\) has been silent for \d+ s, last seen .*update \d+; ending", said), said
            assert re.search(r"rank 0 \(.*\) has been silent for \d+ s, noticed in update \d+; ending", said), said
            link("up")
            assert not (tmp_path / "cut/model.safetensors").exists()
            pair.begin(tmp_path / "cut", "--resume")
            assert trained("cut") == expected
