"""The stages of `dalle-train` as they run: each is run, gone on with, or skipped, by what it is made from."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path

from dalle.cli.own.planning import fit, tell_time
from dalle.cli.own.stages import MADE, Stages
from dalle.cli.road import TRAININGS, options, say, train_stage
from dalle.config import Images
from dalle.outputs.ownership import read_mark
from dalle.outputs.run_files import WEIGHTS
from dalle.outputs.whole import copy_file
from dalle.own.budget import gallery_s, in_words
from dalle.own.plan_files import COMMANDS
from dalle.own.progress import set_aside
from dalle.reporting.report import read_lines

_WHAT = {
    "tokenizer": "learning the captions' tokens",
    "dvae": "the dVAE: pixels become codes, and codes pixels",
    "tokens": "turning all pictures into codes",
    "prior": "the prior: captions are continued with codes",
    "clip": "the reranker: which picture belongs to which caption",
    "gallery": "drawing",
}
_TAKEN = {
    "tokenizer": "the captions' tokens",
    "dvae": "the dVAE",
    "prior": "the prior",
    "clip": "the reranker",
}
"""What is taken from ready weights."""


class Running:
    """One call's work on the stages."""

    def __init__(self, stages: Stages):
        self.stages, self.is_planning_noted = stages, False
        self.ran: list[str] = []
        self.aside: Path | None = None

    def all(self) -> None:
        """All stages that are missing, in order, then the gallery and the page.

        Raises:
            KeyboardInterrupt: it was stopped
        """
        from dalle.cluster.topology import joined
        from dalle.own.gallery import draw_command
        from dalle.own.report import write_report

        stages = self.stages
        with ExitStack() as held:
            if stages.gpus == 1:  # one process for all trainings; those of several GPUs are launched one by one
                held.enter_context(joined())
            names = [stage for stage in MADE if stage != "tokens" or stage in stages.commands]
            for number, stage in enumerate(names, 3):
                self._run_one(stage, f"{number}/{len(names) + 2}")
        page = stages.folder / "report.html"
        if self.ran or not page.is_file():
            write_report(stages.folder, stages.prepared, stages.files, stages.progress, stages.config.source)
        else:
            print("everything is there already: nothing was to be done")
        print(f"\n{in_words(stages.progress.spent_s())} of work in all; the whole of it on one page: {page}")
        print(f"draw with: {draw_command(stages.folder)}")

    def _run_one(self, stage: str, number: str) -> None:
        inputs = self.stages.inputs_of(stage)
        made = self.stages.folder / MADE[stage][0]
        if (
            self.stages.progress.is_finished(stage, inputs)
            and (made / WEIGHTS if stage in TRAININGS else made).exists()
        ):
            print(f"[{number}] {stage}: done already", flush=True)
            return
        self._note_planning()
        began_s = time.monotonic()
        if changed := self.stages.progress.changes(stage, inputs):
            self._set_aside(stage, f"since other than before: {', '.join(changed)}")
        elif self.stages.progress.of(stage) is None:
            self._set_aside(stage, "since nothing is known of how it was made")
        if stage in self.stages.trainings and self.stages.progress.of(stage) is None:
            fit(self.stages, stage)
            inputs = self.stages.inputs_of(stage)
        say(number, _TAKEN[stage] if self.stages.is_taken(stage) else _WHAT[stage])
        lost_s = self._lost_s(stage, inputs)
        self.stages.spent_before_s += lost_s
        self.stages.progress.begin(stage, inputs)
        self.stages.progress.add(stage, lost_s, finished=False)
        try:
            self._work(stage)
        except BaseException:
            with suppress(OSError):  # what has happened is to be said, not that it cannot be noted
                self.stages.progress.add(stage, time.monotonic() - began_s, finished=False)
            raise
        self.stages.progress.add(stage, time.monotonic() - began_s, finished=True)
        self.ran.append(stage)
        if stage in self.stages.trainings:
            tell_time(self.stages, stage)

    def _note_planning(self) -> None:
        """What came before the first stage that is run takes of the time too."""
        if not self.is_planning_noted:
            self.stages.progress.begin("planning", {})
            self.stages.progress.add("planning", time.monotonic() - self.stages.began_s, finished=True)
        self.is_planning_noted = True

    def _lost_s(self, stage: str, inputs: dict[str, str]) -> float:
        """Seconds of a training that is gone on with, of which nothing was noted because it was killed."""
        done = self.stages.progress.of(stage)
        if done is None or done.finished or done.inputs != inputs:
            return 0.0
        times_s = [record.get("time_s", 0.0) for record in read_lines(self.stages.folder / stage / "metrics.jsonl")]
        return max(0.0, max(times_s, default=0.0) - done.seconds)

    def _work(self, stage: str) -> None:
        if stage == "gallery":
            self._draw()
        elif self.stages.is_taken(stage):
            self._take(stage)
        elif stage == "tokenizer":
            from dalle.cli.data.train_tokenizer import train_tokenizer

            # one that is there was cut off: whole, it would have been set aside
            train_tokenizer([*self.stages.words(stage), "--overwrite"])
        elif stage == "tokens":
            from dalle.cli.data.tokenize import tokenize

            tokenize(self.stages.words(stage))
            if self.stages.prepared.valid:
                held_out = {
                    "data": self.stages.prepared.valid,
                    "output": self.stages.folder / "tokens" / "valid",
                    "crops": 1,
                }
                tokenize([*self.stages.words(stage), *options(held_out)])
        else:
            begun = read_mark(self.stages.folder / stage, COMMANDS[stage]) is not None
            train_stage(stage, [*self.stages.words(stage), *(["--resume"] if begun else [])], self.stages.gpus)

    def _take(self, stage: str) -> None:
        """A part of ready weights as it is."""
        from dalle.own.start import copy_model

        start = self.stages.start
        assert start is not None
        if stage == "tokenizer":
            copy_file(start.tokenizer, self.stages.folder / "tokenizer.json")
        else:
            copy_model(start, stage, self.stages.folder / stage)
        print(f"as it is in {start.name}")

    def _draw(self) -> None:
        from dalle.own.gallery import draw_gallery

        found, config = self.stages.prepared, self.stages.config
        images = Images(augmentation="none", max_aspect_ratio=self.stages.max_aspect_ratio)
        whole_s = 60 * self.stages.files.facts["minutes"]
        # however late it is, or long after, it has what it was planned to have
        left_s = max(gallery_s(whole_s), whole_s - self.stages.spent_s())
        draw_gallery(
            self.stages.folder, found.train, found.valid, images, config.candidates, config.seed, left_s, print
        )

    def _set_aside(self, stage: str, why: str) -> None:
        """What was made from other things, which may have taken long, is kept."""
        there = [name for name in MADE[stage] if (self.stages.folder / name).exists()]
        if there or self.stages.progress.of(stage) is not None:
            self.aside = set_aside(self.stages.folder, there, self.aside)
            self.stages.progress.forget(stage)
            kept = f"; what it was is kept in {self.aside}" if there else ""
            print(f"\n{stage} is made anew, {why}{kept}")
