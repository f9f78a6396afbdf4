"""What training the reranker consists of: pairs, the dVAE's blur as augmentation, validation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch

from dalle.cluster.topology import World
from dalle.config import Precision, TrainCLIP
from dalle.data.counts import Counts
from dalle.data.pairs import PairBatches, PairLoader, to_tensor
from dalle.data.samples import read_pairs
from dalle.models.clip import CLIP
from dalle.models.dvae import DVAE
from dalle.models.folder import load_dvae, read_header
from dalle.models.likelihood import to_uint8
from dalle.objectives.clip import CLIPObjective
from dalle.stages.cut_captions import CutCaptions
from dalle.text import Cuts, Tokenizer
from dalle.training.stage import Stage


def stage(config: TrainCLIP, world: World) -> Stage:
    """The reranker's training, ready for the loop."""
    tokenizer = Tokenizer.load(config.tokenizer) if config.tokenizer else None
    torch.manual_seed(config.run.seed)
    model = CLIP(config.model, tokenizer)
    dvae = load_dvae(config.dvae, world.device) if config.dvae else None
    links: dict[str, str] = {}
    files: dict[str, str] = {}
    if tokenizer is not None:
        links["tokenizer_hash"] = tokenizer.hash
        files |= tokenizer.files()
    size_px = _image_size_px(model, dvae)
    if dvae is not None:
        if config.model.reads == "codes":
            _check_codes(config, dvae)
        elif size_px % dvae.config.downsampling:
            raise ValueError(
                f"CLIP reads images of {size_px} px, which is no multiple of {dvae.config.downsampling}, the downsampling of "
                f"the dVAE {config.dvae}: change model.image_size_px, or leave dvae out"
            )
        links["dvae_hash"] = read_header(config.dvae)["hash"]
    batches = PairBatches(config.data, config.images, size_px, config.run, world.rank, world.size)
    loader = PairLoader(batches, config.run.loader_workers)
    validation = _Validation(config, model, dvae, world.device) if config.valid_data and world.is_main else None
    cuts = Cuts(model.caption_tokens)
    cut_captions = CutCaptions(cuts, world)
    return Stage(
        kind="clip",
        objective=CLIPObjective(model, world.rank, world.size),
        loader=loader,
        unit="images",
        units_per_sample=1,
        data=batches.shards,
        model_config=config.model,
        prepare=_prepare(model, dvae, config.run.precision, cuts),
        validate=validation.figures if validation else None,
        trained_on=f"{len(batches.shards)} shards of pairs",
        next_command=_next_command(config),
        links=links,
        files=files,
        check=cut_captions.check,
        conclude=cut_captions.conclude,
        samples=lambda: {"data": loader.counts} | (validation.samples if validation else {}),
    )


def _prepare(
    model: CLIP, dvae: DVAE | None, precision: Precision, cuts: Cuts
) -> Callable[[list[dict], int, World], None]:
    def prepare(micro_batches: list[dict], step: int, world: World) -> None:
        for batch in micro_batches:
            batch["clip_tokens_BU"] = model.tokens(batch["captions"], cuts).to(world.device)
            if model.config.reads == "codes":
                batch["codes_BI"] = codes(dvae, batch["images_BCYX"], precision)
            elif dvae is not None:
                half = len(batch["images_BCYX"]) // 2
                batch["images_BCYX"][:half] = reconstruct(dvae, batch["images_BCYX"][:half], precision)

    return prepare


def _image_size_px(model: CLIP, dvae: DVAE | None) -> int:
    """Side of the images that are read from the shards."""
    return dvae.config.image_size_px if model.config.reads == "codes" else model.image_size_px


def _check_codes(config: TrainCLIP, dvae: DVAE) -> None:
    """Raises ValueError unless the model's sizes are those of this dVAE's codes."""
    for name, found, right in (
        ("image_size_px", config.model.image_size_px, dvae.config.grid),
        ("codebook_size", config.model.codebook_size, dvae.config.codebook_size),
    ):
        if found != right:
            grid = f"{dvae.config.grid}×{dvae.config.grid} codes of {dvae.config.codebook_size}"
            raise ValueError(
                f"model.{name} {found}: the dVAE {config.dvae} has {grid} for an image; set model.{name} to {right}"
            )


def _next_command(config: TrainCLIP) -> str:
    option = f"--clip {config.output} --rerank"
    if config.model.reads == "codes":
        option = f"--n 512 --rerank --shortlist 64 --codes_clip {config.output}"
    return f'dalle-sample --model MODEL {option} "CAPTION"'


@torch.no_grad()
def codes(dvae: DVAE, images_BCYX: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Codes int64 [B, I] of images, in raster order."""
    with torch.autocast(images_BCYX.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return dvae.encode(images_BCYX).flatten(1)


@torch.inference_mode()
def reconstruct(dvae: DVAE, images_BCYX: torch.Tensor, precision: Precision) -> torch.Tensor:
    """uint8 images after encoding and decoding: what a perfect prior's samples look like."""
    with torch.autocast(images_BCYX.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return to_uint8(dvae.decode(dvae.encode(images_BCYX)))


class _Validation:
    """How often a held-out caption finds its image among a batch of others, and the other way round."""

    def __init__(self, config: TrainCLIP, model: CLIP, dvae: DVAE | None, device: torch.device):
        self.model, self.device = model, device
        count = config.run.validation_batches * config.run.batch_size
        images = replace(config.images, augmentation="none", cache_bytes=0)
        counts = Counts()
        self.samples = {"valid_data": counts}
        size_px = _image_size_px(model, dvae)
        pairs = list(itertools.islice(read_pairs(config.valid_data, images, size_px, counts=counts), count))
        size = min(config.run.batch_size, len(pairs))
        self.batches = []
        for first in range(0, len(pairs) - size + 1, size):
            batch = to_tensor([p.image for p in pairs[first : first + size]]).to(device)
            if model.config.reads == "codes":
                batch = {"codes_BI": codes(dvae, batch, config.run.precision)}
            else:
                shown = batch if dvae is None else reconstruct(dvae, batch, config.run.precision)
                batch = {"images_BCYX": shown}
            self.batches.append((batch, [p.captions[0] for p in pairs[first : first + size]]))

    def figures(self) -> dict[str, float]:
        image_found = caption_found = 0.0
        for batch, captions in self.batches:
            images_BE = self.model.embed_batch(batch)
            texts_BE = self.model.embed_texts(self.model.tokens(captions).to(self.device))
            scores_BB = texts_BE @ images_BE.T
            right = torch.arange(len(captions), device=self.device)
            image_found += (scores_BB.argmax(dim=1) == right).float().mean().item() / len(self.batches)
            caption_found += (scores_BB.argmax(dim=0) == right).float().mean().item() / len(self.batches)
        return {"caption_accuracy": image_found, "image_accuracy": caption_found}
