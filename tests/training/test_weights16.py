"""The resblocks' matrices in 16 bits, in the engine: whatever is sharded, the updates are those of one process, bits of roundings
included; nothing of them is there twice; checkpoints go from fp32 to 16 bits and back."""

import gc
import json
import textwrap

import pytest
import torch
from torch._subclasses.fake_tensor import is_fake

from dalle.cluster.topology import World
from dalle.config import Run
from dalle.optim import optimizer
from dalle.training import weights16
from tests.processes import run_processes
from tests.training import cluster

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_BEGIN = """
import json, os, sys
import torch
from dalle.cluster.topology import joined
from tests.training import cluster
with joined() as world:
    told = {}
    short = {"precision": "bf16", "weights": "16-bit"}
    per_block = {"precision": "fp16-per-block", "weights": "16-bit"}
    papers = {"optimizer": {"moments": "16-bit", "variance_limit": 5.0}}
"""
_END = """
    if world.is_main:
        print(json.dumps(told), flush=True)
# with many engines made and dropped in one process, threads of PyTorch's or DeepSpeed's sometimes abort its end
os._exit(0)
"""


def _run(body: str, count: int) -> dict:
    script = _BEGIN + textwrap.indent(textwrap.dedent(body), "    ") + _END
    return json.loads(run_processes(script, count, count).splitlines()[-1])


# One update, after which every weight has moved by the step size along its gradient's sign; then three more. A sign may differ
# where a gradient is nearly nothing, and a rounding where a weight lies next to where its random bits would have it.
_TRAIN = """
for name, run in {runs}.items():
    engine = cluster.make(world, **run)
    first = cluster.train(engine, 0, 1)
    state = cluster.whole_state(engine, f"{folder}/{{world.size}} {{name}}")
    rest = cluster.train(engine, 1, 4)
    engine.check_replicas()
    names = sorted(n for n in state if n.removeprefix("model/") in engine.model.matrices())
    held = torch.cat([state[n] for n in names])
    told[name] = [first["loss"] + rest["loss"], str(held.dtype), held.float().tolist(), max(rest["skipped"])]
    told[name].append(sorted({{str(t.dtype) for n, t in state.items() if n.startswith("model/") and n not in names}}))
"""


def test_updates_and_roundings_are_those_of_one_process(tmp_path):
    runs = """{"0": short, "1, 2 at a time": {**short, "zero_stage": 1, "accumulation_steps": 2},
               "2": {**short, **papers, "zero_stage": 2}, "3": {**short, "zero_stage": 3},
               "fp16, 3": {**per_block, "zero_stage": 3, "recompute": True}}"""
    found = _run(_TRAIN.format(runs=runs, folder=tmp_path), count=2)
    alone = """{"fp32": {"precision": "fp32"}, "bf16": short, "fp16": per_block}"""
    one = _run(_TRAIN.format(runs=alone, folder=tmp_path), count=1)
    assert len(found) == 5
    assert one["fp32"][1] == "torch.float32" and one["bf16"][2] != one["fp32"][2]
    for name, (losses, dtype, held, skipped, others) in found.items():
        kind = "fp16" if "fp16" in name else "bf16"
        expected = one[kind]
        assert dtype == expected[1] == {"fp16": "torch.float16", "bf16": "torch.bfloat16"}[kind]
        assert others == ["torch.float32"] and not skipped
        # as fp32 weights are compared in `test_cluster.py`: products rounded to 2⁻⁹ or 2⁻¹¹, and now weights, too
        tolerance = 5e-3 if kind == "bf16" else 1e-3
        assert losses == pytest.approx(expected[0], abs=tolerance), name
        assert losses == pytest.approx(one["fp32"][0], abs=5e-3), name
        alike = (torch.tensor(held) == torch.tensor(expected[2])).float().mean()
        # roundings of their own would leave alike half of the weights or less
        assert alike > 0.97, (name, alike)


def test_resumed_is_uninterrupted_and_fp32_checkpoints_go_on(tmp_path):
    found = _run(
        f"""
        def differing(first, second):
            return sorted(n for n in first if not torch.equal(first[n], second[n])) + sorted(first.keys() ^ second.keys())

        for name, run in {{
            "stage 0": {{**short, **papers}},
            "stage 1": {{**short, "zero_stage": 1}},
            "stage 3": {{**per_block, **papers, "zero_stage": 3}},
        }}.items():
            engine = cluster.make(world, **run)
            cluster.train(engine, 0, 2)
            cluster.save(engine, f"{tmp_path}/{{name}}", 2)
            whole = cluster.train(engine, 2, 4)
            state = cluster.whole_state(engine, f"{tmp_path}/{{name}} whole")
            engine = cluster.make(world, **run)
            cluster.load(engine, f"{tmp_path}/{{name}}")
            again = cluster.train(engine, 2, 4)
            told[name] = [whole == again, differing(state, cluster.whole_state(engine, f"{tmp_path}/{{name}} again"))]

        for stage in (2, 3):
            engine = cluster.make(world, precision="bf16", zero_stage=stage)
            cluster.train(engine, 0, 2)
            cluster.save(engine, f"{tmp_path}/{{stage}} fp32", 2)
            before = cluster.whole_state(engine, f"{tmp_path}/{{stage}} before")
            there = cluster.make(world, **short, zero_stage=stage)
            cluster.load(there, f"{tmp_path}/{{stage}} fp32")
            held = cluster.whole_state(there, f"{tmp_path}/{{stage}} held")
            matrices = {{f"model/{{n}}" for n in engine.model.matrices()}}
            wanted = {{n: t.bfloat16() if n in matrices else t for n, t in before.items()}}
            losses = cluster.train(there, 2, 4)["loss"]
            cluster.save(there, f"{tmp_path}/{{stage}} 16-bit", 4)
            last = cluster.whole_state(there, f"{tmp_path}/{{stage}} last")
            back = cluster.make(world, precision="bf16", zero_stage=stage)
            cluster.load(back, f"{tmp_path}/{{stage}} 16-bit")
            returned = cluster.whole_state(back, f"{tmp_path}/{{stage}} back")
            dtypes = sorted({{str(t.dtype) for n, t in returned.items() if n.startswith("model/")}})
            after = {{n: t.float() if n in matrices else t for n, t in last.items()}}
            lost = differing(wanted, held) + differing(after, returned)
            told[f"{{stage}} goes on"] = [losses, cluster.train(engine, 2, 4)["loss"], lost, dtypes]
            told[f"{{stage}} back"] = [cluster.train(there, 4, 6)["loss"], cluster.train(back, 4, 6)["loss"]]
        """,
        count=2,
    )
    for name in ("stage 0", "stage 1", "stage 3"):
        assert found[name] == [True, []], name
    for stage in (2, 3):
        there, fp32, lost, dtypes = found[f"{stage} goes on"]
        assert lost == [] and dtypes == ["torch.float32"], (stage, lost)
        assert there == pytest.approx(fp32, abs=5e-3)
        there, back = found[f"{stage} back"]
        assert back == pytest.approx(there, abs=5e-3) and back[1] != there[1]


def _all_tensors() -> list[torch.Tensor]:
    """Of this process, whoever holds them; not the stand-ins that a compiler keeps, which have no memory."""
    gc.collect()
    found = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return [tensor for tensor in found if not is_fake(tensor)]


def _bytes_beside(others: list[torch.Tensor]) -> int:
    """Of the memory of all tensors but these. They are held on to, so that none is let go meanwhile, nor its place used again."""
    known = {t.untyped_storage()._cdata for t in others}
    found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _all_tensors()}
    return sum(size for place, size in found.items() if place not in known)


def _watched(made) -> dict[str, torch.dtype]:
    """The formats of the gradients that the optimiser is given, by name, and of those that are added up in the parameters."""
    found, whole = {}, made.before_step

    def watched():
        told = whole()
        found.update({name: gradient.dtype for name, gradient in made.shards.gradients().items()})
        if made.run.zero_stage < 3:
            found.update({name: p.grad.dtype for name, p in made.model.named_parameters() if p.grad is not None})
        return told

    watched.open, watched.close = whole.open, whole.close
    made.before_step = watched
    return found


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_bytes_that_stay_are_fewer_by_the_expected_amount(zero_stage):
    """2 of 4 bytes of each matrix's weight, 6 of 8 where DeepSpeed has a second copy, in all of this process's memory: nothing keeps
    the fp32 weights alive. One process has all shards."""
    found = {}
    for weights in ("fp32", "16-bit"):
        before = _all_tensors()
        made = cluster.make(World(0, 1, DEVICE), precision="bf16", weights=weights, zero_stage=zero_stage, seed=3)
        gradients = _watched(made)
        cluster.train(made, 0, 2)
        assert set(gradients.values()) == {torch.float32} and len(gradients) == len(made.shards.pieces)
        found[weights] = _bytes_beside(before)
        matrices = sum(made.shards.pieces[name].size for name in made.model.matrices())
        assert weights == "fp32" or (made._client.gradients, made._client.seed) == ({}, 3)
        if zero_stage > 0:
            made._engine.optimizer.destroy()
        del made
    saved = (6 if zero_stage in (1, 2) else 2) * matrices
    # counters of a few bytes, and what fills flat tensors up
    assert found["fp32"] - found["16-bit"] == pytest.approx(saved, rel=0.01)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_the_average_is_fp32_and_gives_the_weights_back(zero_stage):
    from dalle.optim.ema import EMA

    made = cluster.make(World(0, 1, DEVICE), precision="bf16", weights="16-bit", zero_stage=zero_stage)
    ema = EMA(made.shards.weights(), 0.9)
    cluster.train(made, 0, 2)
    ema.update(0)
    live = {name: t.clone() for name, (_, t) in made.shards.weights().items()}
    averages = {name: t.clone() for name, t in ema.averages.items()}
    assert {t.dtype for t in averages.values()} == {torch.float32}
    with made.averaged(ema):
        for name, (_, t) in made.shards.weights().items():
            assert torch.equal(t, averages[name].to(t.dtype))
    for name, (_, t) in made.shards.weights().items():
        assert torch.equal(t, live[name]) and torch.equal(ema.averages[name], averages[name])


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_an_update_that_is_compiled_as_on_a_gpu_is_the_plain_one(zero_stage, monkeypatch):
    """Traced as a whole, and run by PyTorch's own kernels. The tracer met fp32 gradients of 16-bit parameters once."""
    found = []
    compiled = torch.compile(optimizer._update, dynamic=True, fullgraph=True, backend="aot_eager")
    for update in (optimizer._update, compiled):
        monkeypatch.setattr(optimizer, "_update", update)
        made = cluster.make(World(0, 1, DEVICE), precision="bf16", weights="16-bit", zero_stage=zero_stage)
        losses = cluster.train(made, 0, 2)["loss"]
        found.append((losses, {name: t.clone() for name, (_, t) in made.shards.weights().items()}))
    (plain, weights), (traced, again) = found
    assert traced == plain and len(weights) > 10
    # one in a thousand sums of fp32 may be fused otherwise
    assert all((weights[n].float() - again[n].float()).norm() <= 1e-3 * weights[n].float().norm() for n in weights)


def test_fp16_is_not_for_large_models_on_a_cpu(monkeypatch):
    prior = cluster.Prior(cluster.SIZES)
    size = sum(p.numel() for n, p in prior.named_parameters() if n in prior.matrices())
    run = Run(steps=1, batch_size=1, precision="fp16-per-block", weights="16-bit")
    monkeypatch.setattr(weights16, "_MOST_ON_CPU", size)
    weights16.check(prior, run, torch.device("cpu"))
    monkeypatch.setattr(weights16, "_MOST_ON_CPU", size - 1)
    weights16.check(prior, run, torch.device("cuda"))
    with pytest.raises(ValueError) as refusal:
        weights16.check(prior, run, torch.device("cpu"))
    assert str(refusal.value) == (
        f"run.weights 16-bit with run.precision fp16-per-block on a CPU: {size:,} weights in fp16, whose products are slow there, "
        f"are more than {size - 1:,}; set run.precision to bf16, or see by dalle-plan what other machines would do"
    )


def test_a_pytorch_without_fp32_gradients_of_16_bit_weights_is_refused(monkeypatch):
    prior = cluster.Prior(cluster.SIZES)
    monkeypatch.setattr(weights16, "_HAS_FP32_GRADIENTS", False)
    with pytest.raises(
        ValueError, match=r"run.weights 16-bit with run.zero_stage 2: PyTorch .* has no .*; install 2\.10"
    ):
        weights16.check(prior, Run(steps=1, batch_size=1, weights="16-bit", zero_stage=2), DEVICE)
