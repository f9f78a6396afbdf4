"""The stages of `dalle-train`: each is run, gone on with, or skipped, by what it is made from."""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle.cli import arguments
from dalle.cli.road import TRAININGS, options, say, train_stage
from dalle.config import Images, Tokenize, TrainFolder, TrainTokenizer
from dalle.outputs.ownership import read_mark
from dalle.own.budget import in_words
from dalle.own.facts import Pictures
from dalle.own.plan_files import COMMANDS, PlanFiles
from dalle.own.progress import Progress, set_aside
from dalle.reporting.report import read_lines

if TYPE_CHECKING:
    from dalle.data.sources.prepared import Prepared
    from dalle.own.start import Start

_SETTINGS = {"tokenizer": TrainTokenizer, "tokens": Tokenize, **TRAININGS}
WEIGHTS = "model.safetensors"
_WHAT = {
    "tokenizer": "learning the captions' tokens",
    "dvae": "the dVAE: pixels become codes, and codes pixels",
    "tokens": "turning all pictures into codes",
    "prior": "the prior: captions are continued with codes",
    "clip": "the reranker: which picture belongs to which caption",
    "gallery": "drawing",
}
_MADE = {
    "tokenizer": ["tokenizer.json", "tokenizer.words.json"],
    "dvae": ["dvae"],
    "tokens": ["tokens"],
    "prior": ["prior"],
    "clip": ["clip"],
    "gallery": ["gallery"],
}
_MADE_FROM = {
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
        from dalle.data.identity import identity
        from dalle.data.naming import expand

        self.config, self.folder, self.prepared, self.start, self.files = config, folder, prepared, start, files
        self.progress, self.began_s, self.aside = Progress(folder), began_s, None
        self._spent_before_s = self.progress.spent_s()
        shards = [path for spec in (prepared.train, prepared.valid) if spec for path in expand(spec)]
        found = identity(shards)
        self.data_hash, self.data_bytes = found["hash"], found["bytes"]
        self.ran: list[str] = []

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

    def spent_s(self) -> float:
        """Seconds that all of it has taken, over all calls."""
        return self._spent_before_s + time.monotonic() - self.began_s

    def begin_budget(self) -> None:
        """The time of a new plan begins with this call."""
        self.progress.begin_budget()
        self._spent_before_s = 0.0

    def parse(self, stage: str, settings: dict[str, Any] | None = None) -> Any:
        """The settings of a stage, checked by its command's dataclass: those of its file, or others.

        Raises:
            ValueError: one line that names the file, or the stage
        """
        if settings is not None:
            return arguments.parse_model(_SETTINGS[stage], settings | self._paths(stage), f"{stage}: ")
        try:
            return arguments.parse(_SETTINGS[stage], COMMANDS[stage], self._words(stage))
        except ValueError as error:
            path = str(self.files.path(stage))
            raise ValueError(str(error) if path in str(error) else f"{path}: {error}") from None

    def run(self) -> None:
        """All stages that are missing, in order, then the gallery and the page.

        Raises:
            KeyboardInterrupt: it was stopped
        """
        from dalle.cluster.topology import joined
        from dalle.own.report import write_report

        with ExitStack() as held:
            if self.gpus == 1:  # one process for all trainings; those of several GPUs are launched one by one
                held.enter_context(joined())
            stages = [stage for stage in _MADE if stage != "tokens" or stage in self.commands]
            for number, stage in enumerate(stages, 3):
                self._run_one(stage, f"{number}/{len(stages) + 2}")
        page = self.folder / "report.html"
        if self.ran or not page.is_file():
            write_report(self.folder, self.prepared, self.files, self.progress, self.config.source)
        else:
            print("\neverything is there already: nothing was to be done")
        print(f"\n{in_words(self.progress.spent_s())} of training in all; the whole of it on one page: {page}")
        print(f'draw with: dalle-sample --model {self.folder} --rerank "{example_caption(self.folder)}"')

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
        for name in [name for name in _MADE_FROM[stage] if name != "data"]:
            if self._is_to_begin(name):
                return True
            if self.progress.of(name).finished and done.inputs.get(name, now := self._identity(name)) != now:
                return True
        return False

    def _run_one(self, stage: str, number: str) -> None:
        from dalle.cli.own.planning import fit, tell_time

        inputs = self._inputs(stage)
        made = self.folder / _MADE[stage][0]
        if self.progress.is_finished(stage, inputs) and (made / WEIGHTS if stage in TRAININGS else made).exists():
            say(number, f"{stage}: done already")
            return
        if changed := self.progress.changes(stage, inputs):
            self._set_aside(stage, changed)
        if stage in self.trainings and self.progress.of(stage) is None:
            fit(self, stage)
            inputs = self._inputs(stage)
        say(number, _WHAT[stage])
        lost_s = self._lost_s(stage, inputs)
        self._spent_before_s += lost_s
        self.progress.begin(stage, inputs)
        self.progress.add(stage, lost_s, finished=False)
        began_s, finished = time.monotonic(), False
        try:
            self._work(stage)
            finished = True
        finally:
            self.progress.add(stage, time.monotonic() - began_s, finished)
        self.ran.append(stage)
        if stage in self.trainings:
            tell_time(self, stage)

    def _lost_s(self, stage: str, inputs: dict[str, str]) -> float:
        """Seconds of a training that is gone on with, of which nothing was noted because it was killed."""
        done = self.progress.of(stage)
        if done is None or done.finished or done.inputs != inputs:
            return 0.0
        times_s = [record.get("time_s", 0.0) for record in read_lines(self.folder / stage / "metrics.jsonl")]
        return max(0.0, max(times_s, default=0.0) - done.seconds)

    def _work(self, stage: str) -> None:
        if stage == "gallery":
            self._draw()
        elif stage not in self.commands:
            self._take(stage)
        elif stage == "tokenizer":
            from dalle.cli.data.train_tokenizer import train_tokenizer

            # one that is there was cut off: whole, it would have been set aside
            train_tokenizer([*self._words(stage), "--overwrite"])
        elif stage == "tokens":
            from dalle.cli.data.tokenize import tokenize

            tokenize(self._words(stage))
            if self.prepared.valid:
                held_out = {"data": self.prepared.valid, "output": self.folder / "tokens" / "valid", "crops": 1}
                tokenize([*self._words(stage), *options(held_out)])
        else:
            begun = read_mark(self.folder / stage, COMMANDS[stage]) is not None
            train_stage(stage, [*self._words(stage), *(["--resume"] if begun else [])], self.gpus)

    def _take(self, stage: str) -> None:
        """A part of ready weights as it is."""
        from dalle.own.start import copy_model

        if stage == "tokenizer":
            (self.folder / "tokenizer.json").write_bytes(self.start.tokenizer.read_bytes())
        else:
            copy_model(self.start, stage, self.folder / stage)
        print(f"as it is in {self.start.name}")

    def _draw(self) -> None:
        from dalle.own.gallery import draw_gallery

        found, config = self.prepared, self.config
        images = Images(augmentation="none", max_aspect_ratio=self.max_aspect_ratio)
        left_s = 60 * self.files.facts["minutes"] - self.spent_s()
        draw_gallery(self.folder, found.train, found.valid, images, config.candidates, config.seed, left_s, print)

    def _words(self, stage: str) -> list[str]:
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

    def _inputs(self, stage: str) -> dict[str, str]:
        """What decides what a stage makes, by what identifies it."""
        found = {name: self._identity(name) for name in _MADE_FROM[stage]}
        if stage in self.commands:
            return {"plan": self.files.digest(stage), **found}
        if stage == "gallery":
            return {"plan": f"{self.config.candidates} {self.config.seed}", **found}
        kind = "prior" if stage == "tokenizer" else stage
        return {"start": self.start.hashes[kind]}

    def _identity(self, name: str) -> str:
        from dalle.models.folder import read_header

        if name == "data":
            return self.data_hash
        path = self.folder / _MADE[name][0]
        if name == "tokenizer":
            return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if name == "tokens":
            meta = (path / "train" / "meta.json").read_bytes()
            return hashlib.sha256(meta).hexdigest()[:16] + self.data_hash + self._identity("dvae")
        return read_header(path)["hash"]

    def _set_aside(self, stage: str, changed: list[str]) -> None:
        """What was made from other things, which may have taken long, is kept."""
        self.aside = set_aside(self.folder, _MADE[stage], self.aside)
        self.progress.forget(stage)
        kept = f"; what it was is kept in {self.aside}" if self.aside else ""
        print(f"\n{stage} is made anew, since other than before: {', '.join(changed)}{kept}")


def example_caption(folder: Path) -> str:
    """A caption that the models can draw, for the last line."""
    from dalle.own.gallery import read_rows

    rows = read_rows(folder)
    return rows[0].caption.replace('"', "'") if rows else "CAPTION"
