"""Atoms: together they are the checker's verdict, and each is false where just its fact was changed in the picture."""

from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from dalle.data.shapes import COLOURS, SHAPES, SIZES, Claim, ClaimedObject, Reading, draw, read, sample_scene, shows
from dalle.data.shapes.check import holds, is_at, stands
from dalle.evaluation.compositional.atoms import KINDS, Atom, atoms, truths
from tests.evaluation.compositional.scenes import picture, random_claim, random_seen, things


def _false(image_YX3, claim):
    """What is not shown."""
    found = truths(read(image_YX3), claim)
    return [atom.text for atom, true in zip(atoms(claim), found, strict=True) if not true]


def _changed(claim, rng):
    """The claim, and some that differ from it."""
    yield claim
    objects = list(claim.objects)
    place = int(rng.integers(len(objects)))
    thing = objects[place]
    for change in (
        {"shape": str(rng.choice(list(SHAPES)))},
        {"colour": str(rng.choice(list(COLOURS)))},
        {"size": str(rng.choice(list(SIZES)))},
    ):
        yield replace(claim, objects=(*objects[:place], replace(thing, **change), *objects[place + 1 :]))
    if len(objects) > 1:
        yield replace(claim, objects=tuple(objects[::-1]))
        yield Claim(tuple(objects[:1]))
        other = {
            "left of": "above",
            "above": "left of",
            "one above two": "one below two",
            "one below two": "one above two",
        }
        yield replace(claim, arrangement=other[claim.arrangement])
    else:
        yield replace(claim, position="centre")


def test_all_atoms_are_true_just_where_the_checker_says_so():
    rng, verdicts = np.random.default_rng(0), Counter()
    for number in range(100):
        scene = sample_scene(rng, held_out=bool(number % 2))
        image = draw(scene, 32)
        reading = read(image)
        for claim in _changed(Claim.of(scene), rng):
            verdict = shows(image, claim)
            assert all(truths(reading, claim)) == verdict
            verdicts[verdict] += 1
    assert min(verdicts.values()) > 90


def test_the_same_of_readings_that_no_drawing_has():
    rng, verdicts = np.random.default_rng(1), Counter()
    for number in range(3000):
        claim = random_claim(rng)
        count = int(rng.integers(6)) if number % 3 == 0 else len(claim.objects)
        seen = random_seen(rng, count)
        if number % 2:  # named as claimed, so that sizes and places decide
            looks = zip(seen, claim.objects, strict=False)
            seen = tuple(replace(thing, shape=claimed.shape, colour=claimed.colour) for thing, claimed in looks)
        reading = Reading(seen)
        verdict = holds(reading, claim)
        assert all(truths(reading, claim)) == verdict
        verdicts[verdict] += 1
    assert verdicts[True] > 100


def _matchings(num_claimed, num_seen):
    """Every way to give each claimed object a number of a seen one, or None, no number twice."""
    if num_claimed == 0:
        return [[]]
    return [
        [*rest, number]
        for rest in _matchings(num_claimed - 1, num_seen)
        for number in [None, *range(num_seen)]
        if number is None or number not in rest
    ]


def _plain(seen, claim):
    """All facts under each matching, written out; the most true ones, and of those the earliest."""
    best = None
    for matching in _matchings(len(claim.objects), len(seen)):
        found = [None if number is None else seen[number] for number in matching]
        facts = []
        for thing, claimed in zip(found, claim.objects, strict=True):
            facts.append(thing is not None and thing.shape == claimed.shape)
        facts.append(len(seen) == len(claim.objects))
        for thing, claimed in zip(found, claim.objects, strict=True):
            facts.append(thing is not None and thing.colour == claimed.colour)
        for thing, claimed in zip(found, claim.objects, strict=True):
            if claimed.size is not None:
                facts.append(thing is not None and thing.size == claimed.size)
        if claim.position is not None:
            facts.append(found[0] is not None and is_at(found[0], claim.position))
        for relation, first, second in claim.relations:
            both = found[first] is not None and found[second] is not None
            facts.append(both and stands(found[first], relation, found[second]))
        if best is None or sum(facts) > sum(best) or (sum(facts) == sum(best) and facts > best):
            best = facts
    return tuple(best)


def test_the_best_matching_is_that_of_all():
    rng = np.random.default_rng(2)
    for _ in range(600):
        claim, seen = random_claim(rng), random_seen(rng, int(rng.integers(6)))
        found = truths(Reading(seen), claim)
        assert found == _plain(seen, claim)
        assert len(found) == len(atoms(claim)) and {type(true) for true in found} == {bool}
        order = rng.permutation(len(seen))
        assert truths(Reading(tuple(seen[i] for i in order)), claim) == found


TWO = Claim((ClaimedObject("circle", "red", "small"), ClaimedObject("square", "blue")), "left of")
THREE = Claim(
    tuple(ClaimedObject(*look) for look in (("circle", "red"), ("cross", "blue"), ("square", "green"))), "one above two"
)
ALONE = Claim((ClaimedObject("triangle", "purple", "large"),), "alone", "top left")


def test_a_claim_in_facts():
    assert atoms(TWO) == (
        Atom("object", "a circle"),
        Atom("object", "a square"),
        Atom("count", "2 objects"),
        Atom("colour", "the circle is red"),
        Atom("colour", "the square is blue"),
        Atom("size", "the red circle is small"),
        Atom("relation", "the red circle is left of the blue square"),
    )
    assert [atom.text for atom in atoms(ALONE)] == [
        "a triangle",
        "1 object",
        "the triangle is purple",
        "the purple triangle is large",
        "the purple triangle is at: top left",
    ]
    assert [atom.text for atom in atoms(THREE)][-2:] == [
        "the red circle is above the blue cross",
        "the red circle is above the green square",
    ]
    for claim in (ALONE, TWO, THREE):
        kinds = [KINDS.index(atom.kind) for atom in atoms(claim)]
        assert kinds == sorted(kinds)


def _two(**changes):
    first, second = things(TWO)
    names = ("shape", "colour", "x", "y")
    for name, value in changes.items():
        (first if name.startswith("first") else second)[names.index(name.split("_")[1])] = value
    return [first, second]


@pytest.mark.parametrize(
    ("drawn", "claim", "missing"),
    [
        (_two(), TWO, []),
        (_two(first_shape="cross"), TWO, ["a circle"]),
        (_two(second_shape="triangle"), TWO, ["a square"]),
        (_two(first_colour="green"), TWO, ["the circle is red"]),
        (_two(second_colour="black"), TWO, ["the square is blue"]),
        (_two(first_x=0.75, second_x=0.25), TWO, ["the red circle is left of the blue square"]),
        ([[*_two()[0], 0.5], [*_two()[1][:2], 0.8, 0.5]], TWO, ["the red circle is small"]),
        ([*_two(), ["cross", "black", 0.5, 0.1, 0.2]], TWO, ["2 objects"]),
        (
            _two()[:1],
            TWO,
            ["a square", "2 objects", "the square is blue", "the red circle is left of the blue square"],
        ),
        ([], TWO, [atom.text for atom in atoms(TWO)]),
        (things(THREE), THREE, []),
        # the lower two may stand either way round
        ([things(THREE)[0], ["square", "green", 0.25, 0.75], ["cross", "blue", 0.75, 0.75]], THREE, []),
        # one of the two beside it, not below
        (
            [["circle", "red", 0.25, 0.25], ["cross", "blue", 0.75, 0.25], ["square", "green", 0.25, 0.75]],
            THREE,
            ["the red circle is above the blue cross"],
        ),
        ([["triangle", "purple", 0.25, 0.25, 0.5]], ALONE, []),
        ([["triangle", "purple", 0.75, 0.75, 0.5]], ALONE, ["the purple triangle is at: top left"]),
        ([["triangle", "purple", 0.25, 0.25]], ALONE, ["the purple triangle is large"]),
        ([["triangle", "red", 0.25, 0.25, 0.5]], ALONE, ["the triangle is purple"]),
        # colours exchanged: as objects they are both there, and both in a wrong colour
        (
            _two(first_colour="blue", second_colour="red"),
            replace(TWO, objects=tuple(replace(thing, size=None) for thing in TWO.objects)),
            ["the circle is red", "the square is blue"],
        ),
    ],
)
def test_just_what_was_changed_is_missing(drawn, claim, missing):
    assert _false(picture(drawn), claim) == missing


def test_the_order_of_equal_claims_does_not_matter():
    """Objects of the same look may be matched either way."""
    twin = Claim((ClaimedObject("circle", "red"), ClaimedObject("circle", "red", "large")), "above")
    image = picture([["circle", "red", 0.5, 0.2], ["circle", "red", 0.5, 0.7, 0.5]])
    assert _false(image, twin) == []
    for order in permutations(read(image).objects):
        assert all(truths(Reading(order), twin))
