"""What we read of DeepSpeed beside its documented calls: its names, which any release may change without a word."""

import importlib.metadata
import inspect

import pytest
import torch
import yaml

from dalle.cluster.topology import Machines, World, grouped
from dalle.config import Compression, Optimizer, PriorModel, PriorObjective, Run, Schedule
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective as PriorLoss
from dalle.training import deepspeed_adapter, deepspeed_library
from dalle.training.engine import Engine, sharded_construction
from tests.conftest import ROOT
from tests.processes import ON_CPU, run_processes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = PriorModel(text_slots=4, grid=2, text_vocabulary=5, codebook_size=7, width=32, depth=2, heads=2)

OPTIMIZER = {
    1: [
        *("single_partition_of_fp32_groups", "bit16_groups", "params_in_partition", "averaged_gradients"),
        *("bit16_groups_flat", "parallel_partitioned_bit16_groups", "get_data_parallel_partitions"),
        *("_update_model_bit16_weights", "real_dp_process_group"),
    ],
    3: [
        *(
            "fp32_partitioned_groups_flat",
            "fp16_partitioned_groups_flat",
            "fp16_groups",
            "grad_position",
            "get_param_id",
        ),
        *("get_fp32_grad_partitions", "offload_optimizer", "parameter_offload", "grad_partitions_flat_buffer"),
        *("partition_grads", "_unflatten_partitioned_parameters", "lp_param_buffer"),
        *("_prepare_fp32_grad_for_sub_group", "averaged_gradients"),
        "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition",
    ],
}
OPTIMIZER[2] = OPTIMIZER[1]
"""Of DeepSpeed's optimiser, by ZeRO stage; `optimizer` (the client's) and `refresh_fp32_params` at all."""
PARAMETER = {
    1: ["_hp_mapping"],
    2: ["_hp_mapping"],
    3: ["ds_tensor", "ds_shape", "ds_numel", "ds_id", "partition_numel"],
}


def _engine(zero_stage: int, optimizer: dict | None = None, **run) -> Engine:
    run = Run(steps=2, batch_size=2, zero_stage=zero_stage, **{"precision": "bf16", **run})
    world = grouped(World(0, 1, DEVICE), run)
    with sharded_construction(run, world):
        model = Prior(SIZES)
    return Engine(PriorLoss(model, PriorObjective()), Optimizer(Schedule(1e-3, 1e-3), **(optimizer or {})), run, world)


def _update(made: Engine) -> None:
    batch = {"text_BU": torch.tensor([[1, 2, 3], [3, 1, 2]]), "codes_BI": torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]])}
    batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()} | {
        "text_targets": torch.tensor(6.0, device=DEVICE)
    }
    made.update([batch], 0, 1e-3)


def test_the_release_is_the_one_that_was_read():
    assert '"deepspeed==0.19.*",' in (ROOT / "pyproject.toml").read_text()
    assert importlib.metadata.version("deepspeed").startswith("0.19.")


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_what_we_read_is_there(zero_stage):
    """A name that is gone, or made at another time, fails here and not as a wrong gradient."""
    made = _engine(zero_stage)
    zero = made._engine.optimizer
    missing = [n for n in [*OPTIMIZER[zero_stage], "optimizer", "refresh_fp32_params"] if not hasattr(zero, n)]
    parameters = list(made.model.parameters())
    missing += [n for n in PARAMETER[zero_stage] if not all(hasattr(p, n) for p in parameters)]
    assert not missing
    if zero_stage < 3:
        link = parameters[0]._hp_mapping
        names = ("lp_fragment_address", "hp_fragment_address", "param_group_index", "lp_fragment", "hp_fragment")
        assert all(hasattr(link, n) for n in names)
        assert all(hasattr(link.hp_fragment_address, n) for n in ("start", "numel"))
    else:
        assert hasattr(parameters[0].ds_tensor, "ds_numel")
        assert callable(zero.parameter_offload.partition_all_parameters)
    _update(made)


def test_gradients_are_where_deepspeed_adds_them_up():
    """In the very memory that it gives to its optimiser; and it tells of all of them, once, before the backward pass has ended."""
    made, found, told, order = _engine(3, offload="device"), {}, [], []
    zero, step, backward = made._engine.optimizer, made.before_step, made._engine.backward
    names = {id(p): name for name, p in made.model.named_parameters()}
    assert made.shards.tell_reduced(lambda some: (told.extend(some), order.append("reduced")))

    def passed(loss):
        backward(loss)
        order.append("end")

    def watched():
        theirs, ours = zero.get_fp32_grad_partitions(), made.shards.gradients()
        for group, parameters in enumerate(zero.fp16_groups):
            for number, p in enumerate(parameters):
                name = names[id(p)]
                found[name] = [(t.data_ptr(), t.numel()) for t in (theirs[group][number], ours[name])]
        return step()

    watched.open, watched.close = step.open, step.close
    made.before_step, made._engine.backward = watched, passed
    _update(made)
    assert found.keys() == set(names.values())
    assert all(theirs == ours for theirs, ours in found.values())
    assert sorted(told) == sorted(names.values())
    assert order.count("reduced") > 2 and order[-1] == "end"


def test_what_is_in_main_memory_is_not_told_of():
    made = _engine(3, offload="cpu")
    assert not made.shards.tell_reduced(lambda some: None)
    assert not _engine(1).shards.tell_reduced(lambda some: None)


def test_a_training_imports_no_compiler():
    """Which DeepSpeed's Muon does at every start, unused, and takes as long as PyTorch itself."""
    script = """
import sys
from tests.training import cluster
from dalle.cluster.topology import joined
with joined() as world:
    for zero_stage in (1, 3):
        cluster.train(cluster.make(world, zero_stage=zero_stage), 0, 2)
print("torch._inductor.compile_fx" in sys.modules)
"""
    assert run_processes(script, 1, 1, environment=ON_CPU).splitlines()[-1] == "False"


def test_after_a_training_tensors_are_made_on_the_device_that_is_asked_for():
    """PyTorch notes once which functions `with device` concerns; DeepSpeed stands in for them while a sharded model is made."""
    script = """
import os
import torch
from dalle.cluster.topology import joined
from tests.training import cluster
torch.utils._device._device_constructors.cache_clear()
with joined() as world:
    cluster.train(cluster.make(world, zero_stage=3), 0, 1)
with torch.device("meta"):
    print(torch.empty(1).device, torch.zeros(1).device, torch.nn.Linear(2, 2).weight.device, flush=True)
os._exit(0)
"""
    assert run_processes(script, 1, 1, environment=ON_CPU).split() == ["meta"] * 3


def test_the_functions_we_call_are_there():
    deepspeed = deepspeed_library.load()
    from deepspeed.ops import __compatible_ops__
    from deepspeed.runtime import compiler
    from deepspeed.runtime.torch_autocast import init_autocast_params

    assert compiler.compile() is torch.compile and compiler.dummy_decorator(test_what_we_read_is_there)
    assert hasattr(deepspeed.utils.groups, "mpu")
    assert list(inspect.signature(init_autocast_params).parameters) == [
        *("engine", "dtype", "torch_autocast_lower_precision_safe_modules"),
    ]
    assert __compatible_ops__["deepspeed_shm_comm"] is False
    assert callable(deepspeed.utils.safe_set_local_grad) and callable(deepspeed.utils.set_z3_leaf_modules)


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16-per-block", torch.float16), ("fp32", None)]
)
def test_matrices_of_the_resblocks_alone_are_communicated_in_16_bit(zero_stage, precision, dtype):
    """In the run's own format: DeepSpeed reads the mark as it takes the parameters over, and makes a bucket for each."""
    made = _engine(zero_stage, precision=precision)
    matrices = made.model.matrices()
    assert len(matrices) == 4 * SIZES.depth
    marked = {name: p.comm_dtype for name, p in made.model.named_parameters() if hasattr(p, "comm_dtype")}
    assert marked == ({} if dtype is None else dict.fromkeys(matrices, dtype))
    if zero_stage > 0:
        assert set(made._engine.optimizer.ipg_buckets) == {torch.float32, dtype or torch.float32}


def test_resblocks_are_gathered_whole():
    """And nothing else is: a layer would be twice the weights at a time, a matrix four times the calls."""
    made = _engine(3)
    leaves = deepspeed_library.load().utils.get_z3_leaf_modules(made.objective)
    assert len(leaves) == 2 * SIZES.depth
    assert {id(module) for module in leaves} == {id(block) for block in made.model.resblocks()}
    assert not deepspeed_library.load().utils.get_z3_leaf_modules(_engine(1).objective)


def test_the_machine_is_shown_as_one_direction_and_the_replicas_as_the_other():
    """Of each the group, this process's number in it and its size, under all names that DeepSpeed asks by."""
    machines = object.__new__(Machines)  # without processes
    machines.shards, machines.ordinal, machines.ranks_per_machine = "shards", 3, 5
    machines.replicas, machines.number, machines.count = "replicas", 7, 11
    roles = deepspeed_adapter.Roles(machines)
    parts = {"data_parallel": ("shards", 3, 5), "model_parallel": ("replicas", 7, 11)}
    parts["tensor_model_parallel"] = parts["model_parallel"]
    for name, expected in parts.items():
        assert tuple(getattr(roles, f"get_{name}_{what}")() for what in ("group", "rank", "world_size")) == expected


def _bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(("zero_stage", "bytes_a_weight"), [(1, 4 + 4), (2, 4 + 4), (3, 4 + 2)])
def test_buckets_are_of_one_resblock(zero_stage, bytes_a_weight, monkeypatch):
    """Seen in the memory that DeepSpeed holds, one bucket for each format of communication."""
    made = _engine(zero_stage)
    zero, held = made._engine.optimizer, []
    if zero_stage == 3:
        held = [bucket.buffer for bucket in zero.ipg_buckets.values()]
    else:  # made anew for each backward pass
        plain = zero.setup_buckets

        def watched():
            plain()
            held[:] = [buffer for bucket in zero.ipg_buckets.values() for buffer in bucket.buffer]

        monkeypatch.setattr(zero, "setup_buckets", watched)
    _update(made)
    resblock = 8 * 32**2 + 32 + 4 * 32 + 2 * 32  # an MLP: two matrices, their biases and its norm
    assert set(zero.ipg_buckets) == {torch.float32, torch.bfloat16}
    assert _bytes(held) == bytes_a_weight * resblock
    config = made._engine._config.zero_config
    assert config.allgather_bucket_size == config.prefetch_bucket_size == resblock


def test_bytes_a_weight_are_those_of_the_table():
    """docs/scaling-details.md, stage 3 with the paper's formats: measured on one process, which holds all m shards."""
    run = {"compression": Compression(4), "optimizer": {"moments": "16-bit", "beta2": 0.96}}
    made = _engine(3, **run)
    _update(made)
    matrices = sum(made.shards.pieces[name].size for name in made.model.matrices())
    others = sum(piece.size for piece in made.shards.pieces.values()) - matrices
    zero = made._engine.optimizer
    moments = [t for state in zero.optimizer.state.values() for name, t in state.items() if name != "step"]
    assert _bytes(t for _, t in made.shards.weights().values()) == 4 * (matrices + others)
    assert {t.data_ptr() for t in zero.fp32_partitioned_groups_flat} == {
        t.data_ptr() for t in zero.fp16_partitioned_groups_flat
    }
    assert _bytes([zero.grad_partitions_flat_buffer]) == 4 * others
    assert _bytes(moments) == 4 * matrices + 8 * others
    assert _bytes(stack.buffer_NSL for stack in made.before_step.powersgd.stacks()) == 2 * matrices


def test_the_table_has_the_buckets_of_the_configurations():
    """Each model on the meta device, by the function that sets DeepSpeed's buckets."""
    rows = [
        line.split("|")[1:-1]
        for line in (ROOT / "docs/scaling-details.md").read_text().splitlines()
        if line.startswith("|")
    ]
    header = next(row for row in rows if " buckets " in row)
    told = {row[0].strip(): row[header.index(" buckets ")] for row in rows if len(row) == len(header)}
    found = {}
    for name in ("prior/100m", "prior/350m", "prior/1b3", "paper/2b8", "paper/5b6", "paper/12b"):
        sizes = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())["model"]
        with torch.device("meta"):
            model = Prior(PriorModel(**sizes))
        found[name.split("/")[1]] = round(6 * deepspeed_adapter.largest_resblock(model) / 1e9, 2)
    assert {name: float(told[name]) for name in found} == found
