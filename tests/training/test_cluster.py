"""Four processes as two machines of two: whatever is sharded, replicated or compressed, the updates are those of one."""

import json
import textwrap

import pytest
import torch

from tests.processes import run_processes

_BEGIN = """
import json, os, sys
import torch
from dalle.config import Compression
from dalle.cluster.topology import joined
from tests.training import cluster
with joined() as world:
    told = {}
"""
_END = """
    if world.is_main:
        print(json.dumps(told), flush=True)
# with many engines made and dropped in one process, threads of PyTorch's or DeepSpeed's sometimes abort its end
os._exit(0)
"""


def _run(body: str, count: int = 4, ranks_per_machine: int = 2) -> dict:
    script = _BEGIN + textwrap.indent(textwrap.dedent(body), "    ") + _END
    return json.loads(run_processes(script, count, ranks_per_machine).splitlines()[-1])


@pytest.fixture(scope="module")
def one_process() -> dict:
    """Losses and gradient norms of plain training on one process."""
    return _run("told = cluster.train(cluster.make(world))", count=1, ranks_per_machine=1)


def _assert_same(found: dict, expected: dict, tolerance: float = 2e-5) -> None:
    """The same sums in another order, then six AdamW updates of 1e-2."""
    assert found["loss"] == pytest.approx(expected["loss"], abs=tolerance)
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], abs=20 * tolerance)
    assert not any(found["skipped"])


def test_sharded_and_replicated_is_plain(one_process):
    """Every ZeRO stage over all four and inside two machines, recomputation, and PowerSGD at full rank."""
    found = _run(
        """
        full = Compression(rank=64, format="fp32")
        for name, run in {
            "stage 0": {},
            "stage 1": {"zero_stage": 1},
            "stage 2": {"zero_stage": 2},
            "stage 3": {"zero_stage": 3},
            "stage 3 over all": {"zero_stage": 3, "ranks_per_machine": 0},
            "stage 3 recomputed": {"zero_stage": 3, "recompute": True},
            "stage 3 in main memory": {"zero_stage": 3, "offload": "cpu"},
            "stage 3 compressed": {"zero_stage": 3, "compression": full},
            "stage 0 compressed": {"zero_stage": 0, "compression": full},
        }.items():
            told[name] = cluster.train(cluster.make(world, **run))
        """
    )
    assert len(found) == 9
    for told in found.values():
        _assert_same(told, one_process)


def test_16_bits_are_nearly_plain(one_process):
    found = _run(
        """
        for name, run in {
            "bf16": {"precision": "bf16", "zero_stage": 3},
            "fp16": {"precision": "fp16", "zero_stage": 2},
            "fp16 with a scale for each resblock": {"precision": "fp16-per-block", "zero_stage": 3},
            "the same, weights whole": {"precision": "fp16-per-block"},
        }.items():
            told[name] = cluster.train(cluster.make(world, **run))
        """
    )
    for name, told in found.items():
        # products rounded to 2⁻⁹ (bf16) or 2⁻¹¹
        _assert_same(told, one_process, 5e-3 if name == "bf16" else 1e-3)
        assert told["loss"] != one_process["loss"]


def test_compression_differs_and_trains(one_process):
    found = _run(
        """
        for format in ("fp32", "bf16", "1-6-9"):
            told[format] = cluster.train(cluster.make(world, zero_stage=3, compression=Compression(4, format)))
        """
    )
    assert found["fp32"]["loss"][0] == pytest.approx(one_process["loss"][0], abs=1e-6)
    for format, told in found.items():
        assert told["loss"][2] != pytest.approx(one_process["loss"][2], abs=1e-4)  # rank 4 of 32
        # what the formats round away is small beside what is postponed
        assert told["loss"] == pytest.approx(found["fp32"]["loss"], abs=5e-3), format
        assert told["gradient_norm"][0] < one_process["gradient_norm"][0]


def test_16_bits_lose_nothing_of_an_update():
    """What reaches the optimiser, which hardly minds a factor, against fp32 without compression: in every 16-bit format of the
    products, of what processes reduce and of what machines exchange."""
    found = _run(
        """
        def gradients(**run):
            engine = cluster.make(world, optimizer={"clip_norm": None}, **run)
            seen = cluster.given(engine)
            cluster.train(engine, 0, 1)
            matrices = engine.model.matrices()
            return [torch.cat([g for n, g in seen.items() if (n in matrices) == kind]) for kind in (True, False)]

        for stage in (0, 3):
            exact = gradients(zero_stage=stage)
            for name, run in {
                "bf16": {"precision": "bf16"},
                "fp16": {"precision": "fp16-per-block"},
                "compressed, bf16": {"compression": Compression(64, "bf16")},
                "compressed, 1-6-9": {"compression": Compression(64)},
            }.items():
                ours = gradients(zero_stage=stage, **run)
                told[f"{stage} {name}"] = [((o - e).norm() / e.norm()).item() for o, e in zip(ours, exact)]
        """
    )
    assert len(found) == 8
    for name, lost in found.items():
        # some tens of roundings to 2⁻⁸ in bf16 products, 2⁻¹¹ in fp16; P, Q and their averages to 2⁻⁸ or 2⁻¹⁰ in what is sent
        assert max(lost) < 0.03, (name, lost)
        assert max(lost) > 1e-5


def test_resumed_is_uninterrupted(tmp_path):
    """Bit for bit on the same layout, gradient scales and the error buffers of several machines included; closely on another."""
    found = _run(
        f"""
        def resumed(name, before, after):
            engine = cluster.make(world, **before)
            cluster.train(engine, 0, 3)
            cluster.save(engine, f"{tmp_path}/{{name}}", 3)
            whole = cluster.train(engine, 3, 6)
            engine = cluster.make(world, **after)
            cluster.load(engine, f"{tmp_path}/{{name}}")
            return [whole, cluster.train(engine, 3, 6)]

        sharded, replicated = {{"zero_stage": 3}}, {{"zero_stage": 1}}
        compressed = {{**sharded, "compression": Compression(4)}}
        whole_matrices = {{"zero_stage": 0, "ranks_per_machine": 1, "compression": Compression(4)}}
        low = {{**sharded, "precision": "fp16-per-block", "optimizer": {{"moments": "16-bit", "variance_limit": 5.0}}}}
        for name, before, after in (
            ("sharded", sharded, sharded),
            ("compressed on one machine", {{**compressed, "ranks_per_machine": 4}}, {{**compressed, "ranks_per_machine": 4}}),
            ("compressed", compressed, compressed),
            ("compressed on four machines", whole_matrices, whole_matrices),
            ("all of it", {{**low, **compressed}}, {{**low, **compressed}}),
            ("16-bit", low, low),
            ("to one shard", sharded, {{"zero_stage": 3, "ranks_per_machine": 1}}),
            ("to stage 1", sharded, replicated),
            ("from stage 1", replicated, {{"zero_stage": 0}}),
            ("to other machines", compressed, {{**compressed, "ranks_per_machine": 4}}),
        ):
            told[name] = resumed(name, before, after)
        """
    )
    for name in (
        *("sharded", "compressed on one machine", "compressed", "compressed on four machines", "16-bit", "all of it"),
    ):
        whole, again = found.pop(name)
        assert again == whole, name
    whole, again = found.pop("to other machines")
    assert again["loss"][0] == pytest.approx(whole["loss"][0], abs=1e-6)  # what is compressed then differs
    for whole, again in found.values():
        _assert_same(again, whole)
    # a checkpoint of four processes continues on one
    one = _run(
        f"""
        engine = cluster.make(world)
        cluster.load(engine, "{tmp_path}/sharded")
        told = cluster.train(engine, 3, 6)
        """,
        count=1,
        ranks_per_machine=1,
    )
    _assert_same(one, found["to stage 1"][0])


def test_error_buffers_keep_their_sum_on_another_number_of_machines(tmp_path):
    body = f"""
        engine = cluster.make(world, zero_stage=3, compression=Compression(4, "fp32"))
        if world.size == 4:
            cluster.train(engine, 0, 3)
        else:
            cluster.load(engine, "{tmp_path}/four")
        state = cluster.whole_state(engine, f"{tmp_path}/{{world.size}}")
        if world.size == 4:
            cluster.save(engine, "{tmp_path}/four", 3)
        told = {{name: values.tolist() for name, values in state.items() if name.startswith("error/")}}
    """
    four, two = _run(body), _run(body, count=2, ranks_per_machine=1)
    assert len(four) == 2 * 4 and four.keys() == two.keys()
    for name, values in four.items():
        assert torch.tensor(values).abs().max() > 1e-4
        assert two[name] == pytest.approx(values, abs=1e-7)


def test_an_update_that_is_not_finite_changes_nothing(tmp_path):
    """A loss that is not a number on one rank: the update is skipped on all; weights, moments and the optimiser's count stay.
    Gradient scales learn of it, and error buffers have what waits of the other machine's gradient."""
    found = _run(
        f"""
        for name, run in {{
            "stage 0": {{}},
            "stage 2": {{"zero_stage": 2}},
            "stage 3": {{"zero_stage": 3}},
            "compressed": {{"zero_stage": 3, "compression": Compression(4)}},
            "16-bit moments": {{"optimizer": {{"moments": "16-bit", "variance_limit": 5.0}}}},
            "fp16": {{"precision": "fp16-per-block"}},
        }}.items():
            engine = cluster.make(world, **run)
            first = cluster.train(engine, 0, 2, spoilt=(1, 3))
            before = cluster.whole_state(engine, f"{tmp_path}/{{name}} before")
            second = cluster.train(engine, 2, 3, spoilt=(2, 2))
            after = cluster.whole_state(engine, f"{tmp_path}/{{name}} after")
            changed = [key for key in before if not torch.equal(before[key], after[key])]
            third = cluster.train(engine, 3, 5)
            told[name] = [first["skipped"] + second["skipped"] + third["skipped"], changed, third["loss"]]
        """
    )
    for name, (skipped, changed, losses) in found.items():
        assert skipped == [0, 1, 1, 0, 0], name
        allowed = {"fp16": {"gradient_scales"}, "compressed": {"error"}}
        kinds = {key.split("/")[0] for key in changed}
        assert kinds <= allowed.get(name, set()) and bool(kinds) == (name in allowed), (name, changed)
        assert all(0 < loss < 3 for loss in losses), name


def test_an_update_after_a_validation_has_the_weights_back():
    """Sharded weights are gathered for a forward pass; what was gathered of the averaged ones must not be used again."""
    found = _run(
        """
        from dalle.optim.ema import EMA
        for validated in (False, True):
            engine = cluster.make(world, zero_stage=3)
            ema = EMA(engine.shards.weights(), decay=0.5)
            for step in range(4):
                losses = cluster.train(engine, step, step + 1)["loss"]
                ema.update(step)
                if validated:
                    with engine.averaged(ema), torch.no_grad():
                        engine.model.eval()
                        cluster.loss(engine)
                        engine.model.train()
                told.setdefault(str(validated), []).extend(losses)
        """
    )
    assert found["True"] == found["False"]


def test_a_run_that_skipped_updates_resumes_as_it_was(tmp_path):
    """Its optimiser has made fewer updates than the run has seen; or none at all, and has no moments yet."""
    found = _run(
        f"""
        for name, run in {{"stage 0": {{}}, "stage 1": {{"zero_stage": 1}}, "stage 3": {{"zero_stage": 3}}}}.items():
            for skipped in (0, 1):
                engine = cluster.make(world, **run)
                cluster.train(engine, 0, 1 + skipped, spoilt=(skipped, 2))
                cluster.save(engine, f"{tmp_path}/{{name}} {{skipped}}", 1 + skipped)
                whole = cluster.train(engine, 2, 5)
                engine = cluster.make(world, **run)
                cluster.load(engine, f"{tmp_path}/{{name}} {{skipped}}")
                told[f"{{name}} {{skipped}}"] = [whole, cluster.train(engine, 2, 5)]
        """
    )
    assert len(found) == 6
    for name, (whole, again) in found.items():
        assert again == whole, name


def test_accumulation_with_sharding_is_the_whole_batch(one_process):
    """Two micro-batches on each of four processes, at every stage, compressed at full rank, and in 16 bits with scales."""
    found = _run(
        """
        full = Compression(rank=64, format="fp32")
        for name, run in {
            "stage 1": {"zero_stage": 1},
            "stage 2": {"zero_stage": 2},
            "stage 3": {"zero_stage": 3},
            "stage 3 compressed": {"zero_stage": 3, "compression": full, "recompute": True},
            "fp16": {"zero_stage": 3, "precision": "fp16-per-block"},
        }.items():
            engine = cluster.make(world, accumulation_steps=2, **run)
            told[name] = cluster.train(engine)
            if engine.scales:
                told["scales"] = engine.scales.scales.log2().tolist()
        """
    )
    # 2¹³ for each of the 4 × 2 micro-batches, grown six times by a thousandth of an octave
    assert found.pop("scales") == pytest.approx([16.006] * 4, abs=1e-4)
    assert len(found) == 5
    for name, told in found.items():
        # products rounded to 2⁻¹¹
        _assert_same(told, one_process, 1e-3 if name == "fp16" else 2e-5)


def test_gradient_scales_stay_on_another_number_of_processes(tmp_path):
    """The batch is the same, and with it a sample's gradient in fp16; of earlier checkpoints, too, which do not tell M."""
    body = f"""
        from pathlib import Path
        from dalle.checkpoints import checkpoint
        from dalle.checkpoints.checkpoint import Fragment
        engine = cluster.make(world, precision="fp16-per-block", zero_stage=STAGE, accumulation_steps=ACCUMULATION)
        if world.size == 1:
            cluster.train(engine, 0, 2, spoilt=(1, 0))
            cluster.save(engine, "{tmp_path}/now", 2)
            fragments = [f for f in engine.state() if f.name != "gradient_scales/micro_batches"]
            checkpoint.save(Path("{tmp_path}/before"), 2, fragments, {{"loaders": [None] * 3}}, 9, world)
            told["scales"] = engine.scales.scales.tolist()
        else:
            for name in ("now", "before"):
                cluster.load(engine, f"{tmp_path}/{{name}}")
                told[name] = engine.scales.scales.tolist()
            told["then"] = cluster.train(engine, 2, 4)
            told["saved"] = {{n: v.tolist() for n, v in engine.scales.state_dict().items()}}
    """
    one = _run(body.replace("STAGE", "0").replace("ACCUMULATION", "1"), count=1, ranks_per_machine=1)
    four = _run(body.replace("STAGE", "3").replace("ACCUMULATION", "2"))
    # 2¹³, grown once by a thousandth of an octave; a loss that is no number is not a resblock's fault
    assert one["scales"] == pytest.approx([2 ** (13 + 2 / 1000)] * 4)
    assert four["now"] == one["scales"]
    # as if three processes had written it
    assert four["before"] == pytest.approx([3 * scale for scale in one["scales"]])
    assert four["then"]["skipped"] == [0, 0]
    assert four["saved"]["micro_batches"] == 3


def test_a_checkpoint_is_read_once_for_all_machines(tmp_path):
    """Whatever is sharded or held by all: of each tensor every element is read by one process alone, bytes for checksums among
    them, and all move on while it is read."""
    found = _run(
        f"""
        import os
        from dalle.checkpoints.checkpoint import Checkpoint
        compressed = {{"zero_stage": 3, "compression": Compression(4)}}
        whole = {{"compression": Compression(4)}}
        hashing = cluster.checkpoint.hashing
        for name, run in {{"stage 3": compressed, "stage 1": {{"zero_stage": 1}}, "stage 0": whole}}.items():
            engine = cluster.make(world, precision="fp16-per-block", **run)
            cluster.train(engine, 0, 2)
            state = cluster.whole_state(engine, f"{tmp_path}/{{name}}")
            engine = cluster.make(world, precision="fp16-per-block", **run)
            reads, plain, marks, num_bytes, preadv = {{}}, Checkpoint.read, [], [], os.preadv

            def counted(self, tensor, start=0, stop=None):
                values = plain(self, tensor, start, stop)
                reads[tensor] = reads.get(tensor, 0) + values.numel()
                return values

            def hashed(path):
                num_bytes.append(path.stat().st_size)
                return hashing(path)

            Checkpoint.read, cluster.checkpoint.hashing = counted, hashed
            os.preadv = lambda *args: num_bytes.append(preadv(*args)) or num_bytes[-1]
            opened = cluster.checkpoint.verify(cluster.checkpoint.latest(cluster.Path(f"{tmp_path}/{{name}}")), world)
            engine.load_state(opened, lambda: marks.append(sum(reads.values())))
            Checkpoint.read, cluster.checkpoint.hashing, os.preadv = plain, hashing, preadv
            everyones = world.gather((reads, len(marks), sum(num_bytes)))
            told[name] = {{
                "sizes": {{tensor: values.numel() for tensor, values in state.items()}},
                "bytes": sum(values.numel() * values.element_size() for values in state.values()),
                "bytes read": sum(theirs for *_, theirs in everyones),
                "reads": {{t: sum(theirs.get(t, 0) for theirs, *_ in everyones) for t in state}},
                "readers": sum(bool(theirs) for theirs, *_ in everyones),
                "marks": [count for _, count, _ in everyones],
            }}
            again = cluster.whole_state(engine, f"{tmp_path}/{{name}} again")
            told[name]["changed"] = [t for t in state if t[:5] != "error" and not torch.equal(state[t], again[t])]
        """
    )
    for name, told in found.items():
        assert told["reads"] == told["sizes"], name
        assert told["bytes read"] == told["bytes"], name
        assert told["readers"] == 4  # they share the work
        assert len(set(told["marks"])) == 1 and told["marks"][0] >= len(told["sizes"])
        assert told["changed"] == []


def test_damage_ends_a_resume_on_all_ranks_before_anything_is_used(tmp_path):
    """Also what is used while others are still to be read, what is read last, and what one process alone has read; nobody waits
    for it."""
    found = _run(
        f"""
        import struct
        scaled = {{"precision": "fp16-per-block", "zero_stage": 3, "compression": Compression(4)}}
        small = ["steps", "gradient_scales/scale", "error_scales"]
        for run, more in ((scaled, small), ({{"zero_stage": 3}}, [])):
            folder = cluster.Path("{tmp_path}") / str(len(more))
            engine = cluster.make(world, **run)
            cluster.train(engine, 0, 2)
            cluster.save(engine, str(folder), 2)
            opened = cluster.checkpoint.open_checkpoint(cluster.checkpoint.latest(folder))
            layers = [t for t in opened.tensors if len(opened.tensors[t]["parts"]) > 1]
            moments = [t for t in layers if t.startswith("exp_avg_sq/")]
            world.barrier()
            for name in (layers[0], moments[-1], *more):
                file, key, *_ = opened.tensors[name]["parts"][-1]
                path = opened.path / file
                if world.is_main:
                    content = bytearray(path.read_bytes())
                    begin = 8 + struct.unpack("<Q", content[:8])[0]
                    at = begin + json.loads(content[8:begin])[key]["data_offsets"][1] - 1
                    content[at] ^= 0xff
                    path.write_bytes(content)
                world.barrier()
                engine = cluster.make(world, **run)
                try:
                    cluster.load(engine, str(folder))
                    complaint = None
                except ValueError as error:
                    complaint = str(error)
                told[f"{{name}} {{len(more)}}"] = world.gather(complaint), key
                if world.is_main:
                    content[at] ^= 0xff
                    path.write_bytes(content)
                world.barrier()
            engine = cluster.make(world, **run)
            cluster.load(engine, str(folder))
        """
    )
    assert len(found) == 5 + 2
    for name, (complaints, key) in found.items():
        assert len(set(complaints)) == 1, name
        assert complaints[0] is not None, name
        assert "step-0000002 is damaged: rank-0000" in complaints[0]
        assert f"of {key} are not those that were written; start anew, for there is no older one" in complaints[0]


def test_machines_whose_weights_differ_end_the_run():
    """Told by the bits, so that two errors of opposite sign do not hide each other; and of the right processes."""
    found = _run(
        """
        from dalle.config.checks import Hopeless
        for name, run in {"stage 3": {"zero_stage": 3}, "stage 1": {"zero_stage": 1}, "stage 0": {}}.items():
            engine = cluster.make(world, **run)
            cluster.train(engine, 0, 2)
            engine.check_replicas()
            if world.rank == 2:
                (_, tensor), *_ = engine.shards.weights().values()
                with torch.no_grad():
                    tensor.view(-1)[:2] += torch.tensor([1e-3, -1e-3])
            try:
                engine.check_replicas()
            except Hopeless as error:
                told[name] = str(error)
        """
    )
    assert len(found) == 3
    for name, line in found.items():
        assert line.startswith("the weights of rank 2 of 4 differ from those of others that should hold the same"), name
        assert "\n" not in line


def test_machines_that_do_not_divide_are_refused():
    found = _run(
        """
        for name, run in {
            "ranks": {"zero_stage": 3, "ranks_per_machine": 3},
            "rank": {"zero_stage": 3, "compression": Compression(3)},
        }.items():
            try:
                cluster.make(world, **run)
            except ValueError as error:
                told[name] = str(error)
        """
    )
    assert found["ranks"].startswith("run.ranks_per_machine 3: does not divide the 4 processes")
    assert found["rank"].startswith("run.compression.rank 3: must be a multiple of the 2 processes of a machine")
