"""The training commands: `dalle-train-` with `dvae`, `prior`, `clip`, `stackgan`, `text-encoder`.

All follow one road: read the settings, refuse what cannot work, join the other processes, build the stage, train.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle.cli import arguments
from dalle.config import (
    TrainCLIP,
    TrainDVAE,
    TrainPrior,
    TrainStackGAN,
    TrainTextEncoder,
    unreached_schedules,
)
from dalle.config.checks import SaidByAll
from dalle.outputs.ownership import check, claimed, read_mark
from dalle.outputs.run_files import WEIGHTS, WRITES

if TYPE_CHECKING:
    from dalle.cluster.topology import World
    from dalle.cluster.watch import Watch

_COMMANDS = (
    "dalle-train-dvae",
    "dalle-train-prior",
    "dalle-train-clip",
    "dalle-train-stackgan",
    "dalle-train-text-encoder",
)
Training = TrainDVAE | TrainPrior | TrainCLIP | TrainStackGAN | TrainTextEncoder


def train_dvae() -> None:
    """Console script `dalle-train-dvae`."""
    arguments.run(lambda: _finish(train("dvae", TrainDVAE)), "dalle-train-dvae")


def train_prior() -> None:
    """Console script `dalle-train-prior`, and `launch/train_prior.py`."""
    arguments.run(lambda: _finish(train("prior", TrainPrior)), "dalle-train-prior")


def train_clip() -> None:
    """Console script `dalle-train-clip`."""
    arguments.run(lambda: _finish(train("clip", TrainCLIP)), "dalle-train-clip")


def train_stackgan() -> None:
    """Console script `dalle-train-stackgan`."""
    arguments.run(lambda: _finish(train("stackgan", TrainStackGAN)), "dalle-train-stackgan")


def train_text_encoder() -> None:
    """Console script `dalle-train-text-encoder`."""
    arguments.run(lambda: _finish(train("text-encoder", TrainTextEncoder)), "dalle-train-text-encoder")


def _finish(finished: bool) -> None:
    if not finished:
        raise KeyboardInterrupt


def train(kind: str, cls: type, argv: list[str] | None = None, alone: bool = True) -> bool:
    """Parse, check, and train one stage. alone: see `Stage.is_alone`.

    Returns:
        whether it came to its end; False when it was interrupted and left a checkpoint
    """
    command = f"dalle-train-{kind}"
    argv = arguments.renamed(cls, list(sys.argv[1:] if argv is None else argv))
    argv = _with_own_settings(argv, command)
    argv = [*_start_of_best_of(argv), *argv]
    argv = [*_settings_of_start(argv, kind), *argv]
    config: Any = arguments.parse(cls, command, argv)
    config.run.micro_batch_size(int(os.environ.get("WORLD_SIZE", "1")))
    if config.dry_run:
        from dalle.cli.planning.dry_run import tell

        tell(kind, config)
        return True
    folder = Path(config.output)
    _check_run(folder, command, config.resume)
    if config.resume:
        _check_same_start(folder, config)
    # a resumed run writes over what it wrote, also where its mark was not copied with it
    writes = () if config.resume else WRITES
    check(folder, command, writes)
    found = _with_folders(config, kind)

    # torch and what builds on it come only now, when the settings are known to be sound
    from dalle.cluster.agreement import check_same, facts
    from dalle.cluster.topology import grouped, joined
    from dalle.cluster.watch import Watch
    from dalle.training.loop import train as run_loop

    with joined(config.run.silence_limit_s) as world:
        check_same(world, facts(config))
        with (
            Watch(world, config.run.silence_limit_s) as watch,
            _claimed_by_first(world, watch, folder, command, writes, config.resume),
        ):
            world = grouped(world, config.run)
            if isinstance(found, TrainPrior) and found.best_of is not None:
                from dalle.stages.best_of.drawing import draw_best

                draw_best(found, world, lambda phase: watch.mark(0, phase))
            stage = importlib.import_module(f"dalle.stages.{kind.replace('-', '_')}").stage(found, world)
            stage.warnings += unreached_schedules(config)
            stage.is_alone = alone
            # a resumed run is described as the whole run, which another one may repeat; models as they were named
            stage.files["config.yaml"] = arguments.to_yaml(replace(config, resume=False))
            return run_loop(stage, config.optimizer, config.run, folder, world, config.resume, watch)


@contextmanager
def _claimed_by_first(
    world: World, watch: Watch, folder: Path, command: str, writes: tuple[str, ...], resume: bool
) -> Iterator[None]:
    """Rank 0 claims the folder for all; where it cannot, all of them say so. While it waits for another's lock, which may
    take longer than the watch lets anybody stand still, all of them move on together."""

    def agreed(waits: bool, complaint: str | None = None) -> tuple[bool, str | None]:
        watch.mark(0, "waiting for the output's lock")
        return world.gather((waits, complaint))[0]

    with ExitStack() as held:
        complaint = None
        if world.is_main:
            try:
                held.enter_context(claimed(folder, command, writes, waiting=lambda: agreed(True)))
                _check_run(folder, command, resume)  # another may have come to its end since it was looked at
            except (ValueError, OSError) as error:
                complaint = str(error)
        waits, complaint = agreed(False, complaint)
        while waits:
            waits, complaint = agreed(False)
        if complaint is not None:
            raise SaidByAll(complaint)
        yield


def _with_own_settings(argv: list[str], command: str) -> list[str]:
    """With --resume the output folder's config.yaml comes first, so that all else on the line overrides it. A config.yaml
    that is named itself, in a run's folder, stands for that folder, whatever it was called when the file was written."""
    if _given(argv, "resume") in (None, "false"):
        return argv
    output = _given(argv, "output")
    if output is None:
        named = Path(_given(argv, "config") or "")
        if named.name != "config.yaml" or not _holds_run(named.parent, command):
            return argv
        return [*argv, "--output", str(named.parent)]
    folder = Path(output).expanduser()
    _check_resumable(folder, command)
    own = folder / "config.yaml"
    return ["--config", str(own), *argv] if own.is_file() else argv


def _start_of_best_of(argv: list[str]) -> list[str]:
    """A prior that learns from its own candidates starts from the one that draws them, where nothing else is said."""
    model = None if _given(argv, "best_of") == "null" else _asked(argv, "best_of.model")
    if model is None or _asked(argv, "start_from") is not None:
        return []
    # a repository of the Hub has no paths below it, and the part of it is found by what is asked for
    return ["--start_from", f"{model}/prior" if Path(model).expanduser().is_dir() else model]


def _asked(argv: list[str], name: str) -> str | None:
    """The value of a dotted option on the line, or else in the last configuration that has it; null where it is in none."""
    found = _given(argv, name)
    for word, following in zip(argv, [*argv[1:], ""], strict=True) if found is None else ():
        option, equals, value = word.partition("=")
        if option == "--config":
            section: Any = arguments.read_yaml(value if equals else following)
            for key in name.split("."):
                section = section.get(key) if isinstance(section, dict) else None
            found = section if isinstance(section, str) else found  # another kind is refused where all is read
    return found


def _settings_of_start(argv: list[str], kind: str) -> list[str]:
    """The sizes of the finished model that `start_from` names, and how a prior wants to be drawn with, as options: before all
    others, so that what is asked for overrides them. A run that has a checkpoint needs them no more."""
    asked = _asked(argv, "start_from")
    resumed = _given(argv, "resume") not in (None, "false") and _holds_checkpoint(
        Path(_given(argv, "output") or "").expanduser()
    )
    if asked is None or asked in ("", "null") or resumed:
        return []
    from dalle.models.folder import read_header, read_start

    folder = _find_part(asked, kind, "start_from")
    found = {f"model.{name}": value for name, value in asdict(read_start(folder, kind)).items()}
    if kind == "prior":
        header = read_header(folder)
        tuned = ("caption_dropout", "sampling_temperature", "sampling_guidance")
        found |= {name: float(header[name]) for name in tuned if name in header}
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in found.items()]


def _with_folders(config: Training, kind: str) -> Training:
    """The settings with folders where they name finished models: ready ones, or those of the Hub (`dalle.ready`). A tokenizer may be
    named by the prior that has it. Of a run that has a checkpoint, what it began with may be gone."""
    if isinstance(config, TrainStackGAN | TrainTextEncoder):
        return config
    found: dict[str, Any] = {}
    if config.start_from is not None and not (config.resume and _holds_checkpoint(Path(config.output))):
        found["start_from"] = str(_find_part(config.start_from, kind, "start_from"))
    if not isinstance(config, TrainDVAE) and config.dvae is not None:
        found["dvae"] = str(_find_part(config.dvae, "dvae", "dvae"))
    tokenizer = None if isinstance(config, TrainDVAE) else config.tokenizer
    if tokenizer is not None and Path(tokenizer).suffix != ".json" and not Path(tokenizer).is_file():
        found["tokenizer"] = str(_find_part(tokenizer, "prior", "tokenizer") / "tokenizer.json")
    return replace(config, **found)


def _find_part(name: str, part: str, setting: str) -> Path:
    """`dalle.ready.names.find_part`, whose refusal names the setting."""
    from dalle.ready.names import find_part

    try:
        return find_part(name, part)
    except ValueError as error:
        raise ValueError(str(error).replace(f"{part} {name}: ", f"{setting} {name}: ", 1)) from None


def _check_same_start(folder: Path, config: Training) -> None:
    """Raises ValueError where a run that is resumed is said to have begun with something else than it has."""
    own = folder / "config.yaml"
    before = arguments.read_yaml(str(own)) if own.is_file() else asdict(config)
    for name in ("start_from", "freeze"):
        then, now = before.get(name), asdict(config).get(name)
        if then != now:
            said = [json.dumps(value, ensure_ascii=False) for value in (then, now)]
            raise ValueError(f"--resume: {folder} was made with {name} {said[0]}, not {said[1]}: leave it out")


def _given(argv: list[str], name: str) -> str | None:
    """The value of an option on the line, the last where it is there twice; "" where it has none, null where it is not
    there."""
    found = None
    for word, following in zip(argv, [*argv[1:], "--"], strict=True):
        option, equals, value = word.partition("=")
        if option == f"--{name}":
            found = value if equals else "" if following.startswith("--") else following
    return found


def _check_run(folder: Path, command: str, resume: bool) -> None:
    """Raises ValueError for a run that is there and not to be resumed, and the other way round."""
    if resume:
        _check_resumable(folder, command)
    elif _holds_checkpoint(folder) or (folder / WEIGHTS).exists():
        raise ValueError(f"{folder} already holds a run: continue it with --resume, or name another --output")


def _check_resumable(folder: Path, command: str) -> None:
    """Raises ValueError unless there is a checkpoint, or what is left of a run of this command that was cut off before
    its first was whole: that one begins anew."""
    if read_mark(folder, command) is None and (others := [c for c in _COMMANDS if read_mark(folder, c) is not None]):
        raise ValueError(
            f"--resume: {folder} holds what {others[0]} made, not {command}: name the folder of such a run"
        )
    if _holds_checkpoint(folder):
        return
    if read_mark(folder, command) is None or (folder / WEIGHTS).exists():
        raise ValueError(f"--resume: {folder} holds no checkpoint: leave --resume out, or name the folder of a run")


def _holds_run(folder: Path, command: str) -> bool:
    return _holds_checkpoint(folder) or read_mark(folder, command) is not None


def _holds_checkpoint(folder: Path) -> bool:
    return any(any((folder / "checkpoints").glob(f"step-*{end}/state.json")) for end in ("[0-9]", ".old"))
