"""The same figures on Weights & Biases, for those who switch it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dalle.config import Wandb
from dalle.config.checks import installed


def start_run(settings: Wandb, title: str, folder: Path, run_id: str | None) -> Any:
    """A run there, or the one with that id again. Raises ValueError when wandb is not installed or does not start."""
    with installed("wandb is switched on but not installed: `pip install wandb`, or switch it off"):
        import wandb
    try:
        where: dict[str, Any] = {
            "project": settings.project,
            "name": settings.name or title,
            "mode": settings.mode,
            "dir": str(folder),
        }
        run = wandb.init(**where, id=run_id, resume="allow" if run_id else None)
        # wandb's own step may not go back, which it does when a run resumes from an earlier checkpoint.
        run.define_metric("*", step_metric="step")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"wandb is switched on but did not start ({reason}): log in with `wandb login`, set its mode to offline, or switch it off"
        ) from error
    return run
