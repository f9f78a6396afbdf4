"""What training a StackGAN consists of: two players, embeddings of captions, wrong captions, stage one's images, signs of collapse."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dalle.cluster.sync_batchnorm import synchronise_all
from dalle.cluster.topology import World
from dalle.config import TrainStackGAN
from dalle.data.captions import concepts
from dalle.data.loading import to_device
from dalle.data.pairs import PairBatches, PairLoader
from dalle.models.folder import check_link, load_generator, read_config, read_header
from dalle.models.stackgan.discriminator import Discriminator
from dalle.models.stackgan.generators import Generator, generator
from dalle.models.stackgan.noise import noise
from dalle.objectives.stackgan import DiscriminatorObjective, GeneratorObjective, draw
from dalle.outputs.run_files import WEIGHTS
from dalle.ready.files import STAGE_ONE
from dalle.stages.adversarial.collapse import Collapse
from dalle.stages.adversarial.draws import labels, row_seeds
from dalle.stages.adversarial.validation import Validation
from dalle.stages.adversarial.wrong import check_concepts, wrong_row_seeds, wrong_rows
from dalle.training.seeds import derived_seed
from dalle.training.stage import Opponent, Stage

if TYPE_CHECKING:
    from dalle.models.text_encoders.cache import EmbeddingCache


def stage(config: TrainStackGAN, world: World) -> Stage:
    """A StackGAN's stage one, or two, ready for the loop."""
    check_concepts(config.data, config.images, config.class_key)
    embeddings = embeddings_of(config, world)
    encoder = embeddings.encoder
    if encoder.width != config.model.text_width:
        raise ValueError(
            f"model.text_width {config.model.text_width}: text_encoder {config.text_encoder} gives {encoder.width} numbers; set "
            f"model.text_width to {encoder.width}"
        )
    links = {"text_encoder_hash": encoder.hash}
    first = None
    if config.stage_one is not None:
        first = _stage_one(config, encoder.hash, world)
        links["stage_one_hash"] = read_header(config.stage_one)["hash"]
    torch.manual_seed(config.run.seed)
    model, discriminator = generator(config.model), Discriminator(config.model)
    for player in (model, discriminator):
        synchronise_all(player, world)
    told = partial(concepts, class_key=config.class_key)
    size_px = config.model.image_size_px
    batches = PairBatches(config.data, config.images, size_px, config.run, world.rank, world.size, told)
    loader = PairLoader(batches, config.run.loader_workers)
    collapse = Collapse(config.objective, config.model.unconditional, config.run.steps, config.stop_on_collapse, world)
    low = partial(_low, first, config, world.device)

    def keep(figures: dict[str, float]) -> None:
        collapse.validated.update(figures)
        embeddings.save()  # now and then, so that a run that is killed leaves them

    validation = None
    if world.is_main:
        validation = Validation(
            config, model, embeddings.embed, low, discriminator.features_by_averages, world.device, keep
        )
    against = Opponent(DiscriminatorObjective(discriminator, model, config.objective), config.discriminator_optimizer)

    def conclude() -> list[str]:
        if world.is_main:
            embeddings.save()
        return []

    return Stage(
        kind="stackgan",
        objective=GeneratorObjective(model, discriminator, config.objective),
        opponents={"discriminator": against},
        loader=loader,
        unit="images",
        units_per_sample=1,
        data=batches.shards,
        model_config=config.model,
        prepare=_prepare(config, model, embeddings, low, batches.first_row),
        validate=validation.figures if validation else None,
        draw=validation.pictures if validation else None,
        check=collapse.check,
        give_up=collapse.give_up,
        conclude=conclude,
        samples=lambda: {"data": loader.counts} | (validation.samples if validation else {}),
        highlights=("discriminator_loss", "spread"),
        links=links,
        facts={"text_encoder": encoder.name},
        files={} if config.stage_one is None else _files_of_stage_one(Path(config.stage_one), Path(config.output)),
        next_command=f'dalle-sample --model {config.output} "CAPTION"',
        trained_on=f"{len(batches.shards)} shards of pairs",
    )


def embeddings_of(config: TrainStackGAN, world: World) -> EmbeddingCache:
    """The text encoder that was asked for, and what is known of its embeddings."""
    from dalle.models.text_encoders import open_text_encoder
    from dalle.models.text_encoders.cache import EmbeddingCache

    path = Path(config.embeddings or Path(config.output) / "embeddings.safetensors")
    return EmbeddingCache(path, open_text_encoder(config.text_encoder, world.device))


def _prepare(
    config: TrainStackGAN, model: Generator, embeddings: EmbeddingCache, low: Callable, first_row: int
) -> Callable[[list[dict], int, World], None]:
    """What makes an update's micro-batches ready.

    Wrong captions come from the whole batch. With several processes on GPUs gathering its captions has its price: each waits until
    its GPU has done what it was given before.

    The images of all micro-batches are drawn before the first move. So what the generator keeps for its backward pass is there for
    the whole update at once, and accumulation spares what the discriminator keeps alone. Drawn again for the second move, they
    would have other dropout, and batch normalisation would take in each batch twice.
    """

    def prepare(micro_batches: list[dict], step: int, world: World) -> None:
        captions = [caption for batch in micro_batches for caption in batch["captions"]]
        about = [found for batch in micro_batches for found in batch.pop("concepts")]
        everyones = world.gather((captions, about))
        all_captions = [caption for each in everyones for caption in each[0]]
        rows = range(first_row, first_row + len(captions))
        wrong = wrong_rows([f for each in everyones for f in each[1]], wrong_row_seeds(config.run.seed, step, rows))
        # a row without a wrong caption gets its own, which then counts for nothing
        wrong_captions = [
            own if other is None else all_captions[other] for own, other in zip(captions, wrong, strict=True)
        ]
        seeds = row_seeds(config.run.seed, step, rows)
        made = {
            **dict(
                zip(("text_BE", "wrong_text_BE"), embeddings.embed([*captions, *wrong_captions]).chunk(2), strict=True)
            ),
            "has_wrong_B": torch.tensor([float(other is not None) for other in wrong]),
            **noise(config.model, seeds),
            **labels(config.objective, row_seeds(config.run.seed + 1, step, rows)),
        }
        made = to_device(made, world.device)
        size = len(captions) // len(micro_batches)
        for number, batch in enumerate(micro_batches):
            mine = slice(number * size, (number + 1) * size)
            batch |= {name: value[mine] for name, value in made.items()}
            batch |= low(batch["text_BE"], seeds[mine])
        # once for both players' moves, between which the generator stays as it is; dropout is the one thing that is drawn there
        torch.manual_seed(derived_seed(config.run.seed, step, world.rank))
        with _products(config, world.device):
            for batch in micro_batches:
                batch["drawn"] = draw(model, batch)

    return prepare


def _products(config: TrainStackGAN, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.run.precision == "bf16")


@torch.no_grad()
def _low(
    first: Generator | None, config: TrainStackGAN, device: torch.device, text_BE: torch.Tensor, seeds: list[int]
) -> dict[str, torch.Tensor]:
    """Stage one's images of the captions, each with the noise of a seed, where there is a stage one."""
    if first is None:
        return {}
    given = to_device(noise(first.config, seeds), device)
    with _products(config, device):
        return {"low_BCYX": first(text_BE, given["noise_BZ"], given["epsilon_BC"])[0]}


def _stage_one(config: TrainStackGAN, text_encoder_hash: str, world: World) -> Generator:
    """The generator of stage one. Raises ValueError where there is none, or none that fits."""
    folder = config.stage_one
    assert folder is not None
    try:
        sizes = read_config(folder, "stackgan")
    except ValueError as error:
        raise ValueError(f"stage_one: {error}") from None
    if sizes.stage != 1:
        raise ValueError(f"stage_one {folder}: holds a stage {sizes.stage}; name the folder of a stage 1")
    if sizes.image_size_px != config.model.low_px:
        raise ValueError(
            f"stage_one {folder}: draws images of {sizes.image_size_px} px, and model.image_size_px {config.model.image_size_px} takes a "
            f"quarter of its own side; set it to {4 * sizes.image_size_px}"
        )
    found = read_header(folder).get("text_encoder_hash", "none")
    check_link(
        f"stage_one {folder} was trained with another text encoder than {config.text_encoder}", found, text_encoder_hash
    )
    return load_generator(folder, world.device)


def _files_of_stage_one(folder: Path, output: Path) -> dict[str, str | Path]:
    """Those of the copy beside stage two, which cannot draw without it."""
    kept = output / STAGE_ONE
    if os.path.realpath(folder) == os.path.realpath(kept):
        return {}
    names = (name for name in ("config.yaml", WEIGHTS) if (folder / name).is_file())
    return {f"{STAGE_ONE}/{name}": folder / name for name in names}
