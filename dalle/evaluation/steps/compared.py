"""Finished evaluations of the same captions in one report: `dalle-evaluate --compare "NAME=FOLDER NAME=FOLDER"`.

Nothing is measured again. Figures stand beside each other only where they were made alike: distances by the same network from the same
real images, captions found by the same judge; what was not is left out and said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalle.config.checks import require
from dalle.evaluation.layout import sample_path
from dalle.evaluation.report.page import page
from dalle.evaluation.report.section import Section, curve, picture, prose, row, table
from dalle.evaluation.steps.drawn import SAMPLES
from dalle.evaluation.steps.manifest import read_manifest
from dalle.evaluation.steps.shown import REAL, first_captions
from dalle.outputs.whole import copy_file, replace_text

_PX = 128
_RETRIEVAL = {
    "clip_score": "CLIP score",
    "image_to_caption_r1": "caption found first",
    "image_to_caption_r5": "caption among the first 5",
}


def read_compared(spec: str) -> dict[str, Path]:
    """Folders of evaluations by the names that they are to have.

    Args:
        spec: NAME=FOLDER, or FOLDER, which is then the name, with spaces between them

    Raises:
        ValueError: fewer than two, or two of one name
    """
    found: dict[str, Path] = {}
    for word in spec.split():
        name, separator, folder = word.partition("=")
        require(
            name not in found,
            f"compare {spec}: {name} is there twice; give names of their own, as in NAME={folder or word}",
        )
        found[name] = Path(folder if separator else word)
    require(len(found) >= 2, f"compare {spec}: give the folders of two evaluations or more, with spaces between them")
    return found


def compare_evaluations(evaluations: Mapping[str, Path], output: Path) -> None:
    """Write `metrics.json` and `report.html`, with the pictures that it shows.

    Args:
        evaluations: folders of `dalle-evaluate`, by name
        output: a folder

    Raises:
        ValueError: one is missing or unfinished, or they are of other captions
    """
    manifests = {name: read_manifest(folder / "manifest.json") for name, folder in evaluations.items()}
    captions = _captions(manifests)
    figures = {name: manifest["figures"] for name, manifest in manifests.items()}
    unlike = {key: _unlike(manifests, key) for key in _distances(figures)}
    rows, notes = _rows(figures, unlike)
    found = {name: {title: values[name] for title, values in rows.items()} for name in evaluations}
    sections = [
        _figures_section(rows, list(evaluations), notes),
        _curves_section(figures, [key for key, why in unlike.items() if why is None]),
        _samples_section(captions, evaluations, manifests, output),
    ]
    title = " beside ".join(evaluations)
    replace_text(output / "metrics.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    replace_text(
        output / "report.html", page(title, f"{len(captions):,} captions", {}, [part for part in sections if part.body])
    )


def _captions(manifests: Mapping[str, dict[str, Any]]) -> list[str]:
    prompts = {name: [each["prompt"] for each in manifest["captions"]] for name, manifest in manifests.items()}
    first, *others = prompts
    for other in others:
        require(
            prompts[other] == prompts[first],
            f"compare: {other} ({len(prompts[other]):,} captions) is not of the captions of {first} ({len(prompts[first]):,}); "
            "evaluate both with the same --captions or --reference, and the same --most",
        )
    return prompts[first]


def _distances(figures: Mapping[str, dict[str, Any]]) -> list[str]:
    """Keys of the distances that all have, but for those with images left out."""
    first = next(iter(figures.values()))
    keys = [key for key in first if key.startswith("distances_") and not key.endswith("_excluding")]
    return [key for key in keys if all(key in each for each in figures.values())]


def _unlike(manifests: Mapping[str, dict[str, Any]], key: str) -> str | None:
    """Why distances cannot be compared; null where they can."""
    networks = {manifest["figures"][key]["features"]["hash"] for manifest in manifests.values()}
    counts = {manifest["figures"][key]["num_images"] for manifest in manifests.values()}
    keys = {tuple(each.get("real", "") for each in manifest["captions"]) for manifest in manifests.values()}
    references = {
        json.dumps(manifest["identities"].get("reference", {}), sort_keys=True) for manifest in manifests.values()
    }
    if len(networks) > 1:
        return "the networks' weights differ"
    if len(references) > 1:
        sizes = {manifest["identities"].get("reference", {}).get("size_px") for manifest in manifests.values()}
        if len(sizes) > 1:
            told = ", ".join(f"{size} px" for size in sorted(sizes, key=str))
            return f"the real images were brought to different sizes ({told})"
        return "the real images differ"
    return None if len(counts) == 1 and len(keys) == 1 else "the numbers of images differ"


def _rows(
    figures: Mapping[str, dict[str, Any]], unlike: Mapping[str, str | None]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Figures by title and name of the evaluation, and what is left out. unlike: by key of distances, why they do not compare."""
    rows: dict[str, dict[str, Any]] = {}
    notes = []
    for key, why in unlike.items():
        network = key.removeprefix("distances_")
        if why is not None:
            notes.append(f"Distances by {network} do not compare: {why}.")
            continue
        at = {name: each[key]["by_radius"] for name, each in figures.items()}
        for place, radius in enumerate(each["radius_px"] for each in next(iter(at.values()))):
            blurred = "" if radius == 0 else f", blurred {radius:g} px"
            rows[f"Fréchet distance, {network}{blurred}"] = {
                name: each[place]["frechet_distance"] if place < len(each) else None for name, each in at.items()
            }
        for measure in ("precision", "recall"):
            rows[f"{measure}, {network}"] = {name: each[0].get(measure) for name, each in at.items()}
    judged = {name: each["judged"] for name, each in figures.items() if "judged" in each}
    if len(judged) == len(figures):
        if len({each["hash"] for each in judged.values()}) > 1:
            notes.append("Captions found do not compare: the judges differ. Name one for all with --judge.")
        else:
            for measure, title in _RETRIEVAL.items():
                rows[title] = {name: each["samples"][measure] for name, each in judged.items()}
                if all("real images" in each for each in judged.values()):
                    rows[f"{title}, real images"] = {
                        name: each["real images"][measure] for name, each in judged.items()
                    }
            if chosen := [name for name, each in judged.items() if each["judge_is_reranker"]]:
                notes.append(f"The judge is the reranker of {', '.join(chosen)}, and favours what it chose.")
    for name, each in figures.items():
        for measure, by_n in each.get("ranking", {}).items():
            if measure in ("reranked", "unranked"):
                n = max(by_n, key=int)
                title = "right, of all candidates" if measure == "unranked" else f"right, best of {n}"
                rows.setdefault(title, dict.fromkeys(figures))[name] = by_n[n]
    for name, each in figures.items():
        if "compositional" in each:
            title = "all that the caption says is right"
            rows.setdefault(title, dict.fromkeys(figures))[name] = each["compositional"]["captions"]["whole"]
    return rows, notes


def _figures_section(rows: Mapping[str, Mapping[str, Any]], names: list[str], notes: list[str]) -> Section:
    body = table(["", *names], [[title, *(values[name] for name in names)] for title, values in rows.items()])
    told = prose(
        "Fréchet distances: less is closer. All else: more is better. Each column is an evaluation of its own."
    )
    return Section("figures", "Figures", told + body if rows else "", notes=tuple(notes))


def _curves_section(figures: Mapping[str, dict[str, Any]], keys: list[str]) -> Section:
    plots = []
    for key in keys:
        lines = {}
        for name, each in figures.items():
            at = sorted(each[key]["by_radius"], key=lambda found: found["radius_px"])
            lines[name] = ([found["radius_px"] for found in at], [found["frechet_distance"] for found in at])
        if len(next(iter(lines.values()))[0]) > 1:
            plots.append(curve(f"Fréchet distance over blur radius, px ({key.removeprefix('distances_')})", lines))
    ranked = {
        name: each["ranking"]["reranked"] for name, each in figures.items() if "reranked" in each.get("ranking", {})
    }
    if ranked:
        lines = {name: ([float(n) for n in by_n], list(by_n.values())) for name, by_n in ranked.items()}
        plots.append(curve("share right, best of N", lines, log2_x=True))
    return Section("curves", "Over blur and over N", "".join(plots))


def _samples_section(
    captions: list[str], evaluations: Mapping[str, Path], manifests: Mapping[str, dict[str, Any]], output: Path
) -> Section:
    """The first captions, each with its real image where one is known, and the first image of each evaluation."""

    # of equal images the last one, as an evaluation numbers them
    reals = {
        name: {each["real"]: number for number, each in enumerate(manifest["captions"]) if "real" in each}
        for name, manifest in manifests.items()
    }

    def copied(source: Path, name: str, number: int) -> Path | None:
        if not source.is_file():
            return None
        target = output / "images" / name / f"{number:05}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(source, target)
        return target

    def line(number: int) -> str:
        pictures: list[str] = []
        for place, (name, folder) in enumerate(evaluations.items()):
            if not pictures and (known := reals[name].get(manifests[name]["captions"][number].get("real"))) is not None:
                real = copied(folder / REAL / f"{known:05}.png", "real", number)
                pictures += [] if real is None else [picture(real, output, "real", _PX)]
            shown = copied(_first(folder, manifests[name], number), f"{place}", number)
            pictures += [] if shown is None else [picture(shown, output, name, _PX)]
        return row(pictures, captions[number])

    body = prose("The first captions, in their order; of each evaluation its first image.")
    return Section("samples", "Samples", body + first_captions(len(captions), line))


def _first(folder: Path, manifest: dict[str, Any], number: int) -> Path:
    images = manifest["request"].get("images")
    return sample_path(folder / SAMPLES if images is None else Path(images), number, 0)
