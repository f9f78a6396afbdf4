"""What training the reranker consists of: pairs, which of them are alike, the dVAE's blur as augmentation, validation."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch

from dalle.cluster.topology import World
from dalle.config import TrainCLIP
from dalle.data.counts import Counts
from dalle.data.loading import to_device
from dalle.data.pairs import PairBatches, PairLoader, to_tensor
from dalle.data.samples import Pair, read_pairs
from dalle.evaluation.retrieval import retrieval, same_captions
from dalle.models.clip import CLIP
from dalle.models.dvae import DVAE
from dalle.models.folder import codes_hash, load_dvae
from dalle.models.likelihood import to_uint8
from dalle.objectives.clip import CLIPObjective
from dalle.stages.cut_captions import CutCaptions
from dalle.stages.starting import start_of
from dalle.text import Cuts, Tokenizer
from dalle.training.stage import Stage

_RECONSTRUCTED_TOGETHER = 16
"""Images: the paper's dVAE takes a quarter of a GB for each at 256 px."""
_KEPT_BYTES = 2**30
"""Of held-out images that stay in memory. Where not all do, each validation reads all again, to come to the others."""


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
    if dvae is not None and config.dvae is not None:
        if config.model.reads == "codes":
            _check_codes(config, dvae)
        elif size_px % dvae.config.downsampling:
            raise ValueError(
                f"CLIP reads images of {size_px} px, which is no multiple of {dvae.config.downsampling}, the downsampling of "
                f"the dVAE {config.dvae}: change model.image_size_px, or leave dvae out"
            )
        links["dvae_hash"] = codes_hash(config.dvae)
    # what it sees of a dVAE's blur may change, but not the meaning of the codes and tokens that it reads
    kept = [name for name in links if name == "tokenizer_hash" or config.model.reads == "codes"]
    start = start_of(config, "clip", world, {name: links[name] for name in kept})
    batches = PairBatches(config.data, config.images, size_px, config.run, world.rank, world.size)
    loader = PairLoader(batches, config.run.loader_workers)
    validation = _Validation(config, model, dvae, world) if config.valid_data and world.is_main else None
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
        start=start,
        links=links | (start.links if start else {}),
        files=files,
        check=cut_captions.check,
        conclude=cut_captions.conclude,
        samples=lambda: {"data": loader.counts} | (validation.samples if validation else {}),
    )


def _prepare(model: CLIP, dvae: DVAE | None, precision: str, cuts: Cuts) -> Callable[[list[dict], int, World], None]:
    def prepare(micro_batches: list[dict], step: int, world: World) -> None:
        for batch in micro_batches:
            tokens_BU = model.tokens(batch["captions"], cuts)
            read = {"clip_tokens_BU": tokens_BU, "identities_BK": identities(tokens_BU, batch["places"])}
            batch |= to_device(read, world.device)
            if model.config.reads == "codes":
                assert dvae is not None
                batch["codes_BI"] = codes(dvae, batch["images_BCYX"], precision)
            elif dvae is not None:
                # every second image, the others in the next update: each row is of one stream of the data, and the rows
                # of a process should be those that one process alone would take
                half = slice(step % 2, None, 2)
                batch["images_BCYX"][half] = reconstruct(dvae, batch["images_BCYX"][half], precision)

    return prepare


def _image_size_px(model: CLIP, dvae: DVAE | None) -> int:
    """Side of the images that are read from the shards."""
    if model.config.reads == "codes":
        assert dvae is not None, "codes without a dVAE were refused"
        return dvae.config.image_size_px
    return model.image_size_px


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
    option = f"--clip {config.output}"
    if config.model.reads == "codes":
        option = f"--n 512 --shortlist 64 --codes_clip {config.output}"
    return f'dalle-sample --model MODEL {option} "CAPTION"'


@torch.no_grad()
def codes(dvae: DVAE, images_BCYX: torch.Tensor, precision: str) -> torch.Tensor:
    """Codes int64 [B, I] of images, in raster order."""
    with torch.autocast(images_BCYX.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return dvae.encode(images_BCYX).flatten(1)


@torch.inference_mode()
def reconstruct(dvae: DVAE, images_BCYX: torch.Tensor, precision: str) -> torch.Tensor:
    """uint8 images after encoding and decoding, a few at a time: what a perfect prior's samples look like."""
    with torch.autocast(images_BCYX.device.type, torch.bfloat16, enabled=precision == "bf16"):
        parts = images_BCYX.split(_RECONSTRUCTED_TOGETHER)
        return torch.cat([to_uint8(dvae.decode(dvae.encode(part))) for part in parts])


def identities(tokens_BU: torch.Tensor, places: list[tuple[str, str]]) -> torch.Tensor:
    """Numbers int64 [B, 2] by which captions that are read alike, and images that are the same, are known on all processes.

    Args:
        tokens_BU: of the captions, as the reranker reads them
        places: shard and key of the images
    """
    captions = [_number(row.tobytes()) for row in tokens_BU.numpy()]
    images = [_number("\n".join(place).encode("utf-8", "backslashreplace")) for place in places]
    return torch.tensor([captions, images]).T.contiguous()


def _number(data: bytes) -> int:
    # 64 bits: among 32,768 pairs two differing ones are taken for equal once in 34 billion batches
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


class _Validation:
    """How often a held-out caption finds its image among all held-out ones, and the other way round. All pairs are read, and
    counted, before the training begins; of each, the first caption."""

    def __init__(self, config: TrainCLIP, model: CLIP, dvae: DVAE | None, world: World):
        self.config, self.model, self.dvae, self.device = config, model, dvae, world.device
        self.size = config.run.micro_batch_size(world.size)
        self.captions: list[str] = []
        self.kept: list[torch.Tensor] = []
        counts, held_bytes = Counts(), 0
        self.samples = {"valid_data": counts}
        for pairs in self._pairs(counts):
            self.captions += [pair.captions[0] for pair in pairs]
            if held_bytes < _KEPT_BYTES:
                self.kept.append(self._images(pairs))
                held_bytes += self.kept[-1].nbytes
        self.same_caption_ids = same_captions(self.captions)

    def _pairs(self, counts: Counts | None = None) -> Iterator[list[Pair]]:
        assert self.config.valid_data is not None
        images = replace(self.config.images, augmentation="none", cache_bytes=0)
        size_px = _image_size_px(self.model, self.dvae)
        pairs = read_pairs(self.config.valid_data, images, size_px, counts=counts)
        while batch := list(itertools.islice(pairs, self.size)):
            yield batch

    def _images(self, pairs: list[Pair]) -> torch.Tensor:
        """What the model reads of them: pixels, or codes."""
        images_BCYX = to_tensor([pair.image for pair in pairs]).to(self.device)
        if self.config.model.reads == "codes":
            assert self.dvae is not None
            return codes(self.dvae, images_BCYX, self.config.run.precision).cpu()
        if self.dvae is not None:
            images_BCYX = reconstruct(self.dvae, images_BCYX, self.config.run.precision)
        return images_BCYX.cpu()

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        images: Iterable[torch.Tensor] = self.kept
        if len(self.kept) * self.size < len(self.captions):
            again = itertools.islice(self._pairs(), len(self.kept), None)
            images = itertools.chain(self.kept, map(self._images, again))
        name = "codes_BI" if self.config.model.reads == "codes" else "images_BCYX"
        images_NE = [self.model.embed_batch({name: batch.to(self.device)}).cpu() for batch in images]
        texts_NE = [
            self.model.embed_texts(self.model.tokens(self.captions[first : first + self.size]).to(self.device)).cpu()
            for first in range(0, len(self.captions), self.size)
        ]
        return retrieval(torch.cat(images_NE).numpy(), torch.cat(texts_NE).numpy(), self.same_caption_ids)
