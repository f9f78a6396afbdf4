"""The one training engine: DeepSpeed, from one CPU process to a cluster. The only file that imports it.

The DeepSpeed settings are derived from our dataclasses. The model is written for one device and never learns what is
done to it here, in this order: recomputation, compilation, precision, sharding.
"""

from __future__ import annotations

import hashlib
import logging
import os
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dalle.config import Optimizer, Run
from dalle.training import optimizer as optimizers
from dalle.training.topology import World

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """Updates the weights of an objective's model.

    Args:
        objective: module with a `model`; called with a batch it returns (loss, metrics)
        optimizer: settings of AdamW or Muon
        run: batch size, precision, sharding
        world: the processes
    """

    def __init__(self, objective: nn.Module, optimizer: Optimizer, run: Run, world: World):
        deepspeed = _import_deepspeed()
        self.world, self.run, self.optimizer_config = world, run, optimizer
        self.objective = objective.to(world.device)
        client = optimizers.build(objective, optimizer)
        if run.recompute:
            recompute_blocks(self.model)
        if run.compile:  # not the model: an objective calls what it likes of it, and only a call is compiled
            objective.compile()
        self._engine, *_ = deepspeed.initialize(
            model=objective, optimizer=client, config=_settings(optimizer, run, world), dist_init_required=False
        )
        self._zero = run.zero_stage > 0
        if not self._zero:
            # convolutions are faster so (1.7 times on a CPU); sharded parameters are flat and cannot be
            self.objective.to(memory_format=torch.channels_last)
        self._adam = self._engine.optimizer.optimizer if self._zero else self._engine.optimizer

    @property
    def model(self) -> nn.Module:
        return self.objective.model

    def update(self, micro_batches: list[dict], step: int) -> dict[str, torch.Tensor]:
        """One update from `accumulation_steps` micro-batches; their mean metrics, of this rank, undetermined until read.

        The noise of an update is a function of (seed, update, rank), so that a resumed run goes on as if it had never
        stopped. What a batch holds as a function is made when its turn comes.
        """
        torch.manual_seed(derived_seed(self.run.seed, step, self.world.rank))
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self.optimizer_config.step_size(step)
        totals: dict[str, torch.Tensor] = {}
        for batch in micro_batches:
            batch = {name: value() if callable(value) else value for name, value in batch.items()}
            loss, metrics = self._engine(batch)
            self._engine.backward(loss)
            self._engine.step()
            for name, value in metrics.items():
                totals[name] = totals[name] + value if name in totals else value
        return {name: value / len(micro_batches) for name, value in totals.items()}

    def autocast(self) -> torch.autocast:
        """The precision of this run, for validation outside the engine."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.run.precision == "bf16")

    def state(self) -> dict[str, torch.Tensor]:
        """Weights, buffers and Adam moments, whole, by name: the same for any number of ranks and any ZeRO stage.
        All ranks have to call it."""
        tensors = {f"model/{name}": t.detach() for name, t in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for moment in _MOMENTS:
                if self._zero:
                    tensors[f"{moment}/{name}"] = self._gathered(parameter, moment)
                elif moment in self._adam.state.get(parameter, {}):
                    tensors[f"{moment}/{name}"] = self._adam.state[parameter][moment]
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Restore what `state` gave, after `step` updates. Nothing is restored of a run that had made none."""
        self.model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
        if self._zero:
            self._engine.optimizer.refresh_fp32_params()
        if step == 0:
            return
        if self._zero:
            for flat in self._engine.optimizer.single_partition_of_fp32_groups:
                moments = {moment: torch.zeros_like(flat) for moment in _MOMENTS}
                self._adam.state[flat] = {"step": torch.tensor(float(step), device=flat.device), **moments}
        for name, parameter in self.model.named_parameters():
            held = [moment for moment in _MOMENTS if f"{moment}/{name}" in tensors]  # Muon has but the first
            moments = {moment: tensors[f"{moment}/{name}"].to(parameter.device) for moment in held}
            if not self._zero:
                # in the parameter's own memory format, which the fused optimiser takes for granted
                moments = {moment: torch.empty_like(parameter).copy_(value) for moment, value in moments.items()}
                self._adam.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **moments}
                continue
            for moment, value in moments.items():
                for here, within in self._shards(parameter, moment):
                    here.copy_(value.flatten()[within])

    def _gathered(self, parameter: nn.Parameter, moment: str) -> torch.Tensor:
        """A moment of a sharded optimiser, whole."""
        whole = torch.zeros_like(parameter, dtype=torch.float32).flatten()
        for here, within in self._shards(parameter, moment):
            whole[within] = here
        return self.world.sum(whole).view_as(parameter)

    def _shards(self, parameter: nn.Parameter, moment: str) -> list[tuple[torch.Tensor, slice]]:
        """This rank's part of a parameter's moment, and where in the flattened parameter it lies; none or one."""
        link = parameter._hp_mapping
        if link is None:
            return []
        flat = self._engine.optimizer.single_partition_of_fp32_groups[link.param_group_index]
        held, place = link.hp_fragment_address, link.lp_fragment_address
        here = self._adam.state[flat][moment].narrow(0, held.start, held.numel)
        return [(here, slice(place.start, place.start + place.numel))]


def recompute_blocks(model: nn.Module) -> None:
    """Let a model's `recomputable` parts be computed again in the backward pass. None of them draws random numbers."""
    for module in model.recomputable():
        module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)


def derived_seed(seed: int, step: int, number: int) -> int:
    """63 bits that look random, whatever the size of the three; the number is a rank's or a sample's."""
    digest = hashlib.blake2b(f"{seed} {step} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _settings(optimizer: Optimizer, run: Run, world: World) -> dict:
    """The DeepSpeed configuration."""
    return {
        "train_micro_batch_size_per_gpu": run.micro_batch_size(world.size),
        "gradient_accumulation_steps": run.accumulation_steps,
        "gradient_clipping": optimizer.clip_norm or 0.0,
        "torch_autocast": {"enabled": run.precision == "bf16", "dtype": "bfloat16"},
        "zero_optimization": {"stage": run.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def _import_deepspeed():
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # on a CPU DeepSpeed would compile a kernel for tensor-parallel inference at start: a minute and a compiler, unused
    __compatible_ops__["deepspeed_shm_comm"] = False
    if deepspeed.comm.is_initialized() is False:
        deepspeed.init_distributed(verbose=False)
    return deepspeed
