"""What DeepSpeed is shown of a run: its settings, and the processes in the roles that it knows. It is not imported here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import nn

from dalle.cluster.topology import Machines, World
from dalle.config import Run
from dalle.gradients.partition import whole_shape
from dalle.models.prior import InputMajorLinear, Linear, Prior

_SIXTEEN_BIT = (nn.Linear, nn.Conv2d, Linear, InputMajorLinear)
"""Modules, of these very classes, whose weights are gathered and whose gradients are reduced in the run's precision. A
head is not among them: its logits are fp32."""

_SUB_GROUP = 100_000_000
"""Weights of a process that are updated together: DeepSpeed copies their gradients first, 0.4 GB."""


_KEPT_GATHERED = 250_000_000
"""Weights within which a gathered one has to be used again in order to stay, twice the weights on the way to the end of the forward
pass and back. DeepSpeed's own default is four times as many: of 12 billion weights 0.6 GB more for 3% of what is gathered."""


def settings(run: Run, world: World, resblock: int | None = None) -> dict:
    """The DeepSpeed configuration. Clipping and the decision to skip are ours (`gradients/before_step.py`).

    Args:
        run, world: what is trained, by whom
        resblock: weights of a resblock, for the buckets; null where none is made
    """
    zero: dict = {"stage": run.zero_stage}
    if resblock is not None:
        zero |= _buckets(resblock)
    if run.zero_stage == 3:
        # no parameter stays whole from update to update: the averaged weights are swapped in by swapping the shards
        zero |= {"stage3_param_persistence_threshold": 0, "sub_group_size": _SUB_GROUP}
        zero["stage3_max_reuse_distance"] = _KEPT_GATHERED
    if run.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": world.device.type == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": run.micro_batch_size(world.size),
        "gradient_accumulation_steps": run.accumulation_steps,
        "gradient_clipping": 0.0,
        "torch_autocast": {
            "enabled": run.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def _buckets(resblock: int) -> dict:
    """Gradients are reduced, and weights gathered, a resblock at a time. DeepSpeed's own buckets are of 5·10⁸ elements each,
    whatever the model: 3 GB, one in fp32 and one in 16 bits. What is larger than a bucket goes without one."""
    size = resblock + resblock % 2  # which it wants even
    return {"reduce_bucket_size": size, "allgather_bucket_size": size, "stage3_prefetch_bucket_size": size}


class Roles:
    """The two directions of our processes under DeepSpeed's names for them.

    It no longer knows shards within a machine and replicas between machines. But it shards among its "data-parallel" group,
    and asks its "model-parallel" group, all that lies beyond, to agree on norms and on skipped updates alone: so the
    machine is shown as the first and the replicas as the second.

    Args:
        machines: the processes
    """

    def __init__(self, machines: Machines):
        self._machines = machines

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._machines.shards

    def get_data_parallel_rank(self) -> int:
        return self._machines.ordinal

    def get_data_parallel_world_size(self) -> int:
        return self._machines.ranks_per_machine

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._machines.replicas

    def get_model_parallel_rank(self) -> int:
        return self._machines.number

    def get_model_parallel_world_size(self) -> int:
        return self._machines.count

    # DeepSpeed asks under both names
    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size


def largest_resblock(model: Any) -> int:
    """Weights of the largest resblock, or, of what has none by that name, of the largest part that is recomputed."""
    parts = model.resblocks() if isinstance(model, Prior) else model.recomputable()
    return max(sum(math.prod(whole_shape(p)) for p in part.parameters()) for part in parts)


def communicated_in_16_bit(objective: nn.Module) -> Iterator[Any]:
    """The weights that are gathered, and whose gradients are reduced, in a 16-bit precision."""
    return (module.weight for module in objective.modules() if type(module) in _SIXTEEN_BIT)
