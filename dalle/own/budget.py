"""How the minutes are shared among the stages, and what is left of them after each: from the seconds of an update, which are
timed, to numbers of updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dalle.own.facts import Pictures
from dalle.own.plan import SHARES, Sizes

STAGES = ("dvae", "prior", "clip", "gallery")
"""What takes time, in order; the gallery is no training."""
_START_S = 6.0
"""Of a stage before its first update, and after its last: data are opened, weights, checkpoint, pictures and page written."""
_GALLERY_SHARE, _LEAST_GALLERY_S, _MOST_GALLERY_S = 0.05, 10.0, 90.0
"""Of the time that is left, for drawing a few captions."""
_LEAST_UPDATES = 20
_MOST_PASSES = 1_500
"""Over the pairs, beyond which nothing more is learnt of them."""
_MOST_DVAE_UPDATES = {32: 6_000, 64: 12_000, 128: 30_000}
_MOST_UPDATES = 1_000_000


@dataclass(frozen=True)
class Shared:
    """The rest of the road in time.

    Args:
        updates: of each stage that is still to be trained
        seconds: of each stage that is still to come
    """

    updates: dict[str, int]
    seconds: dict[str, float]

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


def share(
    left_s: float,
    stages: tuple[str, ...],
    update_s: Mapping[str, float],
    most: Mapping[str, int],
    fixed: Mapping[str, int] | None = None,
) -> Shared:
    """The stages that are left over the time that is left, in order: what one cannot use goes to those behind it.

    Args:
        left_s: seconds until the end
        stages: of `STAGES`, those still to come
        update_s: seconds of an update of each, with its share of validation and checkpoints
        most: updates of each, of which more would not help
        fixed: updates that somebody has set
    """
    updates: dict[str, int] = {}
    seconds: dict[str, float] = {}
    fixed = fixed or {}
    for_gallery_s = gallery_s(left_s)
    for number, stage in enumerate(stages):
        rest = stages[number:]
        # what others take in any case does not depend on what this one gets
        trained = [other for other in rest if other != "gallery"]
        bound_s = for_gallery_s + sum(_START_S + _set_s(other, update_s, fixed) for other in trained)
        open_stages = [other for other in trained if other not in fixed]
        if stage == "gallery":
            seconds[stage] = for_gallery_s
            continue
        if stage in fixed:
            updates[stage] = fixed[stage]
        else:
            part = SHARES[stage] / sum(SHARES[other] for other in open_stages)
            wanted = int(max(0.0, left_s - bound_s) * part / update_s[stage])
            updates[stage] = max(_LEAST_UPDATES, min(wanted, most[stage]))
        seconds[stage] = _START_S + updates[stage] * update_s[stage]
        left_s -= seconds[stage]
    return Shared(updates, seconds)


def gallery_s(left_s: float) -> float:
    """Seconds for drawing, of those that are left for all that is still to come."""
    return min(_MOST_GALLERY_S, max(_LEAST_GALLERY_S, _GALLERY_SHARE * left_s))


def most_updates(sizes: Sizes, pictures: Pictures) -> dict[str, int]:
    """Of each stage, beyond which more would not help: passes over the pairs, though never fewer than a small model needs."""
    passes = _MOST_PASSES * pictures.pairs
    return {
        "dvae": _MOST_DVAE_UPDATES.get(sizes.dvae.image_size_px, _MOST_UPDATES),
        "prior": min(_MOST_UPDATES, max(4_000, passes // sizes.batch)),
        "clip": min(20_000, max(300, passes // sizes.clip_batch)),
    }


def still_to_come(trainings: Iterable[str]) -> tuple[str, ...]:
    """The stages that take time, in order, where these trainings are left."""
    return tuple(stage for stage in STAGES if stage == "gallery" or stage in tuple(trainings))


def _set_s(stage: str, update_s: Mapping[str, float], fixed: Mapping[str, int]) -> float:
    return fixed[stage] * update_s[stage] if stage in fixed else 0.0


def in_words(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 10 * 60:
        tens = round(seconds / 10)
        return f"{tens // 6} min" + (f" {10 * (tens % 6)} s" if tens % 6 else "")
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
