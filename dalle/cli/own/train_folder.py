"""`dalle-train`: a folder of pictures with captions becomes a model that draws, by one command that may be called again.

Looks, plans, then calls the commands that a person would call (`dalle.cli.own.running`).
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from dalle.cli import arguments
from dalle.cli.data.filter import counted_images
from dalle.cli.own.stages import Stages
from dalle.cli.road import say
from dalle.config import TrainFolder
from dalle.outputs.ownership import claimed

_COMMAND = "dalle-train"
_MOST_VALID = 500
"""Pairs that are held out at most: more make no figure clearer, and every validation slower."""


def main() -> None:
    """Console script."""
    arguments.run(train_folder, _COMMAND)


def train_folder(argv: list[str] | None = None) -> None:
    """Parse, look, plan, train what is missing, draw, tell."""
    began_s = time.monotonic()
    arguments.plain_warnings(_COMMAND)
    config = arguments.parse(TrainFolder, _COMMAND, argv, "source")
    output = Path(config.output)
    _check_apart(Path(config.source), output)
    with claimed(output, _COMMAND):
        try:
            _train(config, output, began_s)
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from here", flush=True)
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ValueError(
                f"output {output}: cannot be written ({error.strerror}): make room there, and the same command goes on from here"
            ) from error


def _train(config: TrainFolder, output: Path, began_s: float) -> None:
    from dalle.cli.own.planning import make_plan, settle
    from dalle.cli.own.running import Running
    from dalle.data.sources.prepare import Choice, prepare
    from dalle.machine.memory import num_cores
    from dalle.own.plan_files import PlanFiles
    from dalle.own.start import read_start

    files = PlanFiles(output / "plan")
    config = settle(config, files)
    start = None
    if config.start_from is not None:
        from dalle.ready.names import find_model

        start = read_start(config.start_from, find_model(config.start_from, "start_from"), config.freeze)
    say("1", f"looking at {config.source}")
    with counted_images() as told:
        prepared = prepare(
            config.source,
            output / "data",
            config.filters,
            config.valid_share,
            config.seed,
            choice=Choice(config.captions, config.image_column, config.caption_column),
            workers=num_cores(),
            most_valid=_MOST_VALID,
            renew=True,
            told=told,
        )
    for line in (*prepared.notes, f"what was found, with examples: {output}/data/report.html"):
        print(line)
    stages = Stages(config, output, prepared, start, files, began_s)
    say("2", "the plan")
    make_plan(stages)
    if config.plan_only:
        print(
            f"nothing is trained yet; the same command without --plan_only goes on, with what you change in {files.folder}"
        )
        return
    Running(stages).all()


def _check_apart(source: Path, output: Path) -> None:
    """Raises ValueError where the output would be read as pictures, or the pictures' folder be written to."""
    inner, outer = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if source.is_dir() and (inner == outer or outer in inner.parents):
        raise ValueError(
            f"output {output}: lies in the source {source}, and would be read as pictures; name another --output"
        )
