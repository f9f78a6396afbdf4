"""The facts that a caption claims, one by one: which of them a picture shows.

GenEval 2 scores such atoms by questions to a vision model; on the drawn data set the checker reads the picture. All atoms
of a claim are true just where `dalle.data.shapes.shows` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from dalle.data.shapes import Claim, Reading, SeenObject
from dalle.data.shapes.check import is_at, stands

KINDS = ("object", "count", "colour", "size", "position", "relation")


@dataclass(frozen=True)
class Atom:
    """One fact: its kind, of `KINDS`, and what it says."""

    kind: str
    text: str


def atoms(claim: Claim) -> tuple[Atom, ...]:
    """The facts of a claim, in the order of `KINDS` and, within a kind, of its objects."""
    names = [f"{thing.colour} {thing.shape}" for thing in claim.objects]
    count = len(claim.objects)
    return (
        *(Atom("object", f"a {thing.shape}") for thing in claim.objects),
        Atom("count", f"{count} object{'s' if count > 1 else ''}"),
        *(Atom("colour", f"the {thing.shape} is {thing.colour}") for thing in claim.objects),
        *(Atom("size", f"the {name} is {o.size}") for name, o in zip(names, claim.objects, strict=True) if o.size),
        *((Atom("position", f"the {names[0]} is at: {claim.position}"),) if claim.position else ()),
        *(Atom("relation", f"the {names[i]} is {relation} the {names[j]}") for relation, i, j in claim.relations),
    )


def truths(reading: Reading, claim: Claim) -> tuple[bool, ...]:
    """Which of `atoms(claim)` a picture shows, with its objects matched to the claimed ones as is best for the caption.

    Every claimed object is matched to another one that is seen, or to none where too few are. Each atom is then asked of
    that match by itself: a blue circle for a red one is an object of the wrong colour. The best matching has the most
    atoms true; of several, the one whose first atom that they differ in is true, so that objects come before their colours,
    and the order in which things are seen decides nothing.
    """
    seen = (*reading.objects, *[None] * max(0, len(claim.objects) - len(reading.objects)))
    is_count = len(reading.objects) == len(claim.objects)
    matchings = permutations(seen, len(claim.objects))
    return max((tuple(_truths(match, claim, is_count)) for match in matchings), key=lambda found: (sum(found), found))


def _truths(match: tuple[SeenObject | None, ...], claim: Claim, is_count: bool) -> Iterator[bool]:
    pairs = list(zip(match, claim.objects, strict=True))
    yield from (seen is not None and seen.shape == claimed.shape for seen, claimed in pairs)
    yield is_count
    yield from (seen is not None and seen.colour == claimed.colour for seen, claimed in pairs)
    yield from (seen is not None and seen.size == claimed.size for seen, claimed in pairs if claimed.size)
    if claim.position:
        yield match[0] is not None and is_at(match[0], claim.position)
    for relation, i, j in claim.relations:
        one, other = match[i], match[j]
        yield one is not None and other is not None and stands(one, relation, other)
