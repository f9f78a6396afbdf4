"""The way of batches to a device."""

import subprocess
import sys

import torch

from dalle.data.loading import to_device
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
