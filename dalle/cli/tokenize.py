"""`dalle-tokenize`: run the dVAE once over image-text shards and write token shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from dalle.cli import arguments
from dalle.config import Tokenize


def main() -> None:
    """Console script."""
    arguments.run(tokenize, "dalle-tokenize")


def tokenize(argv: list[str] | None = None) -> None:
    """Parse, check, encode."""
    config = arguments.parse(Tokenize, "dalle-tokenize", argv)
    from dalle.data.shards import expand
    from dalle.models.folder import load_dvae, read_header

    header = read_header(config.dvae)
    expand(config.data)
    folder = arguments.check_output(config.output)

    import torch
    from tqdm import tqdm

    from dalle.data.pairs import Counts, to_tensor
    from dalle.data.tokens import Meta, TokenWriter

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dvae = load_dvae(config.dvae, device).to(memory_format=torch.channels_last)
    meta = Meta(dvae.config.grid, dvae.config.codebook_size, header["hash"])
    writer = TokenWriter(folder, meta, config.pairs_per_shard)
    counts = Counts()
    with tqdm(unit=" images", disable=not sys.stderr.isatty()) as bar:
        for pairs in _batches(config, dvae.config.image_size_px, counts):
            images_BCYX = to_tensor([pair.image for pair in pairs]).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
                codes_BYX = dvae.encode(images_BCYX)
            for pair, codes_I in zip(pairs, codes_BYX.flatten(1).cpu().numpy(), strict=True):
                writer.add(codes_I, pair.captions)
            bar.update(len(pairs))
    sizes = writer.close().shard_sizes
    skipped = (
        f"; of {counts.read:,} samples {counts.filtered:,} were filtered out, {counts.num_bad:,} could not be read"
    )
    print(f"{sum(sizes):,} pairs in {len(sizes)} token shards: {folder}" + (skipped if len(counts.bad) else ""))


def _batches(config: Tokenize, size_px: int, counts) -> Iterator[list]:
    from dalle.data.pairs import read_pairs

    augmentation = config.images.augmentation if config.crops > 1 else "none"
    images = replace(config.images, augmentation=augmentation)
    pairs: list = []
    for crop in range(config.crops):
        for pair in read_pairs(config.data, images, size_px, config.seed, epoch=crop, counts=counts):
            pairs.append(pair)
            if len(pairs) == config.batch_size:
                yield pairs
                pairs = []
    if pairs:
        yield pairs
