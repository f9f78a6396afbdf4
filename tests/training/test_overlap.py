"""Exchanges that begin in the backward pass, on two machines of one process: what is sent when, and that it changes nothing."""

import json

import pytest

from tests.processes import ON_CPU, run_processes

_SCRIPT = """
import json, os
import torch
import torch.distributed as dist
from dalle.config import Compression
from dalle.cluster.topology import joined
from tests.training import cluster

COMPRESSED = {"zero_stage": 3, "compression": Compression(4)}
SCALED = {"zero_stage": 3, "precision": "fp16-per-block", "accumulation_steps": 2}


def events(world, **run) -> dict:
    # The order of an update's passes and of the exchanges that begin; of each whether its error buffers had then what they have in
    # the end, and whether all machines have the same bits of P.
    engine = cluster.make(world, **run)
    step, order, seen = engine.before_step, [], {}
    exchange, backward, squares = step._overlap._begin, engine._engine.backward, step.powersgd.squares
    ps = []

    def began(number):
        group, names = step._groups[number]
        order.append("exchange")
        if group is not None:
            seen.update({name: step.powersgd.waiting(name) for name in names})
        return exchange(number)

    def passed(loss):
        order.append("backward")
        backward(loss)
        order.append("end")

    def watched():
        ps.append(cluster.bits(stack.p_NSK for stack in step.powersgd.stacks()))
        final = {name: step.powersgd.waiting(name) for name in seen}
        told["final"] = [bool(values.any()) and torch.equal(final[name], values) for name, values in seen.items()]
        return squares()

    told = {}
    step._overlap._begin, engine._engine.backward, step.powersgd.squares = began, passed, watched
    cluster.train(engine, 0, 1)
    return told | {"order": order, "p": len(set(world.gather(ps[0])))}


def trained(world, early: bool, folder: str, **run) -> list:
    # Bits of everything after four updates, the third of which is skipped; with exchanges in the backward pass or after it.
    engine = cluster.make(world, **run)
    assert engine.before_step._is_early
    engine.before_step._is_early = early
    told = cluster.train(engine, 0, 4, spoilt=(2, 0))
    state = cluster.whole_state(engine, folder)
    return [told["loss"], told["gradient_norm"], told["skipped"], cluster.bits(state[name] for name in sorted(state))]


with joined() as world:
    folder = os.environ["FOLDER"]
    told = {"events": events(world, accumulation_steps=2, **COMPRESSED)}
    for number, run in enumerate(({"zero_stage": 3}, COMPRESSED | SCALED)):
        runs = [trained(world, early, f"{folder}/{number} {early}", **run) for early in (False, True)]
        told[f"bits {number}"] = runs
    name = "layers.0.mlp.widen.weight"
    told["spoilt"] = cluster.spoilt(world, name, f"{folder}/spoilt", **COMPRESSED)
    told["spoilt, scaled"] = cluster.spoilt(world, name, f"{folder}/scaled", **COMPRESSED | SCALED)
    if world.is_main:
        print(json.dumps(told), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    surroundings = {**ON_CPU, "FOLDER": str(tmp_path_factory.mktemp("overlap"))}
    return json.loads(run_processes(_SCRIPT, 2, 1, environment=surroundings).splitlines()[-1])


def test_exchanges_begin_before_the_backward_pass_has_ended(found):
    """In the last micro-batch's alone, with gradients that are what they are in the end."""
    order = found["events"]["order"]
    assert order[:3] == ["backward", "end", "backward"] and order[-1] == "end"
    assert order[3:-1] == ["exchange"] * 5  # four resblocks, and what is never compressed
    assert found["events"]["final"] == [True] * 8


def test_all_machines_have_the_same_bits_of_p(found):
    assert found["events"]["p"] == 1


@pytest.mark.parametrize("number", range(2))
def test_when_exchanges_begin_changes_no_bit(found, number):
    """Of losses, norms, skipped updates and all that a checkpoint holds: uncompressed; compressed, with scales and micro-batches."""
    after, early = found[f"bits {number}"]
    assert early == after
    assert early[2] == [0, 0, 1, 0]


def test_an_infinite_gradient_of_one_resblock_on_one_process_skips_the_update(found):
    """Error buffers have what waits of all others' gradients."""
    assert found["spoilt"] == [[1], ["error"], [0]]
    assert found["spoilt, scaled"] == [[1], ["error", "gradient_scales"], [0]]
