"""An evaluation from its settings to its three files, and the comparison with those of a manifest."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from dalle.config import Evaluate, plain_json
from dalle.evaluation.report.page import page
from dalle.evaluation.report.section import Section, figure_text, prose, table
from dalle.evaluation.steps import manifest as manifests
from dalle.evaluation.steps.drawn import SAMPLES, draw_all
from dalle.evaluation.steps.evaluate import Evaluation
from dalle.evaluation.steps.sources import Sources, device_here, find_sources
from dalle.outputs.bar import progress_bar
from dalle.outputs.whole import replace_text
from dalle.sampling.candidates import Part, Source, Work, draw
from dalle.sampling.drawing import read_drawing
from dalle.sampling.loading import Found, find, load_models
from dalle.sampling.workers import draw_with_workers
from dalle.text import CaptionWarning

_REQUEST = "request.json"


def run(config: Evaluate, folder: Path, manifest: dict[str, Any] | None, say: Callable[[str], None]) -> list[str]:
    """Evaluate, and write `metrics.json`, `report.html` and `manifest.json`.

    Args:
        config: what is asked for, by a manifest or directly
        folder: of the evaluation, claimed
        manifest: what is to be made again; null where there is none
        say: is told what is being done

    Returns:
        which figures are not those of the manifest, in words

    Raises:
        ValueError: sources are missing or do not belong together, or are not those of the manifest
    """
    config = _ranked_or_not(config)
    captions = None if manifest is None else manifest["captions"]
    sources = find_sources(config, folder / SAMPLES, captions, device_here())
    identities = sources.identities()
    if manifest is not None:
        manifests.check_identities(manifest, identities)
    if sources.models is not None:
        _draw(config, sources, sources.models, folder, say)
    evaluation = Evaluation(config, sources, folder, say)
    identities["samples"] = evaluation.sample_hash()
    differing = [] if manifest is None else manifests.other_samples(manifest, identities["samples"])
    if differing and config.images is not None and manifest is not None:
        raise ValueError(f"manifest {manifest['path']}: {differing[0]}; name the images that it was made of")
    sections = evaluation.sections()
    figures = _plain({part.key: part.figures for part in sections if part.figures})
    sections.append(_made_section(config, sources, identities))
    title = f"Evaluation of {os.path.basename(os.path.realpath(config.model or config.images or ''))}"
    subtitle = f"{len(sources.prompted):,} captions · {time.strftime('%Y-%m-%d %H:%M')}"
    written = manifests.write_manifest(_settled(config, evaluation), sources.prompted, identities, figures)
    replace_text(folder / "metrics.json", json.dumps(figures, indent=1, allow_nan=False) + "\n")
    replace_text(folder / "report.html", page(title, subtitle, headline(figures), sections))
    replace_text(folder / "manifest.json", written + "\n")
    return differing if manifest is None else differing + manifests.differing(manifest["figures"], figures)


def _ranked_or_not(config: Evaluate) -> Evaluate:
    """The settings with the answer to whether candidates are ranked, which follows from the model where nobody has given it."""
    if config.model is None or config.rerank is not None:
        return config
    found = find(config.model, config.dvae, config.prior, config.clip, text_encoder=config.text_encoder)
    return replace(config, rerank=found.hashes.get("clip") is not None)


def _settled(config: Evaluate, evaluation: Evaluation) -> Evaluate:
    """The settings with the width of a chunk that was drawn, which decides the bits of a drawing."""
    if config.model is None:
        return config
    chunk = read_drawing(evaluation.firsts[0]).settings["chunk"]
    return replace(config, sampling=replace(config.sampling, chunk=chunk))


def headline(figures: dict[str, Any]) -> dict[str, str]:
    """The few figures that a report begins with, by name."""
    found: dict[str, Any] = {}
    for key, values in figures.items():
        if key.startswith("distances_"):
            at = values["by_radius"][0]
            name = values["features"]["name"]
            left_out = " (some left out)" if key.endswith("_excluding") else ""
            found[("FID" if name == "inception" else f"Fréchet distance, {name}") + left_out] = at["frechet_distance"]
    if judged := figures.get("judged"):
        found["CLIP score"] = judged["samples"]["clip_score"]
        found["caption found first"] = f"{judged['samples']['image_to_caption_r1']:.1%}"
        if "real images" in judged:
            found["for real images"] = f"{judged['real images']['image_to_caption_r1']:.1%}"
    for name, values in figures.get("ranking", {}).items():
        if name == "reranked":
            found["right, reranked"] = f"{values[max(values, key=int)]:.1%}"
    if first := figures.get("stage_one"):
        found["PSNR of the dVAE"] = f"{first['psnr_db']:.2f} dB"
    return {name: value if isinstance(value, str) else figure_text(value) for name, value in found.items()}


def _draw(config: Evaluate, sources: Sources, models: Found, folder: Path, say: Callable[[str], None]) -> None:
    samples = folder / SAMPLES
    request = json.loads(json.dumps(_request(config, sources, models)))
    _check_request(samples, request, config.overwrite)
    samples.mkdir(exist_ok=True)
    replace_text(samples / _REQUEST, json.dumps(request, indent=1))
    n = config.drawn
    work = Work((), n, n, config.seed, sources.sampling)
    captions = [each.prompt for each in sources.prompted]
    models.check(captions)
    total = n * len(sources.prompted)
    say(f"{n} candidates of each of {len(sources.prompted):,} captions")
    with (
        warnings.catch_warnings(),
        progress_bar(total=total, unit=" images") as bar,
    ):
        # what is cut from captions has just been said, once for all
        warnings.filterwarnings("ignore", category=CaptionWarning)
        warnings.filterwarnings("ignore", message="the reranker reads only the beginning")
        draw_all(drawing_with(config, models), sources.prompted, work, min(config.keep, n), samples, bar.update)


def drawing_with(config: Evaluate, models: Found) -> Callable[[Work], Iterator[Part]]:
    """What draws, in this process or, with several GPUs, in as many."""
    import torch

    load_these = partial(load_models, models, precision=config.sampling.precision)
    processes = config.processes or max(1, torch.cuda.device_count())
    if processes > 1:
        return lambda work: draw_with_workers(partial(_load_in_worker, load_these), work, processes)
    return lambda work: draw(load_these(), work)


def _load_in_worker(load_these: Callable[..., Source], device: str) -> Source:
    return load_these(device=device)


def _request(config: Evaluate, sources: Sources, models: Found) -> dict[str, Any]:
    """All that decides which samples a caption gets."""
    return {
        "n": config.drawn,
        "keep": config.keep,
        "seed": config.seed,
        "captions": [each.prompt for each in sources.prompted],
        "sampling": asdict(sources.sampling),
        "models": models.hashes,
    }


def _check_request(samples: Path, request: dict[str, Any], overwrite: bool) -> None:
    """Refuse samples of another request, or of none that is known; with `overwrite` they go, and nothing else."""
    path = samples / _REQUEST
    drawn = sorted(each.parent for each in samples.glob("*/candidates.json"))
    before: dict[str, Any] = {}
    if path.is_file():
        try:
            before = plain_json.read_mapping(path, infinite=True)
        except ValueError:
            before = {}
    elif not drawn:
        return
    other = [name for name in request if before.get(name) != request[name]]
    if not other:
        return
    if not overwrite:
        raise ValueError(
            f"output {samples.parent}: holds samples of another evaluation ({other[0]} differs); name another --output, or "
            "write over them with --overwrite"
        )
    for folder in drawn:
        for pattern in ("candidates.json", "metadata.jsonl", "samples/*.png", "best/*.png"):
            for file in folder.glob(pattern):
                file.unlink()
        for each in (folder / "samples", folder / "best", folder):
            with suppress(OSError):  # which holds something else
                each.rmdir()


def _made_section(config: Evaluate, sources: Sources, identities: dict[str, Any]) -> Section:
    """How all this was made, of which the manifest has the whole."""
    rows: list[list[Any]] = [["captions", f"{len(sources.prompted):,}"]]
    if sources.models is not None:
        rows += [[f"{name}", digest[:16]] for name, digest in sources.models.hashes.items()]
        rows += [["candidates of each", config.drawn], ["first seed", str(config.seed)]]
        rows += [[f"sampling.{name}", str(value)] for name, value in asdict(sources.sampling).items()]
    for network in sources.networks:
        rows.append([f"features {network.name}", f"{network.hash[:16]}, images {network.resizer}"])
    if sources.reference is not None:
        rows.append(["reference", f"{len(sources.reference):,} images of {sources.reference.size_px} px"])
        rows.append(["of the shards", sources.reference.line])
        rows.append(["their resizer", identities["reference"]["resizer"]])
        rows.append(["their pixels", sources.reference.hash[:16]])
    rows.append(["pixels of the samples", identities["samples"][:16]])
    rows += [[name, str(value)] for name, value in manifests.machine().items()]
    told = prose("manifest.json beside this page has it all; dalle-evaluate --manifest makes the same digits again.")
    return Section("made", "How this was made", told + table(["", ""], rows), notes=sources.notes)


def _plain(value: Any) -> Any:
    """As JSON has it: what is not a number is null."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
