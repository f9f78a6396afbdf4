"""What training a char-CNN-RNN consists of: image features made once, batches of different classes, held-out retrieval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from dalle.cluster.topology import World
from dalle.config import TrainTextEncoder
from dalle.config.checks import warn
from dalle.data.captions import class_name
from dalle.data.counts import Broken, Counts, LeftOut
from dalle.data.naming import expand
from dalle.data.samples import Decoder
from dalle.data.shards import read
from dalle.evaluation.features.contract import Features
from dalle.evaluation.features.named import features
from dalle.evaluation.retrieval import retrieval
from dalle.models.text_encoders.char_cnn_rnn import LetterEncoder, letters
from dalle.objectives.joint_embedding import JointEmbeddingObjective
from dalle.training.stage import Stage

_IMAGE_PX = 224
"""Side of the images that features are made of: what EfficientNet-Lite0 reads."""
_TOGETHER = 64
"""Images that are decoded before their features are made."""
_READ_TOGETHER = 256
"""Captions that are read at a time in validation."""


def stage(config: TrainTextEncoder, world: World) -> Stage:
    """The text encoder's training, ready for the loop."""
    network = features(config.features, world.device)
    counts = {"data": Counts()}
    shards = expand(config.data, config.images.pipes)
    found = read_classes(config, config.data, network, counts["data"])
    if len(found.names) < 2:
        raise ValueError(
            f"class_key {config.class_key}: all of {config.data} is of one class, and a class is learned by telling it from others; name "
            "another key"
        )
    if len(found.names) < config.run.batch_size:
        raise ValueError(
            f"run.batch_size {config.run.batch_size}: a batch is of so many different classes, and the data has "
            f"{len(found.names)} by class_key {config.class_key}; set it to {len(found.names)} or less, or name another key"
        )
    counted_K = np.bincount(found.classes_N)
    if counted_K.min() == 1 and world.is_main:
        lone = np.flatnonzero(counted_K == 1)
        warn(
            f"class_key {config.class_key}: {len(lone):,} of {len(counted_K):,} classes have one image, such as "
            f"{found.names[lone[0]]!r}, which then stands for all that its captions say; name a key of fewer classes if there is one"
        )
    size = replace(config.model, image_width=None if network.width == config.model.embedding_width else network.width)
    if config.model.image_width not in (None, size.image_width):
        raise ValueError(
            f"model.image_width {config.model.image_width}: {network.name} has {network.width} numbers; leave it out"
        )
    torch.manual_seed(config.run.seed)
    model = LetterEncoder(size)
    held_out = None
    if config.valid_data and world.is_main:
        counts["valid_data"] = Counts()
        held_out = read_classes(config, config.valid_data, network, counts["valid_data"])
    return Stage(
        kind="text-encoder",
        objective=JointEmbeddingObjective(model, world.rank, world.size),
        loader=ClassBatches(found, config, world),
        unit="images",
        units_per_sample=1,
        data=shards,
        model_config=size,
        validate=(lambda: held_out_retrieval(model, held_out, world)) if held_out else None,
        trained_on=f"{len(found.captions):,} images of {len(found.names):,} classes, as {network.name} sees them",
        links={"image_features_hash": network.hash},
        facts={"image_features": network.name, "class_key": config.class_key},
        samples=lambda: counts if world.is_main else {},  # all read the same
    )


@dataclass(frozen=True)
class Classes:
    """Image features and captions by class.

    Args:
        features_NE: fp32
        captions: of each image, at least one
        classes_N: the number of each image's class
        names: of the classes, in the order of their names
    """

    features_NE: np.ndarray
    captions: list[list[str]]
    classes_N: np.ndarray
    names: list[str]


def read_classes(config: TrainTextEncoder, spec: str, network: Features, counts: Counts) -> Classes:
    """All samples of shards that have an image, a caption and a class; what became of each is added to `counts`.

    Raises:
        ValueError: too many were broken, or none can be used
    """
    seen: list[np.ndarray] = []
    captions: list[list[str]] = []
    names: list[str] = []
    waiting: list[np.ndarray] = []

    def see() -> None:
        if waiting:
            seen.append(network(np.stack(waiting)).features_BE)
            waiting.clear()

    for image, found, name in _samples(config, spec, counts):
        waiting.append(image)
        captions.append(found)
        names.append(name)
        if len(waiting) == _TOGETHER:
            see()
    see()
    if not names:
        raise ValueError(f"{spec}: no sample can be used: {counts.line()}; name shards of images with captions")
    known, classes_N = np.unique(np.array(names), return_inverse=True)
    return Classes(np.concatenate(seen), captions, classes_N, known.tolist())


def _samples(config: TrainTextEncoder, spec: str, counts: Counts) -> Iterator[tuple[np.ndarray, list[str], str]]:
    decoder = Decoder(config.images, _IMAGE_PX, config.run.seed)
    for sample in read(expand(spec, config.images.pipes)):
        try:
            pair = decoder(sample, 0)
            name = class_of(sample, config.class_key)
        except LeftOut as error:
            counts.add(sample, error)
            counts.check_limit(config.images.max_bad_fraction)
            continue
        counts.add(sample)
        yield pair.image, pair.captions, name
    counts.check_limit(config.images.max_bad_fraction, at_end=True)


def class_of(sample: dict, key: str) -> str:
    """The class or concept of a raw sample. Raises Broken where its json has none."""
    name = class_name(sample, key)
    if name is None:
        raise Broken(f"no class: its json has nothing under class_key {key}")
    return name


class ClassBatches:
    """Endless batches of different classes: dicts of `letters_BU` and `image_features_BE`, this process's rows of them.

    A batch is a function of (seed, number of the update): so it is the same for any number of processes, and a position is a
    number.

    Args:
        data: what is drawn from
        config: of the training
        world: the processes
    """

    def __init__(self, data: Classes, config: TrainTextEncoder, world: World):
        self.data, self.seed, self.length = data, config.run.seed, config.model.caption_chars
        self.batch_size, self.position = config.run.batch_size, 0
        share = config.run.micro_batch_size(world.size)
        self.rows = slice(world.rank * share, (world.rank + 1) * share)
        order = np.argsort(data.classes_N, kind="stable")
        self._images_of = np.split(order, np.cumsum(np.bincount(data.classes_N))[:-1])

    def __iter__(self) -> Iterator[dict]:
        while True:
            images_B, captions = self.draw(self.position)
            self.position += 1
            yield {
                "letters_BU": letters(captions[self.rows], self.length),
                "image_features_BE": torch.from_numpy(self.data.features_NE[images_B[self.rows]]),
            }

    def draw(self, number: int) -> tuple[np.ndarray, list[str]]:
        """The images and captions of a whole batch: different classes, all equally likely; of each an image, and of that a
        caption."""
        generator = np.random.default_rng([self.seed, number])
        classes_B = generator.permutation(len(self.data.names))[: self.batch_size]
        images_B = np.array([generator.choice(self._images_of[number]) for number in classes_B])
        return images_B, [self.data.captions[n][generator.integers(len(self.data.captions[n]))] for n in images_B]

    def state_dict(self) -> dict:
        """Where it stands; JSON-able, and the same on all ranks."""
        return {"batches": self.position, **self._order()}

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state_dict` was made. Raises ValueError when there are other images or classes to draw from."""
        for name, value in self._order().items():
            if value != state.get(name):
                raise ValueError(
                    f"{name} {value}: the checkpoint was written with {state.get(name)}, and what is drawn depends on it; set it back"
                )
        self.position = state["batches"]

    def _order(self) -> dict[str, int]:
        return {"number of images": len(self.data.captions), "number of classes": len(self.data.names)}


@torch.no_grad()
def held_out_retrieval(model: LetterEncoder, data: Classes, world: World) -> dict[str, float]:
    """How often an image's first caption finds an image of its class, and the other way round, by the product of their vectors,
    which is what is trained."""
    first, length = [captions[0] for captions in data.captions], model.config.caption_chars
    parts = [slice(start, start + _READ_TOGETHER) for start in range(0, len(first), _READ_TOGETHER)]
    texts = [model.embed_texts(letters(first[part], length).to(world.device)) for part in parts]
    images = [model.embed_images(torch.from_numpy(data.features_NE[part]).to(world.device)) for part in parts]
    images_NE, texts_NE = (torch.cat(each).float().cpu().numpy() for each in (images, texts))
    return retrieval(images_NE, texts_NE, data.classes_N.tolist())
