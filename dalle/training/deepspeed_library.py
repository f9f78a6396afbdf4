"""DeepSpeed, imported as it is used here: what it prints, compiles, imports and copies without need is left out. The only file that
imports it."""

from __future__ import annotations

import logging
import os
import warnings
from types import SimpleNamespace
from typing import Any

import torch

from dalle.config import Run
from dalle.training.deepspeed_adapter import communicated_in_16_bit


def load() -> Any:
    """DeepSpeed, as it is used here, its processes known to one another."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # that PyTorch has new names for them is said of DeepSpeed's collectives at every call
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # on a CPU DeepSpeed would compile a kernel for tensor-parallel inference at start: a minute and a compiler, unused
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    import_muon()
    _keep_one_copy()
    with torch.device("cpu"):  # at the first one PyTorch notes whom it concerns: before DeepSpeed stands in for them
        torch.empty(0)
    if deepspeed.comm.is_initialized() is False:
        deepspeed.init_distributed(verbose=False)
    return deepspeed


def import_muon() -> None:
    """DeepSpeed's, which it compares every optimiser with: by itself that imports PyTorch's compiler, 2 s of each start."""
    from deepspeed.runtime import compiler

    whole, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401

    compiler.compile = whole


def _keep_one_copy() -> None:
    """At stage 3 DeepSpeed means weights that are fp32 to have no second copy, but compares their device with its own by name,
    as which `cuda:0` and torch.device("cuda:0") are two: it would copy them all."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Zero

    plain = Zero._create_fp32_partitions
    if getattr(plain, "keeps_one_copy", False):
        return

    def create(zero: Any) -> None:
        if not zero.offload_optimizer:
            zero.device = torch.device(zero.device)
        plain(zero)

    create.keeps_one_copy = True  # type: ignore[attr-defined]  # functions have what they are given
    Zero._create_fp32_partitions = create


def communicate_in_16_bit(objective: Any, run: Run) -> None:
    """Mark the parameters that DeepSpeed is to gather, and whose gradients it is to reduce, in 16 bits. Its own mark for
    fp16 would bring a loss scale of its own."""
    if run.precision == "fp32":
        return
    from deepspeed.runtime.torch_autocast import init_autocast_params

    init_autocast_params(SimpleNamespace(module=objective, zero_quantized_weights=lambda: False), torch.bfloat16, [])
    for weight in communicated_in_16_bit(objective):
        weight.comm_dtype = torch.bfloat16 if run.precision == "bf16" else torch.float16
