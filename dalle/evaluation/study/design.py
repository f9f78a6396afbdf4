"""Who is shown what: pairs of images, catch trials, and each worker's list of them. Everything is drawn from the seed.

A pair is seen by as many different workers as votes are asked for; nobody gets more pairs than asked for, and two
workers' numbers differ by one at most. Each model is on the left in half of the votes, of a pair and of the whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from dalle.config import plain_json

NEITHER = "neither"
QUESTIONS = ("realistic", "matches")
_FORMAT = 1


@dataclass(frozen=True)
class Picture:
    """Where an image of the page is from.

    Args:
        model: its name; null of an image of catch trials alone
        caption: it was drawn for
    """

    model: str | None
    caption: str


@dataclass(frozen=True)
class Trial:
    """Two images and a caption.

    Args:
        caption: that is shown with them
        images: their ids, in the order of the ids
        right: of a catch trial, the answers to each question that are right, all where nothing is known; null of a pair
    """

    caption: str
    images: tuple[str, str]
    right: dict[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Shown:
    """A trial as one worker sees it.

    Args:
        trial: its id
        left: id of the image on the left
        again: whether the worker has seen the pair before, with the sides changed
    """

    trial: str
    left: str
    again: bool = False


@dataclass(frozen=True)
class Design:
    """A whole study.

    Args:
        models: by name
        pictures: by their ids, which say nothing of the model
        trials: by their ids
        workers: what each is shown, in order; the first is worker 1
        votes: asked of each pair
    """

    models: tuple[str, ...]
    pictures: dict[str, Picture]
    trials: dict[str, Trial]
    workers: tuple[tuple[Shown, ...], ...]
    votes: int

    @property
    def hash(self) -> str:
        """Of all the study says, by which answers are known to be its."""
        return hashlib.sha256(_canonical(self._contents()).encode()).hexdigest()

    def model_of(self, image: str) -> str:
        """The model that drew an image of a pair; those of catch trials alone have none."""
        model = self.pictures[image].model
        assert model is not None
        return model

    def options(self, trial: str, question: str) -> tuple[str, ...]:
        """The answers that a worker may give."""
        return (*self.trials[trial].images, *((NEITHER,) if question == "matches" else ()))

    def to_json(self) -> dict[str, Any]:
        """What `read_design` reads."""
        return {"format": _FORMAT, "study": self.hash, **self._contents()}

    def _contents(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


def read_design(path: Path) -> Design:
    """A study from its `study.json`.

    Raises:
        ValueError: there is none, or it is not as it was written
    """
    if not path.is_file():
        raise ValueError(f"output {path.parent}: no {path.name} there; make a study with --images, or name its folder")
    try:
        values = plain_json.read(path)
        design = Design(
            tuple(values["models"]),
            {name: Picture(**picture) for name, picture in values["pictures"].items()},
            {name: _trial(trial) for name, trial in values["trials"].items()},
            tuple(tuple(Shown(**shown) for shown in worker) for worker in values["workers"]),
            values["votes"],
        )
        whole = values["format"] == _FORMAT and values["study"] == design.hash
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: is damaged or of another version; score answers with the one that they were made by")
    return design


def _trial(values: dict[str, Any]) -> Trial:
    right = values["right"]
    known = None if right is None else {question: tuple(answers) for question, answers in right.items()}
    return Trial(values["caption"], tuple(values["images"]), known)


def make_design(
    models: tuple[str, ...],
    pictures: dict[str, Picture],
    catch_trials: list[Trial],
    votes: int,
    pairs_per_worker: int,
    repeats: int,
    seed: int,
) -> Design:
    """Deal all pairs of models' images of one caption to workers.

    Args:
        models: by name
        pictures: by their ids, one of each model and caption, and those of the catch trials
        catch_trials: that every worker is shown
        votes: different workers for each pair
        pairs_per_worker: at most
        repeats: pairs that each worker is shown again
        seed: of everything that is drawn
    """
    of = {(picture.model, picture.caption): name for name, picture in pictures.items() if picture.model is not None}
    captions = list(dict.fromkeys(caption for _, caption in of))
    pairs = [
        (caption, of[first, caption], of[second, caption])
        for caption in captions
        for first, second in combinations(models, 2)
    ]
    random = Random(f"{seed}: who sees which pair")
    random.shuffle(pairs)
    workers = max(votes, math.ceil(len(pairs) * votes / pairs_per_worker))
    dealt: list[list[Shown]] = [[] for _ in range(workers)]
    trials: dict[str, Trial] = {}
    for number, (caption, *images) in enumerate(pairs):
        first, second = sorted(images)
        pair = Trial(caption, (first, second))
        name = trial_id(pair)
        trials[name] = pair
        # by turns: of five votes three have the first model on the left, and with the next pair the second
        sides = [(number + vote) % 2 for vote in range(votes)]
        random.shuffle(sides)
        for worker, side in zip(_seers([len(shown) for shown in dealt], votes, random), sides, strict=True):
            dealt[worker].append(Shown(name, images[side]))
    catch = [Trial(trial.caption, (min(trial.images), max(trial.images)), trial.right) for trial in catch_trials]
    trials |= {trial_id(trial): trial for trial in catch}
    orders = tuple(
        _order(shown, catch, trials, repeats, Random(f"{seed}: worker {worker}")) for worker, shown in enumerate(dealt)
    )
    return Design(tuple(models), pictures, trials, orders, votes)


def trial_id(trial: Trial) -> str:
    """Of what is shown, so that it says no more."""
    return hashlib.sha256(_canonical([trial.caption, *sorted(trial.images)]).encode()).hexdigest()[:12]


def _seers(loads: list[int], votes: int, random: Random) -> list[int]:
    """Different workers for a pair: those who have least, so that they all end with as many, give or take one."""
    return sorted(range(len(loads)), key=lambda worker: (loads[worker], random.random()))[:votes]


def _order(
    shown: list[Shown], catch: list[Trial], trials: dict[str, Trial], repeats: int, random: Random
) -> tuple[Shown, ...]:
    """A worker's list: pairs in random order, the first of them once more in its second half, catch trials anywhere."""
    order = random.sample(shown, len(shown))
    middle = max(len(order) // 2, 1)
    for first in order[: min(repeats, middle)]:
        place = random.randint(middle, len(order))
        other = next(image for image in trials[first.trial].images if image != first.left)
        order.insert(place, Shown(first.trial, other, again=True))
    for trial in random.sample(catch, len(catch)):
        order.insert(random.randint(0, len(order)), Shown(trial_id(trial), trial.images[random.randrange(2)]))
    return tuple(order)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
