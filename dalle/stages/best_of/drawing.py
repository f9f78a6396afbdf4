"""Draws candidates for training captions, and leaves the best as a folder of token shards in the run's.

Each shard is a part of the captions, drawn by one process and written whole or not at all, so what was drawn when a run
was cut off is not drawn again; `meta.json`, without which nobody takes the folder for token shards, comes last. What is
in a shard depends on its captions and their seeds alone, whoever draws it. Beside the pairs it holds what the statistics
are made of (`results`).
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dalle.cluster.topology import World
from dalle.config import BestOf, TrainPrior
from dalle.config.checks import SaidByAll, warn
from dalle.data.identity import identity
from dalle.data.token_files.reading import META
from dalle.data.tokens import Meta, TokenShards, packed
from dalle.models.folder import check_link, read_header
from dalle.outputs.ownership import check, read_mark, write_mark
from dalle.outputs.whole import remove_partial, replace_bytes, replace_text
from dalle.reporting.best_of import FOLDER
from dalle.reporting.report import duration
from dalle.sampling.model_set import Models, find_models
from dalle.stages.best_of.judging import Judge, Judged, keep_best, load_judged
from dalle.stages.best_of.prompts import choose_captions, claims, first_seed
from dalle.stages.best_of.results import statistics, write_results
from dalle.text import CaptionWarning, Cuts

_COMMAND = "dalle-train-prior"
_PART_CAPTIONS = 256
"""Captions of a shard: a minute's or a few minutes' work, which is what an interruption costs."""
_TOLD_EVERY_S = 20.0


def draw_best(config: TrainPrior, world: World, mark: Callable[[str], None] = lambda phase: None) -> None:
    """Make OUTPUT/best-of, or what is missing of it. All ranks call it, each draws its share of the parts.

    Args:
        config: with `best_of`
        world: the processes
        mark: told again and again what is being done, for whoever watches

    Raises:
        ValueError: a model is missing or does not belong to the tokens, the folder holds candidates made with other settings, or
            nothing was good enough to be kept
    """
    folder = Path(config.output) / FOLDER
    # one answer, whatever each file system shows
    done = world.gather((folder / META).is_file())[0]
    if done and config.resume:
        return  # the models that drew may be gone by now
    shards = TokenShards(config.data, look=world.is_main)
    best_of = config.best_of
    assert best_of is not None
    models = _models(best_of)
    drew = read_header(models.prior)["dvae_hash"]
    check_link(f"the tokens in {config.data} are of another dVAE than {best_of.model}", shards.meta.dvae_hash, drew)
    request = _request(best_of, models, shards)
    before = _check_folder(folder, request)
    if done:
        return
    mark("choosing captions")
    captions = choose_captions(shards, best_of.captions, best_of.seed)
    claimed = claims(best_of.scenes, captions) if best_of.scenes else None
    if world.is_main:
        _warn_of_cuts(captions, models)
    mark("loading the models that draw")
    pipeline = load_judged(best_of, world.device)
    own = best_of.sampling.chunk or pipeline.chunk_width(best_of.sampling)
    rows = world.gather(before.get("rows"))[0] or min(world.gather(own))
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_mark(folder, _COMMAND, {**request, "rows": rows})
    parts = [range(i, min(i + _PART_CAPTIONS, len(captions))) for i in range(0, len(captions), _PART_CAPTIONS)]
    # shared out are those that are missing, so that after an interruption, or with other processes, all have as much to do;
    # the first process says which, before another can have drawn any
    missing = [number for number in range(len(parts)) if not _is_whole(folder, number)] if world.is_main else []
    missing = world.gather(missing)[0]
    told = _Progress(config, len(captions), sum(len(parts[number]) for number in missing), world, mark)
    for number in missing[world.rank :: world.size]:
        here = [captions[i] for i in parts[number]]
        judge = Judge(pipeline, best_of, rows)
        seeds = [first_seed(best_of.seed, i, best_of.candidates) for i in parts[number]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CaptionWarning)  # how many are cut was said
            warnings.filterwarnings("ignore", message="the .* reads only the beginning")
            judged = judge.draw(here, seeds, [claimed[i] for i in parts[number]] if claimed else None, told.add)
        _write(folder, number, here, judged, keep_best(judged, best_of))
    pipeline.release()
    # not in a collective, in which who waits long would be taken for one that hangs; what another wrote may be seen late on a
    # shared disk
    while not all(_is_whole(folder, number) for number in missing):
        mark("waiting for the others' candidates")
        time.sleep(1)
    world.barrier()
    complaint = _conclude(config, folder, shards, len(parts), pipeline) if world.is_main else None
    complaint = world.gather(complaint)[0]
    if complaint:
        raise SaidByAll(complaint)


def _models(best_of: BestOf) -> Models:
    return find_models(best_of.model, rerank=best_of.judge == "clip", shortlist=best_of.judge == "codes-clip")


def _request(best_of: BestOf, models: Models, shards: TokenShards) -> dict[str, Any]:
    """All that decides what is kept: the models and data by what they are, not by how they are named."""
    settings = asdict(best_of)
    for name in ("model", "share", "scenes"):
        settings.pop(name)
    settings["sampling"].pop("chunk")
    asked = {**settings, "models": models.hashes, "data": identity(shards.paths())}
    return json.loads(json.dumps(asked))  # as it is read back


def _check_folder(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The request of before, {} where there is none. Raises ValueError where it was another, or the folder is not ours."""
    check(folder, _COMMAND)
    before = read_mark(folder, _COMMAND) or {}
    for name, value in request.items():
        if name in before and before[name] != value:
            told = f"best_of.{name} was {json.dumps(before[name])}, is {json.dumps(value)}"
            if name in ("models", "data"):
                told = f"the {name} were others"
            raise ValueError(f"{folder}: holds candidates made with other settings ({told}): name another --output")
    return before


def _warn_of_cuts(captions: list[str], models: Models) -> None:
    cuts = Cuts(models.prior_config.caption_tokens)
    cuts.add(len(models.tokenizer.encode(caption)) > cuts.limit for caption in dict.fromkeys(captions))
    if cuts.cut:
        warn(f"best_of: {cuts}")


def _path(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05d}.safetensors"


def _is_whole(folder: Path, number: int) -> bool:
    """Whether a part is there; one that was damaged since is drawn again."""
    try:
        with safe_open(_path(folder, number), framework="numpy") as file:
            return {"codes_NI", "captions_utf8", "caption_ends_N"} <= set(file.keys())
    except (OSError, SafetensorError):
        return False


def _write(folder: Path, number: int, captions: list[str], judged: Judged, kept: list[tuple[int, int]]) -> None:
    """A shard, whole or not at all."""
    slots = judged.codes_CNI.shape[2]
    codes = [judged.codes_CNI[caption, candidate] for caption, candidate in kept]
    codes_NI = np.stack(codes) if codes else np.empty((0, slots), np.uint16)
    tensors = packed(codes_NI, [[captions[caption]] for caption, _ in kept])
    tensors |= statistics(captions, judged, kept)
    replace_bytes(_path(folder, number), save(tensors))


def _conclude(config: TrainPrior, folder: Path, shards: TokenShards, parts: int, pipeline: Any) -> str | None:
    """Statistics, pictures, and last what makes token shards of the parts. What is wrong, if anything is."""
    assert config.best_of is not None
    results = write_results(folder, [_path(folder, i) for i in range(parts)], config.best_of, pipeline)
    sizes = results["shard_sizes"]
    if not sum(sizes):
        return (
            f"best_of: of {results['candidates']:,} candidates none was good enough: lower best_of.threshold, draw more "
            "best_of.candidates, or train the model that draws for longer"
        )
    remove_partial(folder)
    meta = Meta(shards.meta.grid, shards.meta.codebook_size, shards.meta.dvae_hash, tuple(sizes))
    replace_text(folder / META, json.dumps(asdict(meta), indent=2))
    for line in results["lines"]:
        print(f"{Path(config.output).name}: {line}", file=sys.stderr, flush=True)
    return None


class _Progress:
    """Lines of the first process, which stands for all: they have as much to do."""

    def __init__(self, config: TrainPrior, captions: int, missing: int, world: World, mark: Callable[[str], None]):
        assert config.best_of is not None
        self.name, self.captions, self.missing, self.world = Path(config.output).name, captions, missing, world
        self.candidates, self.mark = config.best_of.candidates, mark
        self.began_s = self.told_s = time.monotonic()
        self.drawn = 0
        if world.is_main and missing:
            there = f", of which {captions - missing:,} are there" if missing < captions else ""
            self._say(f"drawing {self.candidates} candidates for each of {captions:,} captions{there}")

    def add(self, captions: int) -> None:
        """More captions that this process has drawn."""
        self.mark("drawing candidates")
        self.drawn += captions
        now_s = time.monotonic()
        if not self.world.is_main or now_s - self.told_s < _TOLD_EVERY_S:
            return
        self.told_s = now_s
        drawn = min(self.missing, self.drawn * self.world.size)
        rate = drawn / (now_s - self.began_s)
        self._say(
            f"{self.captions - self.missing + drawn:,} of {self.captions:,} captions drawn, {rate * self.candidates:,.3g} "
            f"candidates/s, {duration((self.missing - drawn) / rate)} left"
        )

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)
