"""The sides of the GAN's benchmark compute the same thing, and its cases say all."""

import argparse
import importlib
import sys

import pytest
import torch

from dalle.config import StackGANModel
from dalle.models.stackgan.discriminator import Discriminator
from dalle.models.stackgan.generators import generator
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
stackgan, peers, sides = (importlib.import_module(f"benchmarks.{n}") for n in ("stackgan", "peers_stackgan", "sides"))

SIZES = {"text_width": 6, "channels": 4, "discriminator_channels": 4, "noise_width": 5, "condition_width": 8}
TINY = {1: StackGANModel(image_size_px=16, **SIZES), 2: StackGANModel(stage=2, image_size_px=64, resblocks=2, **SIZES)}


def _load(theirs, ours):
    """Our weights in their names: both have them in the order in which they are used."""
    values = ours.state_dict().values()
    held = theirs.state_dict()
    theirs.load_state_dict({n: v.reshape(held[n].shape) for n, v in zip(held, values, strict=True)})


@pytest.mark.parametrize("stage", [1, 2])
def test_the_straightforward_networks_are_ours(stage):
    config = TINY[stage]
    torch.manual_seed(0)
    ours, theirs = generator(config).double(), peers.Generator(config).double()
    _load(theirs, ours)
    batch = {n: v.double() for n, v in stackgan._batch(config, 3).items()}
    given = (batch["text_BE"], batch["noise_BZ"], batch["epsilon_BC"], batch.get("low_BCYX"))
    # our heads are in fp32 whatever the products are in
    torch.testing.assert_close([x.double() for x in ours(*given)], list(theirs(*given)), atol=1e-6, rtol=1e-5)
    ours, theirs = Discriminator(config).double(), peers.Discriminator(config).double()
    _load(theirs, ours)
    images = batch["images_BCYX"] / 127.5 - 1
    judged = theirs.judge(theirs.features(images), batch["text_BE"])
    torch.testing.assert_close(ours(images, batch["text_BE"]).double(), judged, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_calls_run_on_both_sides(stage):
    for calls in (stackgan._ours(TINY[stage], 2), stackgan._eager(TINY[stage], 2, torch.bfloat16)):
        assert set(calls) == set(stackgan.CALLS)
        for call in calls.values():
            call()


def test_operations_are_those_of_the_products():
    """Drawing of stage one by hand: each product's multiplications twice."""
    config = TINY[1]
    linear = 6 * 16 + 13 * 16 * 16
    convolutions = 8 * 8 * 16 * 9 * 8 + 16 * 16 * 8 * 9 * 4 + 16 * 16 * 4 * 9 * 3
    assert stackgan.operations(config, "draw") == 2 * (linear + convolutions)
    # of the generator's forward alone training has one and a backward pass of two, and the discriminator's beside it
    assert stackgan.operations(config, "train") > 3 * stackgan.operations(config, "draw")


class _InThisProcess:
    """A `Side` without a process."""

    def __init__(self, name, build, keep_memory):
        self.name, self.calls = name, build()

    def call(self, what):
        return sides.timed(self.calls[what])

    def close(self):
        pass


def test_every_case_says_all(monkeypatch):
    monkeypatch.setattr(stackgan, "_config", lambda stage, options: TINY[stage])
    monkeypatch.setattr(stackgan, "Side", _InThisProcess)
    monkeypatch.setattr(stackgan, "peak_memory_bytes", lambda side, what: 7)
    monkeypatch.setattr(stackgan, "best_rate", lambda call, work: 1e12)
    sizes = {"channels": 4, "discriminator_channels": 4, "text_width": 6}
    cases = stackgan.run(argparse.Namespace(stages=[1, 2], batch_size=16, repeats=2, same_allocator=False, **sizes))
    assert [each["name"] for each in cases] == [f"stackgan stage {s} {what}" for s in (1, 2) for what in stackgan.CALLS]
    for each in cases:
        assert set(each["ratio"]) == {"eager_16bit", "eager_fp32"} and each["peak_memory_bytes"] == 7
        assert each["limit"] == 1e12 / each["settings"]["flops_per_image"]
    assert [each["settings"]["batch_size"] for each in cases] == [16, 16, 2, 2]
