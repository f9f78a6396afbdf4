"""Compressed gradients at ZeRO stage 3 live in the error buffers alone: engines beside appendix E written out plainly, a matrix at
a time, all machines in one process; the memory that they hold; and what else a run has."""

import json

import pytest
import torch

from dalle.cluster.topology import World
from dalle.config import Compression
from tests.processes import ON_CPU, run_processes
from tests.training import cluster
from tests.training.test_weights16 import _all_tensors, _bytes_beside

_SCRIPT = """
import json, os, sys
import torch
from dalle.cluster.topology import joined
from dalle.config import Compression, PriorObjective
from dalle.gradients.exchange import decode, encode
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective as PriorLoss
from tests.training import cluster

SPOILT = "layers.0.mlp.widen.weight"
HERE = int(os.environ["HERE"])


def whole(engine) -> dict:
    with engine.whole_weights():
        return {name: p.detach().float().clone() for name, p in engine.model.named_parameters()}


class Written:
    # The steps of appendix E; buffers of all machines, shards and matrices, with micro-batches added one after the other.
    def __init__(self, engine, format):
        self.world, self.run, self.format = engine.world, engine.run, format
        self.parts, self.buffers = engine.model.matrices(), {}
        self.q0 = {name: stack.q0_LK for stack in engine.before_step.powersgd.stacks() for name in stack.names}
        self.objective = PriorLoss(Prior(cluster.SIZES), PriorObjective())
        self.machines = engine.world.size // HERE

    def gradients(self, weights, step, machine, number, is_spoilt) -> dict:
        # The mean of a machine's processes, its part of the mean over micro-batches.
        parameters = dict(self.objective.model.named_parameters())
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(weights[name])
        count, total = self.run.accumulation_steps, {}
        for rank in range(machine * HERE, (machine + 1) * HERE):
            batch = cluster.micro_batch(step, rank * count + number, self.world.size * count)
            loss = self.objective(batch)[0] / count / HERE
            for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values()))):
                if is_spoilt and name == SPOILT and rank == self.world.size - 1:
                    gradient = gradient + torch.inf
                total[name] = total.get(name, 0) + gradient
        return total

    def matrices(self, whole, name, shard) -> list:
        rows = whole.shape[0] // HERE
        return list(whole[shard * rows : (shard + 1) * rows].chunk(self.parts[name]))

    def update(self, weights, step, spoilt) -> tuple:
        # What is applied by (shard, name, matrix), and by name what was not compressed; the norm, whether all was finite.
        plain, finite = {}, True
        for number in range(self.run.accumulation_steps):
            for machine in range(self.machines):
                found = self.gradients(weights, step, machine, number, spoilt == number)
                for name, gradient in found.items():
                    if name not in self.parts:
                        plain[name] = plain.get(name, 0) + gradient / self.machines
                        continue
                    for shard in range(HERE):
                        for place, matrix in enumerate(self.matrices(gradient, name, shard)):
                            key = machine, shard, name, place
                            before = self.buffers.get(key, torch.zeros_like(matrix))
                            if matrix.isfinite().all():
                                self.buffers[key] = decode(encode(before + matrix, self.format), self.format)
                            else:
                                self.buffers[key], finite = before, False
        applied = {}
        for _, shard, name, place in [key for key in self.buffers if key[0] == 0]:
            keys = [(machine, shard, name, place) for machine in range(self.machines)]
            lying = self.buffers[keys[0]].shape[0] <= self.buffers[keys[0]].shape[1]
            held = [self.buffers[key].double() if lying else self.buffers[key].double().T for key in keys]
            p = sum(b @ self.q0[name].double() for b in held) / self.machines
            p, _ = torch.linalg.qr(p + 1e-6 * torch.eye(*p.shape, dtype=p.dtype))
            q = sum(b.T @ p for b in held) / self.machines
            sent = (p @ q.T if lying else (p @ q.T).T).float()
            applied[shard, name, place] = sent
            for key in keys:
                self.buffers[key] = decode(encode(self.buffers[key] - sent, self.format), self.format)
        squares = sum(sent.square().sum() for sent in applied.values()) + sum(g.square().sum() for g in plain.values())
        return applied, plain, squares.sqrt().item(), finite

    def flat(self, found, name, shard) -> torch.Tensor:
        return torch.cat([found[shard, name, place].flatten() for place in range(self.parts[name])])


def compared(world, format="fp32", spoilt=None, **run) -> dict:
    # The largest errors of four updates, the third of which is spoilt in one micro-batch on the last process.
    run = {"zero_stage": 3, "compression": Compression(4 * HERE, format), "optimizer": {"clip_norm": 0.5}, **run}
    engine = cluster.make(world, **run)
    powersgd, written, seen, calls = engine.before_step.powersgd, Written(engine, format), cluster.given(engine), []
    parameter = dict(engine.model.named_parameters())[SPOILT]
    machine, shard = divmod(world.rank, HERE)
    told = {"applied": [], "plain": [], "buffers": [], "norm": [], "skipped": []}
    for step in range(4):
        weights = whole(engine)
        at = spoilt if step == 2 else None
        applied, plain, norm, finite = written.update(weights, step, at)
        calls.clear()

        def spoil(gradient):
            calls.append(1)
            return gradient + torch.inf if len(calls) - 1 == at and world.rank == world.size - 1 else gradient

        hook = parameter.register_hook(spoil)
        scales = engine.scales.scales.clone() if engine.scales else torch.zeros(0)
        seen.clear()
        found = cluster.train(engine, step, step + 1)
        hook.remove()
        told["skipped"] += found["skipped"]
        assert bool(found["skipped"][0]) != finite
        assert len(calls) == engine.run.accumulation_steps
        for name in written.parts:
            wanted = written.flat({k[1:]: b for k, b in written.buffers.items() if k[0] == machine}, name, shard)
            told["buffers"].append(((powersgd.waiting(name) - wanted).norm() / wanted.norm()).item())
        if not finite:
            told["same"] = all(torch.equal(value, whole(engine)[name]) for name, value in weights.items())
            told["fallen"] = (engine.scales.scales < scales).nonzero().flatten().tolist() if engine.scales else None
            assert not seen or engine.run.zero_stage == 0  # of gradients nothing is decompressed in vain
            continue
        told["norm"].append(abs(found["gradient_norm"][0] / norm - 1))
        factor = min(1, 0.5 / (norm + 1e-6))
        assert factor < 1
        for name in written.parts:
            wanted = factor * written.flat(applied, name, shard)
            told["applied"].append(((seen[name] - wanted).norm() / wanted.norm()).item())
        for name, gradient in plain.items():
            piece = engine.shards.pieces[name]
            wanted = factor * gradient.flatten()[piece.start : piece.start + piece.size]
            told["plain"].append(((seen[name] - wanted).norm() / wanted.norm().clamp(min=1e-6)).item() if piece.size else 0)
    return {k: max(v) if k in ("applied", "plain", "buffers", "norm") else v for k, v in told.items()}


def resumed(world, folder, **run) -> list:
    # Whether a resumed run gives the same bits, and the kinds of those that a checkpoint has of it.
    engine = cluster.make(world, **run)
    cluster.train(engine, 0, 3, spoilt=(1, 0))
    cluster.save(engine, f"{folder}/kept", 3)
    whole, state = cluster.train(engine, 3, 6), cluster.whole_state(engine, f"{folder}/whole")
    engine = cluster.make(world, **run)
    cluster.load(engine, f"{folder}/kept")
    again, other = cluster.train(engine, 3, 6), cluster.whole_state(engine, f"{folder}/again")
    return [whole == again and all(torch.equal(state[n], other[n]) for n in state), sorted({n.split("/")[0] for n in state})]


with joined() as world:
    told = {}
    exec(sys.argv[1])
    told = world.gather(told)
    if world.is_main:
        print(json.dumps(told), flush=True)
os._exit(0)
"""


def _run(body: str, count: int, here: int) -> list[dict]:
    """What each process found."""
    surroundings = {**ON_CPU, "HERE": str(here)}
    return json.loads(run_processes(_SCRIPT, count, here, arguments=[body], environment=surroundings).splitlines()[-1])


@pytest.mark.parametrize(("count", "here"), [(1, 1), (2, 2), (2, 1), (4, 2)])
def test_updates_are_those_of_the_steps_written_out(count, here):
    """One micro-batch or several, one of them not finite in one update; with two machines weights that are whole, too."""
    several = 4 if count == 1 else 2
    # a matrix that had no gradient on any machine has nothing left along Q₀, and what P then is, rounding decides
    whole = 'told["whole"] = compared(world, zero_stage=0, spoilt=0)' if count > here == 1 else ""
    body = f"""
{whole}
told["one"] = compared(world)
told["several"] = compared(world, accumulation_steps={several}, spoilt=1)
"""
    for found in _run(body, count, here):
        for told in found.values():
            # fp32 against fp64, and gradients that were summed in another order, through a QR
            assert max(told["applied"], told["plain"], told["buffers"]) < 1e-4 and told["norm"] < 1e-5, told
        assert found["one"]["skipped"] == [0, 0, 0, 0]
        for name in found.keys() - {"one"}:
            assert found[name]["skipped"] == [0, 0, 1, 0] and found[name]["same"]


def test_in_16_bits_they_are_nearly_those():
    """Buffers and wire, weights, products and gradient scales, all at once, and one at a time; on two machines."""
    body = """
short = {"precision": "bf16", "weights": "16-bit"}
scaled = {"precision": "fp16-per-block", "accumulation_steps": 2, "reduce_factor": 0.25}
told["1-6-9"] = compared(world, "1-6-9", spoilt=0)
told["bf16"] = compared(world, "bf16", accumulation_steps=4, spoilt=3)
told["short"] = compared(world, **short)
told["scaled"] = compared(world, spoilt=1, **scaled)
told["all"] = compared(world, "1-6-9", spoilt=1, **scaled, weights="16-bit")
"""
    # of what is applied, and of what waits: P, Q and buffers rounded to 2⁻¹⁰ or 2⁻⁸, products to 2⁻⁸ (bf16) or 2⁻¹¹, several times
    # (seen: 0.011, 0.067, 0.039, 0.005, 0.017), in P that stretches to small differences of B
    largest = {"1-6-9": 0.02, "bf16": 0.1, "short": 0.06, "scaled": 0.01, "all": 0.03}
    for found in _run(body, 2, 1):
        for name, told in found.items():
            assert told["skipped"] == ([0] * 4 if name == "short" else [0, 0, 1, 0]), name
            assert told["applied"] < largest[name] and told["buffers"] < largest[name], (name, told)
            assert told["norm"] < largest[name] and told["applied"] > 1e-5 and told["plain"] < 0.06, (name, told)
        assert [found[name].get("fallen") for name in ("short", "1-6-9", "scaled", "all")] == [None, None, [1], [1]]


def test_resumed_is_uninterrupted(tmp_path):
    """Bit for bit, with an update that was skipped behind it: one machine of two, with all that 16 bits can hold."""
    body = f"""
papers = {{"moments": "16-bit", "variance_limit": 5.0}}
run = {{"zero_stage": 3, "compression": Compression(4), "accumulation_steps": 2, "weights": "16-bit", "optimizer": papers}}
told["all"] = resumed(world, {str(tmp_path)!r}, precision="fp16-per-block", **run)
"""
    for found in _run(body, 2, 2):
        assert found["all"][0] and {"error", "error_scales", "gradient_scales"} <= set(found["all"][1])


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("weights", ["fp32", "16-bit"])
def test_of_a_compressed_gradient_nothing_but_the_error_buffer_stays(weights):
    """In all of this process's memory, which has all shards: 2 bytes a weight of the matrices in place of 4, and the fixed Q₀."""
    found, matrices, fixed = [], 0, 0
    for compression in (None, Compression(4)):
        before = _all_tensors()
        made = cluster.make(
            World(0, 1, DEVICE), precision="bf16", weights=weights, zero_stage=3, compression=compression
        )
        cluster.train(made, 0, 2)
        if compression:
            matrices = sum(made.shards.pieces[name].size for name in made.model.matrices())
            stacks = list(made.before_step.powersgd.stacks())
            fixed = sum(stack.q0_LK.nbytes for stack in stacks)
            assert all(stack.p_NSK is None and stack.q_NLK is None for stack in stacks)
            assert set(made.shards.gradients()).isdisjoint(made.model.matrices())
        found.append(_bytes_beside(before))
        made._engine.optimizer.destroy()
        del made
    # scales and flags of a few bytes
    assert found[0] - found[1] == pytest.approx(2 * matrices - fixed, rel=0.01)
