"""The resblocks' matrices in 16 bits: put in the place of the fp32 ones that DeepSpeed has taken over.

DeepSpeed knows weights of one format, and beside those of 16 bits an fp32 copy that its optimiser updates: 6 bytes a weight. Here
nothing is there twice. It is given fp32 weights and arranges them as it likes; then the matrices become 16-bit ones, in the same
places of the same lists, and what it takes for the copy is the weights themselves. Gradients stay fp32: below stage 3, where they
are added up in the parameters, as `grad_dtype` has it; at stage 3 in a buffer of DeepSpeed's. What it hands to the optimiser as
gradients it converts to the format of the weights, so the optimiser takes those that were there before (`PaperAdamW.gradients`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dalle.config import Run
from dalle.config.checks import require

_HAS_FP32_GRADIENTS = hasattr(torch.Tensor, "grad_dtype")
"""Since PyTorch 2.10 a parameter may have a gradient of another format than its own."""
_MOST_ON_CPU = 10_000_000
"""Weights of matrices in fp16 that a CPU may train: such products took 16 times as long as those in bf16, of 512 × 1,024
× 1,024 on a CPU with AVX-512 and its bf16 instructions."""


def stored_dtype(run: Run) -> torch.dtype:
    """The format of 16-bit weights: that of the products."""
    return torch.bfloat16 if run.precision == "bf16" else torch.float16


def check(model: Any, run: Run, device: torch.device) -> None:
    """Raises ValueError where a model's matrices cannot be kept in 16 bits on a device.

    Args:
        model: that has `matrices`, perhaps without values
        run: how it is to be trained
        device: of this process
    """
    if run.zero_stage < 3:
        require(
            _HAS_FP32_GRADIENTS,
            f"run.weights 16-bit with run.zero_stage {run.zero_stage}: PyTorch {torch.__version__} has no fp32 gradients of 16-bit "
            "weights; install 2.10 or later, or set run.zero_stage to 3",
        )
    names = set(model.matrices())
    size = sum(p.numel() for n, p in model.named_parameters() if n in names)
    require(
        device.type != "cpu" or stored_dtype(run) != torch.float16 or size <= _MOST_ON_CPU,
        f"run.weights 16-bit with run.precision {run.precision} on a CPU: {size:,} weights in fp16, whose products are slow there, "
        f"are more than {_MOST_ON_CPU:,}; set run.precision to bf16, or see by dalle-plan what other machines would do",
    )


def store(model: Any, zero: Any, run: Run) -> None:
    """Give the matrices of a model's resblocks their 16-bit format, rounded to the nearest.

    Args:
        model: that DeepSpeed has taken over
        zero: its optimiser around ours
        run: stage and precision
    """
    names, dtype = set(model.matrices()), stored_dtype(run)
    matrices = [p for name, p in model.named_parameters() if name in names]
    if run.zero_stage == 3:
        _store_shards(zero, {id(p) for p in matrices}, dtype)
        return
    if run.zero_stage > 0:
        _store_partitions(zero, {id(p) for p in matrices}, dtype)
    for p in matrices:
        p.data = p.data.to(dtype)
        p.grad_dtype = torch.float32


def _store_partitions(zero: Any, chosen: Collection[int], dtype: torch.dtype) -> None:
    """Stages 1 and 2: parameters are views of flat tensors, of which each process updates a part."""
    for number, parameters in enumerate(zero.bit16_groups):
        if not _all_chosen(parameters, chosen):
            continue
        flat = zero.bit16_groups_flat[number] = zero.bit16_groups_flat[number].to(dtype)
        parts = zero.parallel_partitioned_bit16_groups[number] = zero.get_data_parallel_partitions(flat, number)
        zero._update_model_bit16_weights(number)
        updated = zero.single_partition_of_fp32_groups[number]
        updated.data = parts[dist.get_rank(zero.real_dp_process_group[number])]
        for p in parameters:
            if link := p._hp_mapping:  # it has views of what was there before, which would keep that alive
                theirs, ours = link.lp_fragment_address, link.hp_fragment_address
                link.lp_fragment = p.data.flatten().narrow(0, theirs.start, theirs.numel)
                link.hp_fragment = updated.data.narrow(0, ours.start, ours.numel)


def _store_shards(zero: Any, chosen: Collection[int], dtype: torch.dtype) -> None:
    """Stage 3: all shards lie in one buffer, which goes; each group gets one of its own."""
    for number, parameters in enumerate(zero.fp16_groups):
        in_16_bits = _all_chosen(parameters, chosen)
        before = zero.fp32_partitioned_groups_flat[number]  # a view, which would keep the buffer
        held = before.detach().to(dtype if in_16_bits else before.dtype, copy=True)
        held.ds_id = before.ds_id
        zero.fp16_partitioned_groups_flat[number] = held
        zero.fp32_partitioned_groups_flat[number] = held.requires_grad_()
        zero._unflatten_partitioned_parameters(number)
        for p in parameters if in_16_bits else ():
            p.data = torch.empty(0, dtype=dtype, device=p.device)
    zero.lp_param_buffer = torch.empty(0)


def _all_chosen(parameters: list[nn.Parameter], chosen: Collection[int]) -> bool:
    found = {id(p) in chosen for p in parameters}
    assert len(found) == 1, "the optimiser has them in groups of their own"
    return found.pop()
