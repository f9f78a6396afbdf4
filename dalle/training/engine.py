"""The one training engine: DeepSpeed, from one CPU process to a cluster. The only file that imports it.

The DeepSpeed settings are derived from our dataclasses. The model is written for one device and never learns what is
done to it here, in this order: compilation, precision, sharding.
"""

from __future__ import annotations

import logging
import os

import torch
from torch import nn

from dalle.config import Optimizer, Run
from dalle.training import optimizer as optimizers
from dalle.training.topology import World


class Engine:
    """Updates the weights of an objective's model.

    Args:
        objective: module with a `model`; called with a batch it returns (loss, metrics)
        optimizer: settings of AdamW
        run: batch size, precision, sharding
        world: the processes
    """

    def __init__(self, objective: nn.Module, optimizer: Optimizer, run: Run, world: World):
        deepspeed = _import_deepspeed()
        self.world, self.run, self.optimizer_config = world, run, optimizer
        self.objective = objective.to(world.device)
        client = optimizers.build(objective, optimizer)
        if run.compile:
            objective.model.compile()
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
        stopped.
        """
        torch.manual_seed((self.run.seed << 40) + (step << 12) + self.world.rank)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self.optimizer_config.step_size(step)
        totals: dict[str, torch.Tensor] = {}
        for batch in micro_batches:
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
            for moment in ("exp_avg", "exp_avg_sq"):
                value = self._moment(parameter, moment)
                if value is not None:
                    tensors[f"{moment}/{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Restore what `state` gave, after `step` updates."""
        self.model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model/")})
        if self._zero:
            self._engine.optimizer.refresh_fp32_params()
        for name, parameter in self.model.named_parameters():
            moments = {m: tensors[f"{m}/{name}"] for m in ("exp_avg", "exp_avg_sq")}
            if self._zero:
                from deepspeed.utils import safe_set_full_optimizer_state

                for moment, value in moments.items():
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), moment)
            else:
                # in the parameter's own memory format, which the fused optimiser takes for granted
                on_device = {m: torch.empty_like(parameter).copy_(v) for m, v in moments.items()}
                self._adam.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **on_device}
        if self._zero:
            for state in self._adam.state.values():
                state["step"].fill_(step)

    def _moment(self, parameter: nn.Parameter, moment: str) -> torch.Tensor | None:
        if self._zero:
            from deepspeed.utils import safe_get_full_optimizer_state

            return safe_get_full_optimizer_state(parameter, moment)
        return self._adam.state.get(parameter, {}).get(moment)


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
