"""Pictures of drawn captions judged fact by fact, and what that comes to over all captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from dalle.data.shapes import Claim, read
from dalle.evaluation.compositional.atoms import KINDS, Atom, atoms, truths
from dalle.evaluation.compositional.skills import SKILLS, is_right
from dalle.evaluation.layout import Prompted, load


@dataclass(frozen=True)
class Result:
    """What the pictures of one caption show.

    Args:
        prompt: the caption
        atoms: the facts that it claims
        truths_NA: bool [N, A]; which of them each of its N pictures shows
        skill: GenEval's tag; null where the caption is of no skill
        right_N: bool [N]; which pictures are right by the skill; null without one
        samples: the pictures
    """

    prompt: str
    atoms: tuple[Atom, ...]
    truths_NA: np.ndarray
    skill: str | None
    right_N: np.ndarray | None
    samples: tuple[Path, ...]

    @property
    def means_A(self) -> np.ndarray:
        """Of each atom, the share of the pictures that show it."""
        return self.truths_NA.mean(axis=0)

    @property
    def arithmetic(self) -> float:
        """The mean over its atoms."""
        return float(self.means_A.mean())

    @property
    def geometric(self) -> float:
        """The geometric mean over its atoms: 0 where one of them is true of no picture."""
        return float(np.prod(self.means_A) ** (1 / len(self.atoms)))

    @property
    def whole(self) -> float:
        """The share of the pictures that show all of the caption."""
        return float(self.truths_NA.all(axis=1).mean())


def judge(prompted: Iterable[Prompted], progress: Callable[[int], None] = lambda images: None) -> list[Result]:
    """Judge the pictures of all prompts whose metadata have a "scene"; the others are left out.

    Args:
        prompted: from `dalle.evaluation.layout.read_layout`
        progress: told how many pictures were judged

    Raises:
        ValueError: no prompt has a scene; a scene, a skill's rules or a picture is none that can be judged, with its name
    """
    drawn = [entry for entry in prompted if "scene" in entry.metadata]
    if not drawn:
        raise ValueError(
            "compositional figures need captions of the drawn data set, whose metadata have a scene, and none has; draw captions of its shards"
        )
    results = []
    for _, group in groupby(load(drawn), key=lambda sample: sample.prompted.number):
        samples = list(group)
        entry = samples[0].prompted
        try:
            results.append(judge_images(entry.metadata, [sample.image_YX3 for sample in samples], entry.samples))
        except ValueError as error:
            raise ValueError(f"prompt {entry.number} in {samples[0].path.parent}: {error}") from None
        progress(len(samples))
    return results


def judge_images(metadata: dict[str, Any], images: Sequence[np.ndarray], samples: Sequence[Path] = ()) -> Result:
    """Judge the pictures of one caption.

    Args:
        metadata: with "prompt" and "scene", and where it is of a skill "tag" and "include"
        images: uint8 [Y, X, 3], at least 32 × 32
        samples: their files, where they have any

    Raises:
        ValueError: the scene or the skill's rules are not of the drawn data set, or an image is too small
    """
    claim = Claim.from_json(metadata["scene"])
    readings = [read(image_YX3) for image_YX3 in images]
    truths_NA = np.array([truths(reading, claim) for reading in readings], bool)
    skill = metadata["tag"] if metadata.get("tag") in SKILLS and "include" in metadata else None
    right_N = None if skill is None else np.array([is_right(reading, metadata) for reading in readings], bool)
    return Result(metadata["prompt"], atoms(claim), truths_NA, skill, right_N, tuple(samples))


def figures(results: Sequence[Result]) -> dict[str, Any]:
    """All figures, in [0, 1].

    Every caption counts once, whatever the number of its pictures, and so does each of its atoms. By kind: the mean over all
    atoms of that kind. By caption: the mean over captions of `arithmetic`, `geometric` and `whole`. By skill, as GenEval has
    it: the share of right pictures, and the mean of the skills that are there.
    """
    means, kinds = np.concatenate([result.means_A for result in results]), [a.kind for r in results for a in r.atoms]
    of_kind = {kind: means[np.array(kinds) == kind] for kind in KINDS}
    sizes = sorted({len(result.atoms) for result in results})
    told = {skill: _of_skill([r for r in results if r.skill == skill]) for skill in SKILLS}
    skills = {skill: found for skill, found in told.items() if found is not None}
    return {
        "images": sum(len(result.truths_NA) for result in results),
        "atoms": {kind: {"mean": float(m.mean()), "atoms": len(m)} for kind, m in of_kind.items() if len(m)},
        "all_atoms": {"mean": float(means.mean()), "atoms": len(means)},
        "captions": _of_captions(results),
        "by_number_of_atoms": {str(n): _of_captions([r for r in results if len(r.atoms) == n]) for n in sizes},
        "skills": skills,
        "skills_mean": float(np.mean([found["right"] for found in skills.values()])) if skills else None,
    }


def _of_captions(results: Sequence[Result]) -> dict[str, Any]:
    names = ("arithmetic", "geometric", "whole")
    means = {name: float(np.mean([getattr(result, name) for result in results])) for name in names}
    return {"captions": len(results), **means}


def _of_skill(results: Sequence[Result]) -> dict[str, Any] | None:
    if not results:
        return None
    right = np.concatenate([result.right_N for result in results])
    return {"captions": len(results), "images": len(right), "right": float(right.mean())}
