"""`dalle-tokenize`: run the dVAE once over image-text shards and write token shards."""

from __future__ import annotations

import sys
from dataclasses import replace

from dalle.cli import arguments
from dalle.config import Tokenize


def main() -> None:
    """Console script."""
    arguments.run(tokenize, "dalle-tokenize")


def tokenize(argv: list[str] | None = None) -> None:
    """Parse, check, encode."""
    config = arguments.parse(Tokenize, "dalle-tokenize", argv)
    from dalle.data.naming import expand
    from dalle.models.folder import load_dvae, read_config, read_header

    model, digest = read_config(config.dvae, "dvae"), read_header(config.dvae)["hash"]
    expand(config.data, config.images.pipes)
    folder = arguments.check_output(config.output)

    import torch
    from tqdm import tqdm

    from dalle.data.counts import Counts
    from dalle.data.loading import load
    from dalle.data.pairs import PairPasses
    from dalle.data.tokens import Meta, TokenWriter

    images = replace(config.images, augmentation=config.images.augmentation if config.crops > 1 else "none")
    passes = PairPasses(config.data, images, model.image_size_px, config.batch_size, config.crops, config.seed)
    batches = load(passes, workers=1, prefetch_factor=2)  # they are decoded while the dVAE is loaded, too
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dvae = load_dvae(config.dvae, device).to(memory_format=torch.channels_last)
    meta = Meta(model.grid, model.codebook_size, digest, precision=config.precision)
    with (
        TokenWriter(folder, meta, config.pairs_per_shard) as writer,
        tqdm(unit=" images", disable=not sys.stderr.isatty()) as bar,
    ):
        for batch in batches:
            if isinstance(batch, Counts):
                counts = batch
                continue
            with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
                codes_BYX = dvae.encode(batch["images_BCYX"].to(device))
            for codes_I, captions in zip(codes_BYX.flatten(1).cpu().numpy(), batch["captions"], strict=True):
                writer.add(codes_I, captions)
            bar.update(len(codes_BYX))
        sizes = writer.close(counts).shard_sizes
    print(f"{sum(sizes):,} pairs in {len(sizes)} token shards: {folder}; {counts.line()}")
