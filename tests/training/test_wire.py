"""Gradients that machines exchange in 16 bits, uncompressed: what reaches the optimiser beside a plain reference, bytes beside the
plan's, and that skipping, resuming and overlapping stay what they are."""

import json
import textwrap

import pytest

from dalle.config import Compression, Optimizer, Run, Schedule
from dalle.planning import exchanged as planned
from dalle.planning.layout import Layout, Sizes
from tests.processes import ON_CPU, run_processes
from tests.training import cluster

_BEGIN = """
import json, os
from types import SimpleNamespace
import numpy as np
import torch
import torch.distributed as dist
from dalle.cluster.topology import grouped, joined
from dalle.config import Compression, PriorObjective, Run
from dalle.gradients import before_step
from dalle.gradients.partition import Whole
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective as PriorLoss
from tests.gradients.bf16 import rounded
from tests.training import cluster

before_step._BUCKET_ELEMENTS = BUCKET
CASES = {
    "stage 3": {"zero_stage": 3, "wire": "bf16"},
    "stage 1": {"zero_stage": 1, "wire": "bf16"},
    "ring": {"zero_stage": 3, "wire": "bf16-ring"},
    "compressed": {"zero_stage": 3, "wire": "bf16", "compression": Compression(4, "fp32")},
}


def counted() -> list:
    # What a process sends to other machines, from now on: (bytes, type of number) of each collective.
    sent, size = [], MACHINES

    def reduced(tensor, *args, group=None, **options):
        if group is not None and dist.get_world_size(group) == size and options.get("async_op"):
            sent.append([2 * (size - 1) * tensor.nbytes / size, str(tensor.dtype)])  # a ring's
        return plain[0](tensor, *args, group=group, **options)

    def exchanged(output, input, got, given, group=None, **options):
        sent.append([sum(given) - given[dist.get_rank(group)], str(input.dtype)])
        return plain[1](output, input, got, given, group=group, **options)

    plain = dist.all_reduce, dist.all_to_all_single
    dist.all_reduce, dist.all_to_all_single = reduced, exchanged
    return sent, plain


def local_gradients(world) -> dict:
    # Of this process's part of the first batch, by plain autograd.
    torch.manual_seed(0)
    loss = PriorLoss(Prior(cluster.SIZES), PriorObjective())
    generator = torch.Generator().manual_seed(0)
    text_BU = torch.randint(0, 5, (8, 3), generator=generator)
    codes_BI = torch.randint(0, 7, (8, 4), generator=generator)
    mine = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size)
    batch = {"text_BU": text_BU[mine], "codes_BI": codes_BI[mine], "text_targets": torch.tensor(24.0 / world.size)}
    loss(batch)[0].backward()
    return {name: p.grad.flatten().numpy() for name, p in loss.model.named_parameters()}
"""
_END = """
    if world.is_main:
        print(json.dumps(told), flush=True)
os._exit(0)
"""
_BUCKET = 4000
"""Numbers that travel together: few, so that a tiny prior's go in several calls"""


def _run(body: str, count: int, ranks_per_machine: int, folder: str = "") -> dict:
    script = _BEGIN.replace("BUCKET\n", f"{_BUCKET}\n").replace("= [], MACHINES", f"= [], {count // ranks_per_machine}")
    script += "\nwith joined() as world:\n    told = {}\n" + textwrap.indent(textwrap.dedent(body), "    ") + _END
    surroundings = {**ON_CPU, "FOLDER": folder}
    return json.loads(run_processes(script, count, ranks_per_machine, environment=surroundings).splitlines()[-1])


_UPDATES = """
everyones = world.gather(local_gradients(world))
machines, here = MACHINES, world.size // MACHINES
def reference(name, wire):
    # the mean of a machine in fp32, rounded once; those of all machines added up in fp32, divided, and rounded for the way back
    total = 0
    for first in range(0, world.size, here):
        machine = sum(theirs[name] for theirs in everyones[first : first + here]) / np.float32(here)
        total = total + (machine if wire == "fp32" else rounded(machine))
    mean = total / np.float32(machines)
    return mean if wire == "fp32" else rounded(mean)

for name, run in {**CASES, "fp32": {"zero_stage": 3}, "stage 0": {"wire": "bf16"}}.items():
    if name == "stage 0" and here > 1:
        continue
    engine = cluster.make(world, optimizer={"clip_norm": None}, **run)
    seen = cluster.given(engine)
    sent, plain = counted()
    found = cluster.train(engine, 0, 1)
    dist.all_reduce, dist.all_to_all_single = plain
    matrices = set(engine.model.matrices()) if run.get("compression") else set()
    off, unequal, number, squares = 0.0, 0, 0, 0.0
    for parameter, gradient in seen.items():
        if parameter in matrices or not gradient.numel():
            continue
        piece = engine.shards.pieces[parameter]
        exact = reference(parameter, run.get("wire", "fp32"))[piece.start : piece.start + piece.size]
        ours = gradient.numpy()[: piece.size]
        off = max(off, np.abs(ours - exact).max().item() / max(1e-30, np.abs(exact).max().item()))
        unequal, number = unequal + int((ours != exact).sum()), number + len(exact)
    norm = np.sqrt(sum((reference(n, run.get("wire", "fp32")).astype(np.float64) ** 2).sum() for n in everyones[0]))
    more = cluster.train(engine, 1, 4)
    engine.check_replicas()
    state = cluster.bits(engine.shards.weights()[n][1] for n in sorted(engine.shards.parameters))
    of_machines = [state for state in world.gather(state)]
    told[name] = {
        "off": max(world.gather(off)), "unequal": sum(world.gather(unequal)) / sum(world.gather(number)),
        "norm": [found["gradient_norm"][0], norm.item()], "sent": world.gather(sent), "skipped": found["skipped"] + more["skipped"],
        "loss": found["loss"] + more["loss"], "states": of_machines,
    }
"""


@pytest.fixture(scope="module", params=[(2, 1), (4, 2)], ids=["2 machines of 1", "2 machines of 2"])
def updates(request):
    count, here = request.param
    return _run(_UPDATES.replace("MACHINES", str(count // here)), count, here), count // here, here


def test_what_reaches_the_optimiser_is_the_plain_reference_s(updates):
    """Of two machines a ring rounds the sum as the mean is rounded otherwise. A machine's own mean may be made in another order,
    and one in thousands then lies on the other side of a rounding."""
    found, _, here = updates
    for name, each in found.items():
        assert each["off"] <= (2**-20 if name == "fp32" else 2**-8) and not any(each["skipped"]), name
        if name != "fp32":
            assert each["unequal"] <= 2e-3, name
        if name != "compressed":
            assert each["norm"][0] == pytest.approx(each["norm"][1], rel=1e-5), name
        # of all machines the same bits; a process of another ordinal holds other parts at stage 3
        assert len(set(each["states"])) == (1 if name in ("stage 0", "stage 1") else here), name
    assert found["stage 3"]["norm"][0] != found["fp32"]["norm"][0]
    # 2⁻⁸ of a gradient is little in an update of Adam's
    assert found["stage 3"]["loss"] == pytest.approx(found["fp32"]["loss"], abs=5e-3)
    assert found["ring"]["loss"] == found["stage 3"]["loss"]
    assert found["stage 3"]["loss"] != found["fp32"]["loss"]


def test_half_the_bytes_are_sent_and_as_many_as_planned(updates, monkeypatch):
    found, machines, here = updates
    monkeypatch.setattr("dalle.gradients.before_step._BUCKET_ELEMENTS", _BUCKET)

    def plan(**run) -> planned.Exchanged:
        settings = Run(steps=6, batch_size=8, precision="fp32", **run)
        optimizer = Optimizer(Schedule(1e-2, 1e-2), beta2=0.96, clip_norm=None)
        return planned.exchanged(Layout(Sizes(cluster.SIZES), settings, optimizer, machines, here))

    cases = {
        "stage 3": {"zero_stage": 3, "wire": "bf16"},
        "ring": {"zero_stage": 3, "wire": "bf16-ring"},
        "stage 1": {"zero_stage": 1, "wire": "bf16"},
        "compressed": {"zero_stage": 3, "wire": "bf16", "compression": Compression(4, "fp32")},
        "fp32": {"zero_stage": 3},
        "stage 0": {"wire": "bf16"},
    }
    total = {}
    for name, each in found.items():
        # by process, the means over the machines, which share out alike what a call has but for a number
        total[name] = sum(count for theirs in each["sent"] for count, _ in theirs) / machines / here
        # of a vector one shard has a number more than another, and the plan is that of the largest
        assert plan(**cases[name]).sent_bytes == pytest.approx(total[name], rel=0.01 if here > 1 else 1e-4), name
        if here == 1 or name != "stage 1":  # below stage 3 a process has whole parameters of its own, and others not
            assert len(each["sent"][0]) == len(plan(**cases[name]).calls), name
    assert total["stage 3"] == pytest.approx(total["fp32"] / 2, rel=1e-3)
    assert total["ring"] == pytest.approx(total["fp32"] / 2, rel=1e-6)
    assert {kind for count, kind in found["ring"]["sent"][0]} == {"torch.bfloat16"}
    assert total["compressed"] < total["stage 3"]
    as_fp32 = plan(zero_stage=3, compression=Compression(4, "fp32")).sent_bytes
    assert plan(**cases["compressed"]).sent_bytes < as_fp32


_FLOWS = """
def resumed(folder, **run):
    engine = cluster.make(world, **run)
    cluster.train(engine, 0, 2)
    cluster.save(engine, folder, 2)
    whole = [cluster.train(engine, 2, 4), cluster.bits(t for _, (_, t) in sorted(engine.shards.weights().items()))]
    engine = cluster.make(world, **run)
    cluster.load(engine, folder)
    return whole == [cluster.train(engine, 2, 4), cluster.bits(t for _, (_, t) in sorted(engine.shards.weights().items()))]


def events(**run):
    # The order of an update's passes and of the exchanges that begin.
    engine = cluster.make(world, **run)
    step, order = engine.before_step, []
    begin, backward = step._overlap._begin, engine._engine.backward

    def began(number):
        order.append("exchange")
        return begin(number)

    def passed(loss):
        order.append("backward")
        backward(loss)
        order.append("end")

    step._overlap._begin, engine._engine.backward = began, passed
    cluster.train(engine, 0, 1)
    return order


def trained(early, folder, **run):
    engine = cluster.make(world, **run)
    assert engine.before_step._is_early
    engine.before_step._is_early = early
    told = cluster.train(engine, 0, 4, spoilt=(2, 0))
    state = cluster.whole_state(engine, folder)
    return [told["loss"], told["gradient_norm"], told["skipped"], cluster.bits(state[name] for name in sorted(state))]

SCALED = {"precision": "fp16-per-block", "accumulation_steps": 2}
# gradients of convolutions as the engine has them at stage 0, whose memory is not in the order of their axes
conv = torch.nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)
numbers = torch.arange(108.0).view(4, 3, 3, 3)  # with a half as well these need 8 bits
conv.weight.grad = (numbers + world.rank).to(memory_format=torch.channels_last)
settings = Run(steps=1, batch_size=2, wire="bf16")
step = before_step.BeforeStep(Whole(conv, SimpleNamespace()), grouped(world, settings), settings, None, None, {})
step.open()
step()
told["laid"] = torch.equal(conv.weight.grad, numbers + 0.5) and conv.weight.grad.stride() == conv.weight.stride()
told["order"] = events(zero_stage=3, wire="bf16", accumulation_steps=2)
folder = os.environ["FOLDER"]
sharded = {"zero_stage": 3, "wire": "bf16"}
ring, scaled, whole = {**sharded, "wire": "bf16-ring"}, {**sharded, **SCALED}, {"wire": "bf16"}
for name, run in {"stage 0": whole, "ring": ring, "scaled": scaled}.items():
    skipped, *rest = cluster.spoilt(world, "layers.0.mlp.widen.weight", f"{folder}/spoilt {name}", **run)
    told[f"spoilt {name}"] = [world.gather(skipped), *rest]
for name, run in {"stage 0": whole, "stage 1": {"zero_stage": 1, "wire": "bf16"}, "scaled": scaled}.items():
    told[f"resumed {name}"] = resumed(f"{folder}/resumed {name}", **run)
for name, run in {"ring": ring, "scaled": scaled}.items():
    told[f"early {name}"] = [trained(early, f"{folder}/{name} {early}", **run) for early in (False, True)]
"""


@pytest.fixture(scope="module")
def flows(tmp_path_factory) -> dict:
    return _run(_FLOWS, 2, 1, str(tmp_path_factory.mktemp("wire")))


def test_a_gradient_that_is_not_finite_skips_the_update_everywhere(flows):
    for name in ("stage 0", "ring", "scaled"):
        changed = ["gradient_scales"] if name == "scaled" else []
        assert flows[f"spoilt {name}"] == [[[1], [1]], changed, [0]], name


def test_gradients_in_another_order_in_memory_stay_where_they_are(flows):
    assert flows["laid"]


def test_resumed_is_uninterrupted(flows):
    assert all(flows[f"resumed {name}"] for name in ("stage 0", "stage 1", "scaled"))


def test_the_exchange_begins_in_the_last_backward_pass_and_changes_no_bit(flows):
    order = flows["order"]
    assert order[:3] == ["backward", "end", "backward"] and order.index("exchange") == 3
    assert order.count("exchange") > 3 and order[4 : order.index("end", 3)].count("exchange") >= 2
    for name in ("ring", "scaled"):
        after, early = flows[f"early {name}"]
        assert early == after and early[2] == [0, 0, 1, 0], name


def test_machines_that_would_save_nothing_are_refused_and_one_machine_sends_nothing():
    found = _run(
        """
        try:
            cluster.make(world, wire="bf16")
        except ValueError as error:
            told["refused"] = str(error)
        for here in (0, 4):
            for stage in (0, 3):
                pairs = []
                for wire in ("fp32", "bf16"):
                    engine = cluster.make(world, wire=wire, zero_stage=stage, ranks_per_machine=here)
                    pairs.append(cluster.train(engine, 0, 2))
                told[f"{here} {stage}"] = pairs[0] == pairs[1] and not engine.before_step._groups
        """,
        4,
        2,
    )
    assert found.pop("refused") == (
        "run.wire bf16 with run.zero_stage 0 and 2 processes a machine: each would send all gradients to the other machines; "
        "set run.zero_stage to 1 or above, where each sends its part, or run.wire to fp32"
    )
    assert len(found) == 4 and all(found.values())
