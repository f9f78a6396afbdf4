"""The compositional part of an evaluation's report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from dalle.evaluation.compositional.atoms import KINDS
from dalle.evaluation.compositional.results import Result, figures
from dalle.evaluation.compositional.skills import SKILLS
from dalle.evaluation.report.section import Section, folded, picture, prose, row, table

_SHOWN = 8
_DECIDES = {
    "single_object": "an object of the shape",
    "two_object": "an object of each shape",
    "counting": "just so many objects of the shape",
    "colors": "an object of the shape in the colour",
    "position": "objects of the two shapes, so related",
    "color_attr": "an object of each shape in its own colour",
}


def compositional_section(results: Sequence[Result], page_folder: Path) -> Section:
    """Tables by kind of atom, by number of atoms and by skill, with pictures of what is missing.

    Args:
        results: of `judge`
        page_folder: where the page will lie; links to pictures are relative to it
    """
    found = figures(results)
    kinds = [
        (kind, found["atoms"][kind]["mean"], found["atoms"][kind]["atoms"]) for kind in KINDS if kind in found["atoms"]
    ]
    kinds.append(("all", found["all_atoms"]["mean"], found["all_atoms"]["atoms"]))
    numbers = [_caption_row(number, of_number) for number, of_number in found["by_number_of_atoms"].items()]
    numbers.append(_caption_row("all", found["captions"]))
    body = [
        prose(
            f"Read by the checker of the drawn data set from {found['images']:,} pictures of {len(results):,} captions. An atom is "
            "one fact that a caption claims; a caption's atoms are first averaged over its pictures."
        ),
        table(("Kind of atom", "true", "atoms"), kinds),
        prose(
            "By caption: the arithmetic mean over its atoms gives credit for what is there, the geometric mean none where an "
            "atom is always missing; whole is the share of pictures that show all of it."
        ),
        table(("Atoms of the caption", "arithmetic", "geometric", "whole", "captions"), numbers),
    ]
    if found["skills"]:
        skills = [
            (SKILLS[tag], of["right"], of["captions"], of["images"], _DECIDES[tag])
            for tag, of in found["skills"].items()
        ]
        skills.append(("mean of the skills", found["skills_mean"], "", "", ""))
        body += [
            prose(
                "The skills of GenEval, on drawn captions: the share of right pictures, which need less than all of a caption."
            ),
            table(("Skill", "right", "captions", "pictures", "what is asked for"), skills),
        ]
    body.append(_missing(results, page_folder))
    return Section("compositional", "What the pictures show of their captions", "".join(body), found)


def _caption_row(name: str, found: dict) -> tuple:
    return name, found["arithmetic"], found["geometric"], found["whole"], found["captions"]


def _missing(results: Sequence[Result], page_folder: Path) -> str:
    rows = []
    for kind in KINDS:
        shown = [
            picture(path, page_folder, f"{prompt}; missing: {text}")
            for path, prompt, text in islice(_pictures_without(results, kind), _SHOWN)
        ]
        if shown:
            rows.append(row(shown, f"Missing: {kind}"))
    return folded("Pictures in which an atom is missing", "".join(rows)) if rows else ""


def _pictures_without(results: Sequence[Result], kind: str) -> Iterator[tuple[Path, str, str]]:
    """(picture, caption, atom), one of a caption."""
    for result in results:
        for column in (index for index, atom in enumerate(result.atoms) if atom.kind == kind):
            missing = np.flatnonzero(~result.truths_NA[:, column])
            if len(missing) and result.samples:
                yield result.samples[missing[0]], result.prompt, result.atoms[column].text
                break
