"""What a person sees of a training run: metrics on disk, a progress bar, pictures, a report, and wandb when asked for.

A run's folder gets four things. `metrics.jsonl` has one line per logging interval, validation or warning, and is the
only thing that is appended to. `pictures/` has a few pictures per name. `report.html` (see `report.py`) is drawn from
these. `run.json` says what `metrics.jsonl` cannot say without a special line: title, unit, number of steps, status, and
what utilisation is counted from.

Only the main rank sees anything: on the others every method returns at once. Nothing here synchronises ranks.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle.config import Wandb
from dalle.config.checks import printable
from dalle.outputs.bar import progress_bar
from dalle.outputs.whole import replace_text, save_picture
from dalle.reporting.earlier_run import drop_after, set_aside
from dalle.reporting.elsewhere import Elsewhere
from dalle.reporting.report import duration, list_pictures, read_run, write_report

if TYPE_CHECKING:
    from PIL.Image import Image

UNITS = ("images", "tokens")
MAX_PICTURES_PER_NAME = 12
FIRST_REPORT_S, REPORT_INTERVAL_S = 10.0, 60.0
# Every rank waits while the main one draws, so drawing may take this share of the run and no more.
REPORT_SHARE = 0.01


class Telemetry:
    """The log of one training run.

    folder: the run's folder, made when missing. title: headline of the report and name of the bar.
    total_steps: the step at which the run ends. unit: what throughput counts, "images" or "tokens".
    is_main: False on every rank but one. start_step: the step of the checkpoint that the run resumes from; lines and
    pictures after it are dropped, for they will be made again. At 0, what an earlier run left goes to `previous-N/`.
    highlights: names of the values that the bar shows beside loss and step size. flops_per_unit: floating-point operations
    of training on one unit; null where they are not counted, and then no utilisation is logged. limit_flops_per_s: what
    the matrix products of all ranks reach together. started_from: folder and hashes of the model that it starts from, for
    `run.json`. tensorboard: whether TensorBoard's files are written, too.

    Raises ValueError when wandb or TensorBoard is switched on and cannot be imported, or logged in to.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        total_steps: int,
        unit: str,
        is_main: bool = True,
        wandb_settings: Wandb | None = None,
        show_progress: bool = True,
        start_step: int = 0,
        highlights: Sequence[str] = (),
        flops_per_unit: float | None = None,
        limit_flops_per_s: float | None = None,
        started_from: dict[str, str] | None = None,
        tensorboard: bool = False,
    ) -> None:
        assert unit in UNITS, f"unit is {unit!r}, allowed: {UNITS}"
        self.is_main = is_main
        if not is_main:
            return
        self.folder, self.title, self.total_steps, self.unit = Path(folder), title, total_steps, unit
        self.start_step = self.step = start_step
        self.started_from = started_from
        self.flops_per_unit, self.limit_flops_per_s = flops_per_unit, limit_flops_per_s
        self._shown = ("loss", *highlights, "step_size")
        self.folder.mkdir(parents=True, exist_ok=True)
        time_before_s = drop_after(self.folder, start_step) if start_step > 0 else set_aside(self.folder)

        # wandb comes before the bar and the files: a failed login must leave nothing half open.
        wandb_id = read_run(self.folder).get("wandb_id") if start_step > 0 else None
        self._elsewhere = Elsewhere(wandb_settings, tensorboard, title, self.folder, wandb_id, start_step)

        self._is_open = True
        self._show, self._bar = show_progress, None
        self._file = (self.folder / "metrics.jsonl").open("a", encoding="utf-8", errors="replace")
        self._write_run("running")
        if show_progress and sys.stderr.isatty():
            layout = "{desc} {percentage:3.0f}%|{bar:8}| {n_fmt}/{total_fmt} {postfix}"
            self._bar = progress_bar(
                total=total_steps, initial=start_step, desc=title, dynamic_ncols=True, bar_format=layout
            )
        now_s = time.monotonic()
        self._origin_s = now_s - time_before_s
        self._paused_s = 0.0
        self._pause_began_s: float | None = None
        self._last_active_s = now_s
        self._warm_since: tuple[int, float] = (start_step, now_s)
        self._report_due_s = now_s + FIRST_REPORT_S
        self._report_failed = False

    def warmed_up(self, step: int) -> None:
        """What was before, such as a first update with its compilation, is no guide to the time that is left."""
        self._warm_since = (step, time.monotonic())

    def log(self, step: int, values: dict[str, float | list[float]], num_units: int, waited_s: float = 0.0) -> None:
        """Records `values` at `step`; `num_units` images or tokens were trained on, on all ranks, since the last call, in which
        this rank has waited `waited_s` for data. Of a list, such as of gradient scales, wandb gets three figures, the line none.

        To be called once per logging interval: each value is read as a float, which waits for the device.
        """
        if not self.is_main:
            return
        active_s = self._active_s()
        elapsed_s = active_s - self._last_active_s
        self._last_active_s = active_s
        units_per_s = num_units / elapsed_s if elapsed_s > 0 else math.nan
        self.step = step
        record: dict[str, float | list[float]] = {f"{self.unit}_per_s": units_per_s}
        if self.flops_per_unit is not None:
            assert self.limit_flops_per_s is not None
            record["mfu"] = units_per_s * self.flops_per_unit / self.limit_flops_per_s
        record["data_wait"] = waited_s / elapsed_s if elapsed_s > 0 else math.nan
        for key, value in values.items():
            record[key] = [round(each, 4) for each in value] if isinstance(value, list) else float(value)
        self._write(record)
        self._show_progress(record)
        if time.monotonic() >= self._report_due_s:
            self._refresh_report()

    def log_validation(self, step: int, values: dict[str, float]) -> None:
        """Records `values` at `step`, each under "valid/" and its name."""
        if not self.is_main:
            return
        self.step = step
        record = {f"valid/{key}": float(value) for key, value in values.items()}
        self._write(record)
        if self._show:
            self._say(f"{self.title}  step {step}/{self.total_steps}  " + _join_values(record))

    def pictures(self, name: str, step: int, image: Image) -> None:
        """Saves `image` as `pictures/{name}-{step}.png`; of each name the first, the last and ten between are kept."""
        if not self.is_main:
            return
        self.step = max(self.step, step)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
        folder = self.folder / "pictures"
        with self._even_if_full(f"the picture {name}"):
            folder.mkdir(exist_ok=True)
            save_picture(image, folder / f"{name}-{step:07d}.png")
        kept = list_pictures(self.folder).get(name, [])
        while len(kept) > MAX_PICTURES_PER_NAME:
            # The one whose neighbours are nearest to each other tells least; what stays is spread over the whole run.
            _, index = min((kept[i + 1][0] - kept[i - 1][0], i) for i in range(1, len(kept) - 1))
            kept.pop(index)[1].unlink()
        with self._even_if_full(f"the picture {name} elsewhere"):
            self._elsewhere.picture(step, name, image)

    def tell(self, text: str) -> None:
        """Shows `text`, which is of no interest later, as one line."""
        if self.is_main and self._show:
            self._say(f"{self.title}: {text}")

    def begin(self, log_every_steps: int) -> None:
        """Shows that the first updates are being made, which may take minutes where a compiler is at work."""
        if self.is_main and self._bar is not None:
            self._bar.set_postfix_str(f"first figures after update {self.step + log_every_steps}", refresh=True)

    def warn(self, text: str) -> None:
        """Shows `text` as one line and records it at the last step seen."""
        if not self.is_main:
            return
        text = " ".join(text.split())
        self._write_line({"step": self.step, "warning": text})
        self._say(f"warning: {text}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside, such as validation, does not count for units per second."""
        if not self.is_main or self._pause_began_s is not None:  # nested: the outer one counts
            yield
            return
        self._pause_began_s = time.monotonic()
        try:
            yield
        finally:
            self._paused_s += time.monotonic() - self._pause_began_s
            self._pause_began_s = None

    def close(self, status: str, lines: Sequence[str] = ()) -> None:
        """Ends the log with a word such as "finished" or "failed", and `lines` before it, and writes the report. A second call
        has no effect."""
        if not self.is_main or not self._is_open:
            return
        self._is_open = False
        with self._even_if_full("metrics.jsonl"):
            self._file.close()
        self._write_run(status)
        self._refresh_report()
        if self._bar is not None:
            self._bar.close()
        if self._show:
            for line in lines:
                self._say(f"{self.title}: {line}")
            spent = duration(time.monotonic() - self._origin_s)
            self._say(f"{self.title}: {status} at step {self.step}/{self.total_steps} after {spent}")
        with self._even_if_full("what is elsewhere"):
            self._elsewhere.finish(status == "finished")

    def _active_s(self) -> float:
        """A clock that stands still while paused."""
        return (time.monotonic() if self._pause_began_s is None else self._pause_began_s) - self._paused_s

    def _write(self, record: Mapping[str, float | list[float]]) -> None:
        assert "step" not in record and "time_s" not in record, "step and time_s are written by Telemetry"
        time_s = round(time.monotonic() - self._origin_s, 3)
        # JSON has no NaN or infinity; a diverging run must stay readable by any reader.
        finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
        self._write_line({"step": self.step, "time_s": time_s, **finite})
        with self._even_if_full("a line elsewhere"):
            self._elsewhere.log(self.step, record)

    def _write_line(self, record: dict[str, Any]) -> None:
        assert self._is_open, "the log is closed"
        with self._even_if_full("metrics.jsonl"):
            self._file.write(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n")
            self._file.flush()

    def _write_run(self, status: str) -> None:
        run = {"title": self.title, "unit": self.unit, "total_steps": self.total_steps, "status": status}
        run |= {"flops_per_unit": self.flops_per_unit, "limit_flops_per_s": self.limit_flops_per_s}
        if self.started_from:
            run["started_from"] = self.started_from
        with self._even_if_full("run.json"):
            replace_text(
                self.folder / "run.json", json.dumps({**run, "wandb_id": self._elsewhere.wandb_id}, ensure_ascii=False)
            )

    @contextmanager
    def _even_if_full(self, what: str) -> Iterator[None]:
        """What people read is a comfort: where it cannot be written the run says so and goes on."""
        try:
            yield
        except OSError as error:
            self._say(f"warning: {what} was not written: {error}")

    def _show_progress(self, record: Mapping[str, Any]) -> None:
        if not self._show:
            return
        shown = {key: record[key] for key in self._shown if key in record}
        # what is looked at most comes first: a narrow terminal cuts off the end
        parts = [f"{_short(record[f'{self.unit}_per_s'])} {self.unit}/s", _join_values(shown)]
        for key, form in (("mfu", "mfu {:.0%}"), ("data_wait", "data {:.0%}"), ("memory_gb", "{:.1f} GB")):
            parts += [form.format(record[key])] if key in record else []
        step_then, then_s = self._warm_since
        if self.step > step_then:
            left_s = (time.monotonic() - then_s) / (self.step - step_then) * (self.total_steps - self.step)
            parts.insert(0, f"{duration(max(left_s, 0))} left")
        text = "  ".join(parts)
        if self._bar is not None:
            self._bar.n = self.step
            self._bar.set_postfix_str(text, refresh=True)
        else:
            percent = 100 * self.step / max(self.total_steps, 1)
            self._say(f"{self.title}  step {self.step}/{self.total_steps} ({percent:.0f}%)  {text}")

    def _say(self, text: str) -> None:
        text = printable(text)
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _refresh_report(self) -> None:
        """A report is a comfort: when it cannot be drawn the run says so once and goes on."""
        began_s = time.monotonic()
        with self.paused():
            try:
                write_report(self.folder)
            except Exception as error:
                if not self._report_failed:
                    self._say(f"warning: report.html was not written: {type(error).__name__}: {error}")
                self._report_failed = True
        now_s = time.monotonic()
        self._report_due_s = now_s + max(REPORT_INTERVAL_S, (now_s - began_s) / REPORT_SHARE)


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _join_values(values: dict[str, float]) -> str:
    return "  ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in values.items())
