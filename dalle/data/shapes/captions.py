"""The wording of captions: every wording of a claim states the same facts about the objects; only the background may be left out.

Lower-case English, at most 14 words. Patterns hold {A}, {B}, {C} for the objects in the claim's order, {at} for a stated position, and
may end with the background.
"""

import numpy as np

from dalle.data.shapes.claim import Claim, ClaimedObject
from dalle.data.shapes.scene import Scene, pick

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
POSITION_WORDS = {
    "top left": ("in the top left", "at the top left", "in the upper left"),
    "top right": ("in the top right", "at the top right", "in the upper right"),
    "bottom left": ("in the bottom left", "at the bottom left", "in the lower left"),
    "bottom right": ("in the bottom right", "at the bottom right", "in the lower right"),
    "centre": ("in the centre", "in the middle", "at the centre"),
}
BACKGROUND_WORDS = (" on a {} background", ", {} background")
OPENINGS = ("", "", "", "a picture of ", "a drawing of ")

MAX_WORDS = 14  # a caption then has at most 31 tokens, spaces and commas counted

# Phrases follow any opening; sentences stand as they are.
PHRASES = {
    "alone": ("{A}{at}", "just {A}{at}", "only {A}{at}", "{A} alone{at}"),
    "left of": (
        "{A} to the left of {B}",
        "{B} to the right of {A}",
        "{A} left of {B}",
        "{B} right of {A}",
        "{A} on the left and {B} on the right",
        "{B} on the right and {A} on the left",
    ),
    "above": (
        "{A} above {B}",
        "{B} below {A}",
        "{A} over {B}",
        "{B} under {A}",
        "{A} at the top and {B} at the bottom",
        "{B} at the bottom and {A} at the top",
    ),
    "one above two": (
        "{A} above {B} and {C}",
        "{A} over {B} and {C}",
        "{B} and {C} below {A}",
        "{B} and {C} under {A}",
    ),
    "one below two": (
        "{A} below {B} and {C}",
        "{A} under {B} and {C}",
        "{B} and {C} above {A}",
        "{B} and {C} over {A}",
    ),
}
SENTENCES = {
    "alone": ("{at:}{A}", "this is {A}{at}", "nothing but {A}{at}"),
    "left of": ("on the left {A}, on the right {B}", "left: {A}, right: {B}"),
    "above": ("at the top {A}, at the bottom {B}", "top: {A}, bottom: {B}"),
    "one above two": ("top: {A}, bottom: {B} and {C}", "at the bottom {B} and {C}, at the top {A}"),
    "one below two": ("top: {B} and {C}, bottom: {A}", "at the bottom {A}, at the top {B} and {C}"),
}


def captions(scene: Scene, rng: np.random.Generator, num: int = 3) -> list[str]:
    """`num` different captions of one scene. The first may name the background or not, like the others."""
    claim = Claim.of(scene)
    texts: list[str] = []
    while len(texts) < num:
        text = word(claim, rng, scene.background if rng.random() < 0.4 else None)
        if text not in texts and len(text.split()) <= MAX_WORDS:
            texts.append(text)
    return texts


def word(claim: Claim, rng: np.random.Generator, background: str | None = None) -> str:
    """One caption for a claim, which may be one that no scene was drawn for; `background` names the tone to mention, None mentions none."""
    names = [_name(thing, rng) for thing in claim.objects]
    if claim.arrangement in ("one above two", "one below two") and rng.random() < 0.5:
        names[1:] = names[:0:-1]  # which of the lower two stands left is not claimed
    phrases, sentences = PHRASES[claim.arrangement], SENTENCES[claim.arrangement]
    index = int(rng.integers(len(phrases) + len(sentences)))
    if index < len(phrases):
        pattern = phrases[index]
        # "a picture of just a ..." is no caption anyone writes
        pattern = pattern if pattern.startswith(("just", "only")) else pick(rng, OPENINGS) + pattern
    else:
        pattern = sentences[index - len(phrases)]
    at = pick(rng, POSITION_WORDS[claim.position]) if claim.position else ""
    if "{at:}" in pattern and not at:
        pattern = "a shape, namely {A}" if rng.random() < 0.5 else "{A} and no other shape"
    text = pattern.replace("{at:}", f"{at} ").replace("{at}", f" {at}" if at else "")
    for letter, name in zip("ABC", names, strict=False):
        text = text.replace(f"{{{letter}}}", name)
    return text + (pick(rng, BACKGROUND_WORDS).format(background) if background else "")


def _name(thing: ClaimedObject, rng: np.random.Generator) -> str:
    words = f"{pick(rng, SIZE_WORDS[thing.size])} " if thing.size else ""
    words += f"{thing.colour} {thing.shape}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
