"""What we read of DeepSpeed beside its documented calls: its names, which any release may change without a word."""

import importlib.metadata
import inspect

import pytest
import torch

from dalle.cluster.topology import World, grouped
from dalle.config import Optimizer, PriorModel, PriorObjective, Run, Schedule
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective as PriorLoss
from dalle.training import engine
from dalle.training.engine import Engine, sharded_construction
from tests.conftest import ROOT

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = PriorModel(text_slots=4, grid=2, text_vocabulary=5, codebook_size=7, width=32, depth=2, heads=2)

OPTIMIZER = {
    1: ["single_partition_of_fp32_groups", "bit16_groups", "params_in_partition", "averaged_gradients"],
    3: [
        *(
            "fp32_partitioned_groups_flat",
            "fp16_partitioned_groups_flat",
            "fp16_groups",
            "grad_position",
            "get_param_id",
        ),
        *("get_fp32_grad_partitions", "offload_optimizer", "parameter_offload", "grad_partitions_flat_buffer"),
    ],
}
OPTIMIZER[2] = OPTIMIZER[1]
"""Of DeepSpeed's optimiser, by ZeRO stage; `optimizer` (the client's) and `refresh_fp32_params` at all."""
PARAMETER = {1: ["_hp_mapping"], 2: ["_hp_mapping"], 3: ["ds_tensor", "ds_shape", "ds_numel", "ds_id"]}


def _engine(zero_stage: int, **run) -> Engine:
    run = Run(steps=2, batch_size=2, precision="bf16", zero_stage=zero_stage, **run)
    world = grouped(World(0, 1, DEVICE), run)
    with sharded_construction(run, world):
        model = Prior(SIZES)
    return Engine(PriorLoss(model, PriorObjective()), Optimizer(Schedule(1e-3, 1e-3)), run, world)


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
        assert all(hasattr(link, n) for n in ("lp_fragment_address", "hp_fragment_address", "param_group_index"))
        assert all(hasattr(link.hp_fragment_address, n) for n in ("start", "numel"))
    else:
        assert hasattr(parameters[0].ds_tensor, "ds_numel")
        assert callable(zero.parameter_offload.partition_all_parameters)
    _update(made)


def test_the_functions_we_call_are_there():
    deepspeed = engine._import_deepspeed()
    from deepspeed.ops import __compatible_ops__
    from deepspeed.runtime.torch_autocast import init_autocast_params

    assert hasattr(deepspeed.utils.groups, "mpu")
    assert list(inspect.signature(init_autocast_params).parameters) == [
        *("engine", "dtype", "torch_autocast_lower_precision_safe_modules"),
    ]
    assert __compatible_ops__["deepspeed_shm_comm"] is False
    assert callable(deepspeed.utils.safe_set_local_grad) and callable(deepspeed.utils.set_z3_leaf_modules)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_buckets_are_of_one_resblock(zero_stage):
    """Seen in the memory that DeepSpeed holds, one bucket for each format of communication."""
    made = _engine(zero_stage)
    resblock = 8 * 32**2 + 32 + 4 * 32 + 2 * 32  # an MLP: two matrices, their biases and its norm
    config = made._engine._config.zero_config
    assert (config.reduce_bucket_size, config.allgather_bucket_size) == (resblock, resblock)
    assert config.prefetch_bucket_size == resblock
    _update(made)
    buckets = made._engine.optimizer.ipg_buckets
    assert set(buckets) == {torch.float32, torch.bfloat16}
    if zero_stage == 3:
        assert {bucket.buffer.numel() for bucket in buckets.values()} == {resblock}
