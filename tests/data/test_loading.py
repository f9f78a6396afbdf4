"""The way of batches to a device."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import IterableDataset

from dalle.cli import arguments
from dalle.data.loading import load, to_device
from tests.conftest import clean_environment

BATCH = {"images_BCYX": torch.arange(6, dtype=torch.uint8).reshape(1, 3, 2, 1), "captions": ["a caption"]}


def test_tensors_go_to_a_device_and_all_else_stays_as_it_is():
    moved = to_device(BATCH, torch.device("meta"))
    assert list(moved) == list(BATCH) and moved["captions"] is BATCH["captions"]
    assert moved["images_BCYX"].device.type == "meta" and BATCH["images_BCYX"].device.type == "cpu"


def test_nothing_waits_for_a_gpu(waited_for):
    gpu = torch.device("cuda")
    assert torch.equal(to_device(BATCH, gpu)["images_BCYX"], BATCH["images_BCYX"])
    assert waited_for == []
    BATCH["images_BCYX"].to(gpu, non_blocking=True)
    assert waited_for == [(1, 3, 2, 1)]  # of memory that is not pinned it would


def test_what_pytorch_s_workers_seed_is_there_before_they_are():
    """One without memory to load it would end in a traceback of its own."""
    code = "import sys, torch\nbefore = 'numpy.random' in sys.modules\nimport dalle.data.loading\n"
    code += "print(before, 'numpy.random' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean_environment()
    )
    assert done.stdout.split()[-1] == "True"


class Unsendable:
    def __reduce__(self):
        raise RuntimeError("can't start new thread")


UNSENT = "a process that loads data cannot send what it has loaded: RuntimeError: can't start new thread"


class Passes(IterableDataset):
    """A batch, and then one at which its process ends."""

    def __init__(self, ends):
        self.ends = ends

    def __iter__(self):
        yield {"number": 0}
        yield self.ends()


@pytest.mark.parametrize(
    "ends",
    [Unsendable, lambda: os._exit(1), lambda: os.kill(os.getpid(), signal.SIGKILL)],
    ids=["that cannot be sent", "that it ends itself at", "killed"],
)
def test_a_loader_process_that_ends_is_told_in_one_line(ends, capfd):
    received = []
    with pytest.raises(SystemExit) as left:
        arguments.run(lambda: received.extend(load(Passes(ends), workers=1)), "dalle-tokenize")
    assert left.value.code == 2 and received in ([], [{"number": 0}])
    *cause, said = capfd.readouterr().err.strip().splitlines()
    assert cause == ([] if ends is not Unsendable else [UNSENT]) and said.endswith("or load with fewer processes")
    assert re.match(
        r"dalle-tokenize: a process that loads data has ended \(DataLoader worker \(pid\S* \S+\) (exited unexpectedly|is killed)",
        said,
    )


def test_a_loader_process_that_the_system_ends(capsys):
    """In the words that PyTorch has for one whose end it is told of at once."""

    def end():
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")

    with pytest.raises(SystemExit) as left:
        arguments.run(end, "dalle-tokenize")
    assert left.value.code == 2
    assert (
        "has ended (DataLoader worker (pid 12) is killed by signal: Killed.); where memory" in capsys.readouterr().err
    )
