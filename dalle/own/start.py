"""Ready weights that a training on somebody's own pictures starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle.config import CLIPModel, DVAEModel, PriorModel
from dalle.models.folder import read_config, read_header
from dalle.outputs.run_files import WEIGHTS
from dalle.outputs.whole import copy_file
from dalle.own.facts import Machine, Pictures
from dalle.own.plan import Sizes, choose_batch, choose_clip, choose_clip_batch
from dalle.ready.files import PART_FILES

_GENTLER = 0.3
"""Of the step size that a training from nothing has: what is known should not be forgotten in the first updates."""
_FRESH_STEP_SIZE = {"dvae": 2e-3, "prior": 1.5e-3, "clip": 1e-3}


@dataclass(frozen=True)
class Start:
    """Models that belong together, and which of them stay as they are.

    Args:
        name: as it was asked for
        folder: with `prior/`, `dvae/` and perhaps `clip/` in it
        freeze: "prior", "decoder" or null: see `TrainFolder`
        dvae, prior: their sizes
        clip: likewise; null where there is none
        hashes: of their weights, by kind
    """

    name: str
    folder: Path
    freeze: str | None
    dvae: DVAEModel
    prior: PriorModel
    clip: CLIPModel | None
    hashes: dict[str, str]

    @property
    def tokenizer(self) -> Path:
        return self.folder / "prior" / "tokenizer.json"

    def stays(self, stage: str) -> bool:
        """Whether a model is taken as it is: what is frozen, and the reranker of a prior that is."""
        if stage == "dvae":
            return self.freeze == "decoder"
        return self.freeze == "prior" and (stage == "prior" or (stage == "clip" and self.clip is not None))

    def goes_on(self, stage: str) -> bool:
        """Whether a stage's training starts from a model of these."""
        return not self.stays(stage) and (stage != "clip" or self.clip is not None)

    def settings(self, stage: str, settings: dict[str, Any]) -> dict[str, Any]:
        """A stage's settings for going on from these: its sizes are theirs, so they need not be said."""
        if not self.goes_on(stage):
            return settings
        rest = {name: value for name, value in settings.items() if name not in ("model", "objective")}
        frozen = {"freeze": "encoder"} if stage == "dvae" else {}
        return {"start_from": str(self.folder / stage), **frozen, **rest}


def read_start(name: str, folder: Path, freeze: str | None) -> Start:
    """What lies in a folder of ready weights.

    Raises:
        ValueError: a model is missing or damaged; one line
    """
    kinds = ["dvae", "prior"] + (["clip"] if (folder / "clip" / WEIGHTS).is_file() else [])
    configs = {kind: read_config(folder / kind, kind) for kind in kinds}
    if not (folder / "prior" / "tokenizer.json").is_file():
        raise ValueError(
            f"start_from {name}: {folder}/prior has no tokenizer.json, which its captions need; put it there"
        )
    hashes = {kind: read_header(folder / kind)["hash"] for kind in kinds}
    return Start(name, folder, freeze, configs["dvae"], configs["prior"], configs.get("clip"), hashes)


def sizes_of(start: Start, pictures: Pictures, machine: Machine) -> Sizes:
    """The sizes of ready weights, with batches for these pictures."""
    return Sizes(
        start.dvae,
        start.prior,
        start.clip or choose_clip(start.dvae, start.prior.text_slots),
        _GENTLER * _FRESH_STEP_SIZE["dvae"],
        _GENTLER * _FRESH_STEP_SIZE["prior"],
        choose_batch(pictures, machine),
        choose_clip_batch(pictures, machine),
        start.prior.text_vocabulary,
        (_GENTLER if start.clip else 1.0) * _FRESH_STEP_SIZE["clip"],
    )


def copy_model(start: Start, stage: str, folder: Path) -> None:
    """A model that stays as it is, in a folder of the new set."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*PART_FILES[1:], PART_FILES[0]):  # the weights last: with them the folder is a model
        source = start.folder / stage / name
        if source.is_file():
            copy_file(source, folder / name)
