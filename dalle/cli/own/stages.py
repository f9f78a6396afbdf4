"""The stages of `dalle-train`: what each is made from, and so which are still to be run. `running` runs them."""

from __future__ import annotations

import hashlib
import os
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle.cli import arguments
from dalle.cli.road import TRAININGS, options
from dalle.config import Tokenize, TrainFolder, TrainTokenizer
from dalle.own.facts import Pictures
from dalle.own.plan_files import COMMANDS, PlanFiles
from dalle.own.progress import Progress

if TYPE_CHECKING:
    from dalle.data.sources.prepared import Prepared
    from dalle.own.start import Start

_SETTINGS = {"tokenizer": TrainTokenizer, "tokens": Tokenize, **TRAININGS}
MADE = {
    "tokenizer": ["tokenizer.json", "tokenizer.words.json"],
    "dvae": ["dvae"],
    "tokens": ["tokens"],
    "prior": ["prior"],
    "clip": ["clip"],
    "gallery": ["gallery"],
}
MADE_FROM = {
    "tokenizer": ("data",),
    "dvae": ("data",),
    "tokens": ("data", "dvae"),
    "prior": ("tokens", "tokenizer"),
    "clip": ("data", "dvae", "tokenizer"),
    "gallery": ("data", "dvae", "prior", "clip"),
}


class Stages:
    """What is to be done for an output folder.

    Args:
        config: as asked for, with what the plan that is there says
        folder: the output
        prepared: the pictures
        start: ready weights to start from; null for none
        files: the plan
        began_s: when the command did, by the monotonic clock
    """

    def __init__(
        self,
        config: TrainFolder,
        folder: Path,
        prepared: Prepared,
        start: Start | None,
        files: PlanFiles,
        began_s: float,
    ):
        from dalle.data.naming import expand

        self.config, self.folder, self.prepared, self.start, self.files = config, folder, prepared, start, files
        self.progress, self.began_s = Progress(folder), began_s
        self.spent_before_s, self.is_planned_now = self.progress.spent_s(), False
        shards = [path for spec in (prepared.train, prepared.valid) if spec for path in expand(spec)]
        self.data_hash, self.data_bytes = prepared.inspection["hash"], sum(os.path.getsize(path) for path in shards)

    @cached_property
    def pictures(self) -> Pictures:
        found = self.prepared
        return Pictures(
            found.num_train,
            found.num_valid,
            found.captions_per_image,
            found.caption_words_median,
            found.caption_tokens_max_chars,
            found.side_px_median,
        )

    @property
    def max_aspect_ratio(self) -> float:
        """What the pictures were filtered by, or no limit: they are filtered once."""
        return self.config.filters.max_aspect_ratio or 1000.0

    @property
    def commands(self) -> list[str]:
        """Stages that are run, in order; a model that is taken as it is is not among them."""
        start = self.start
        stages = [stage for stage in COMMANDS if start is None or not (stage in TRAININGS and start.stays(stage))]
        if start is not None:
            stages.remove("tokenizer")
        return [stage for stage in stages if stage != "tokens" or "prior" in stages]

    @property
    def trainings(self) -> list[str]:
        return [stage for stage in self.commands if stage in TRAININGS]

    def is_taken(self, stage: str) -> bool:
        """Whether a stage's model is one of the ready weights, as it is."""
        return stage != "gallery" and stage not in self.commands

    def spent_s(self) -> float:
        """Seconds that all of it has taken, over all calls."""
        return self.spent_before_s + time.monotonic() - self.began_s

    def begin_budget(self) -> None:
        """The time of a new plan begins with this call."""
        self.progress.begin_budget()
        self.spent_before_s = 0.0

    def parse(self, stage: str, settings: dict[str, Any] | None = None) -> Any:
        """The settings of a stage, checked by its command's dataclass: those of its file, or others.

        Raises:
            ValueError: one line that names the file, or the stage
        """
        where = stage if settings is not None else str(self.files.path(stage))
        try:
            if settings is not None:
                return arguments.parse_model(_SETTINGS[stage], settings | self._paths(stage), f"{where}: ")
            return arguments.parse(_SETTINGS[stage], COMMANDS[stage], self.words(stage))
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None

    @property
    def gpus(self) -> int:
        """Processes that train; 1 where there is no GPU."""
        return max(1, self.files.facts.get("gpus", 0))

    def left(self) -> list[str]:
        """Trainings that were not begun yet."""
        return [stage for stage in self.trainings if self._is_to_begin(stage)]

    def _is_to_begin(self, stage: str) -> bool:
        """Whether a stage will be made from nothing: it never was begun, or what it is made from has changed, or will."""
        done = self.progress.of(stage)
        if done is None or (stage in self.commands and done.inputs.get("plan") != self.files.digest(stage)):
            return True
        if done.inputs.get("data", self.data_hash) != self.data_hash:
            return True
        for name in [name for name in MADE_FROM[stage] if name != "data"]:
            if self._is_to_begin(name):
                return True
            if self.progress.begun(name).finished and done.inputs.get(name, now := self._identity(name)) != now:
                return True
        return False

    def words(self, stage: str) -> list[str]:
        """Of the stage's command."""
        return ["--config", str(self.files.path(stage)), *options(self._paths(stage))]

    def _paths(self, stage: str) -> dict[str, str]:
        """What a stage reads and writes."""
        found, folder = self.prepared, self.folder
        tokenizer, dvae = str(folder / "tokenizer.json"), str(folder / "dvae")
        held_out = {"valid_data": found.valid} if found.valid else {}
        if stage == "tokenizer":
            return {"data": found.train, "output": tokenizer}
        if stage == "dvae":
            return {"data": found.train, "output": dvae, **held_out}
        if stage == "tokens":
            return {"data": found.train, "dvae": dvae, "output": str(folder / "tokens" / "train")}
        if stage == "prior":
            held_out = {"valid_data": str(folder / "tokens" / "valid")} if found.valid else {}
            tokens = {"data": str(folder / "tokens" / "train")}
            return {**tokens, "dvae": dvae, "tokenizer": tokenizer, "output": str(folder / "prior"), **held_out}
        return {"data": found.train, "dvae": dvae, "tokenizer": tokenizer, "output": str(folder / "clip"), **held_out}

    def inputs_of(self, stage: str) -> dict[str, str]:
        """What decides what a stage makes, by what identifies it."""
        if self.is_taken(stage):
            assert self.start is not None
            return {"start": self.start.hashes["prior" if stage == "tokenizer" else stage]}
        plan = f"{self.config.candidates} {self.config.seed}" if stage == "gallery" else self.files.digest(stage)
        return {"plan": plan, **{name: self._identity(name) for name in MADE_FROM[stage]}}

    def _identity(self, name: str) -> str:
        from dalle.models.folder import read_header

        if name == "data":
            return self.data_hash
        path = self.folder / MADE[name][0]
        if name == "tokenizer":
            return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if name == "tokens":
            meta = (path / "train" / "meta.json").read_bytes()
            return hashlib.sha256(meta).hexdigest()[:16] + self.data_hash + self._identity("dvae")
        return read_header(path)["hash"]
