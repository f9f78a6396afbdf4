"""The way of batches to a device."""

import torch

from dalle.data.loading import to_device

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
