"""From sizes and numbers of updates to the settings of every stage's command, as plain values that YAML can hold.

What is not a size comes from `configs/emoji` and `configs/demo`, which are trainings of minutes; what there is a number of
updates is a share of the run here, so that a run of any length is annealed alike.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from dalle.own.facts import Machine, Pictures
from dalle.own.plan import Sizes

_MANY_PAIRS = 5_000
_SEEN_BY_HEART = 200
"""Passes over the pairs above which each is encoded with more than one crop."""
_MOST_CROPS = 8
_CHECKPOINT_MINUTES = 3.0
_CACHE_BYTES = 2_000_000_000


def stage_settings(
    sizes: Sizes, updates: dict[str, int], pictures: Pictures, machine: Machine, seed: int
) -> dict[str, dict[str, Any]]:
    """The settings of `tokenizer`, `dvae`, `tokens`, `prior` and `clip`, without their paths."""
    images = {"augmentation": "prior", "cache_bytes": min(_CACHE_BYTES, machine.memory_bytes // 8)}
    # of little data more would be learnt by heart at once, and drawing wants it surer of itself (emoji: 0.5, 12,406 pairs: 0.8)
    temperature = 0.5 if pictures.pairs < _MANY_PAIRS else 0.8
    return {
        "tokenizer": {"vocabulary": sizes.vocabulary},
        "dvae": {
            "model": plain(sizes.dvae),
            "objective": {
                "kl_weight": {"start": 0.0, "end": _kl_weight(sizes), "begin_step": "20%", "end_step": "50%"},
                "temperature": {"start": 1.0, "end": 0.0625, "end_step": "70%"},
                "noise_scale": {"start": 0.0, "end": 1.0, "end_step": "30%"},
            },
            "optimizer": {
                "step_size": _annealed(sizes.dvae_step_size, "1%"),
                "beta1": 0.9,
                "beta2": 0.99,
                "weight_decay": 1e-4,
            },
            "run": _run(updates["dvae"], sizes.batch, pictures, seed, validations=2),
            "images": images,
        },
        "tokens": {"crops": choose_crops(updates["prior"] * sizes.batch / pictures.pairs), "images": images},
        "prior": {
            "model": plain(sizes.prior),
            "optimizer": {
                "step_size": _annealed(sizes.prior_step_size, "3%"),
                "beta1": 0.9,
                "beta2": 0.96,
                "weight_decay": 4.5e-2,
                "clip_norm": 1.0,
                "muon_step_size_factor": 10.0,
            },
            "run": _run(updates["prior"], sizes.batch, pictures, seed, validations=4),
            "bpe_dropout": 0.0,
            "caption_dropout": 0.1,
            "sampling_temperature": temperature,
        },
        "clip": {
            "model": plain(sizes.clip),
            "optimizer": {
                "step_size": _annealed(sizes.clip_step_size, "10%"),
                "beta1": 0.9,
                "beta2": 0.98,
                "weight_decay": 0.1,
                "clip_norm": 1.0,
                "muon_step_size_factor": 10.0,
            },
            "run": _run(updates["clip"], sizes.clip_batch, pictures, seed, validations=1),
            "images": images,
        },
    }


def choose_crops(passes: float) -> int:
    """How often each image is encoded, each time with another crop: once while a crop is seen fewer than 200 times."""
    return max(1, min(_MOST_CROPS, int(passes // _SEEN_BY_HEART)))


def with_updates(settings: dict[str, Any], updates: int) -> dict[str, Any]:
    """The settings of a training of another length."""
    run = settings["run"]
    times = max(1, round(run["steps"] / run["validate_every_steps"])) if run["validate_every_steps"] else 1
    return settings | {"run": run | _lengths(updates, times, run["validate_every_steps"] > 0)}


def _run(updates: int, batch: int, pictures: Pictures, seed: int, validations: int) -> dict[str, Any]:
    return {
        "batch_size": batch,
        "seed": seed,
        **_lengths(updates, validations, validations > 1),
        "validation_batches": max(1, min(15, -(-pictures.valid // batch))),
        "checkpoint_every_minutes": _CHECKPOINT_MINUTES,
        "loader_workers": 1,
    }


def _lengths(updates: int, validations: int, in_between: bool) -> dict[str, Any]:
    """What follows the number of updates. Averaged are the last twentieth, as 0.99 does of 2,000 updates of the emoji."""
    decay = min(0.9995, max(0.9, 1 - 20 / updates))
    return {
        "steps": updates,
        "ema_decay": float(f"{decay:.4f}"),
        "log_every_steps": min(100, math.ceil(updates / 40)),
        "validate_every_steps": math.ceil(updates / validations) if in_between else 0,
    }


def _annealed(step_size: float, warmup: str) -> dict[str, Any]:
    return {"start": float(f"{step_size:.3g}"), "end": 5e-5, "end_step": "100%", "warmup_steps": warmup}


def _kl_weight(sizes: Sizes) -> float:
    return 0.3 if sizes.dvae.code_prior == "learned" else 1.0


def plain(model: Any) -> dict[str, Any]:
    """A model's sizes as YAML holds them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(model).items()}
