"""GenEval's six skills on the drawn data set: a list of captions of our own, and what makes a picture right.

A line of the list is as GenEval's `evaluation_metadata.jsonl` has it: "tag" is the skill, "include" the objects that have to
be there, "exclude" those of which there must not be so many, "prompt" the caption; beside them "scene" is all that the
caption claims. What decides are "include" and "exclude" alone, so a picture may be right by a skill and wrong by its caption:

- single_object: there is an object of the shape
- two_object: there is an object of each of the two shapes
- counting: of the shape there are just so many objects, two or three. A caption names each by its colour, as those of
  training do, which never say a number: "a red circle above a blue circle and a green circle"
- colors: there is an object of the shape in the colour
- position: there are objects of the two shapes, of which one is to the left of, to the right of, above or below the other
- color_attr: there is an object of each of the two shapes, each in its own colour

Colours and shapes that GenEval tells apart by a detector are here what the checker reads. Source: "GenEval: An
Object-Focused Framework for Evaluating Text-to-Image Alignment", 2023, section 3, and its published code, of which this
departs in one thing: where more objects are seen than are asked for, any of them may be meant, not the surest alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np

from dalle.data.shapes import COLOURS, SHAPES, Claim, ClaimedObject, Reading, SeenObject, word
from dalle.data.shapes.captions import MAX_WORDS
from dalle.data.shapes.check import stands
from dalle.data.shapes.scene import ARRANGEMENTS_BY_COUNT, pick

SKILLS = {
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colours",
    "position": "position",
    "color_attr": "colour attribution",
}
"""In words, by GenEval's tags."""
MOST_OF_EACH = 100  # of a lone object without size or place there are 288 captions, for two skills
_FROM_SECOND = {"left of": "right of", "above": "below"}
_RELATIONS = {
    "left of": lambda a, b: stands(a, "left of", b),
    "right of": lambda a, b: stands(b, "left of", a),
    "above": lambda a, b: stands(a, "above", b),
    "below": lambda a, b: stands(b, "above", a),
}


def skill_captions(of_each: int = 50, seed: int = 0) -> list[dict[str, Any]]:
    """The list, skill by skill; all captions differ.

    Args:
        of_each: captions of each skill
        seed: the same seed gives the same list

    Raises:
        ValueError: more than `MOST_OF_EACH`, or none
    """
    if not 1 <= of_each <= MOST_OF_EACH:
        raise ValueError(
            f"skill_captions {of_each}: must be from 1 to {MOST_OF_EACH}, for the vocabulary has few words"
        )
    lines: dict[str, dict[str, Any]] = {}
    for index, skill in enumerate(SKILLS):
        rng = np.random.default_rng([seed, index])
        while len(lines) < (index + 1) * of_each:
            claim = _claim(skill, 2 + len(lines) % 2, rng)
            prompt = word(claim, rng)
            if prompt not in lines and len(prompt.split()) <= MAX_WORDS:
                rules = _rules(skill, claim)
                lines[prompt] = {"tag": skill, **rules, "prompt": prompt, "scene": claim.to_json()}
    return list(lines.values())


def _claim(skill: str, number: int, rng: np.random.Generator) -> Claim:
    """number: of objects, where they are counted."""
    colours, shapes = (rng.permutation(list(names)).tolist() for names in (COLOURS, SHAPES))
    if skill in ("single_object", "colors"):
        return Claim((ClaimedObject(shapes[0], colours[0]),))
    if skill == "counting":
        arrangement = pick(rng, ARRANGEMENTS_BY_COUNT[number])
        return Claim(tuple(ClaimedObject(shapes[0], colour) for colour in colours[:number]), arrangement)
    # where colours decide nothing, both may have one
    second = colours[1] if skill == "color_attr" else pick(rng, COLOURS)
    objects = ClaimedObject(shapes[0], colours[0]), ClaimedObject(shapes[1], second)
    return Claim(objects, pick(rng, ARRANGEMENTS_BY_COUNT[2]))


def _rules(skill: str, claim: Claim) -> dict[str, Any]:
    if skill == "counting":
        shape, number = claim.objects[0].shape, len(claim.objects)
        return {
            "include": [{"class": shape, "count": number}],
            "exclude": [{"class": shape, "count": number + 1}],
        }
    include: list[dict[str, Any]] = [{"class": thing.shape, "count": 1} for thing in claim.objects]
    if skill in ("colors", "color_attr"):
        for item, thing in zip(include, claim.objects, strict=True):
            item["color"] = thing.colour
    if skill == "position":
        include[1]["position"] = [_FROM_SECOND[claim.arrangement], 0]
    return {"include": include}


def is_right(reading: Reading, metadata: Mapping[str, Any]) -> bool:
    """Whether a picture is right by "include" and "exclude" of its metadata.

    Raises:
        ValueError: they are no rules about drawn shapes
    """
    include, exclude = metadata.get("include", []), metadata.get("exclude", [])
    try:
        _check_rules(include, exclude)
        return _includes(reading.objects, include) and not any(
            sum(seen.shape == item["class"] for seen in reading.objects) >= item["count"] for item in exclude
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"no rules about drawn shapes ({error!r}): {include!r}, {exclude!r}; write them as dalle-draw-shapes --skills does"
        ) from None


def _check_rules(include: Sequence[Mapping[str, Any]], exclude: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError, or KeyError and the like, for rules about something else."""
    for index, item in enumerate((*include, *exclude)):
        relation, target = item.get("position", ("above", -1))
        known = item["class"] in SHAPES and item.get("color", "red") in COLOURS and relation in _RELATIONS
        if not (known and item["count"] >= 1 and target < index):
            raise ValueError(
                f"{dict(item)!r}: must be of the classes {', '.join(SHAPES)}; of the colours {', '.join(COLOURS)}; of the positions "
                f"{', '.join(_RELATIONS)}, of an earlier object"
            )


def _includes(seen: Sequence[SeenObject], include: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are different objects for all that has to be there."""
    groups = [number for number, item in enumerate(include) for _ in range(item["count"])]
    return any(
        all(_is(found, include[number]) for found, number in zip(match, groups, strict=True))
        and all(
            _RELATIONS[include[number]["position"][0]](found, other)
            for found, number in zip(match, groups, strict=True)
            if "position" in include[number]
            for other, target in zip(match, groups, strict=True)
            if target == include[number]["position"][1]
        )
        for match in permutations(seen, len(groups))
    )


def _is(seen: SeenObject, item: Mapping[str, Any]) -> bool:
    return seen.shape == item["class"] and item.get("color") in (None, seen.colour)
