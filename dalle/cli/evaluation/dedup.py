"""`dalle-dedup`: which evaluation images are among the training images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dalle.cli import arguments
from dalle.config import Dedup
from dalle.outputs.ownership import claimed

if TYPE_CHECKING:
    from dalle.evaluation.features.contract import Features
    from dalle.evaluation.overlap.index import Index

_COMMAND = "dalle-dedup"


def main() -> None:
    """Console script."""
    arguments.plain_warnings(_COMMAND)
    arguments.run(dedup, _COMMAND)


def dedup(argv: list[str] | None = None) -> None:
    """Parse, embed both sets, compare, write."""
    config = arguments.parse(Dedup, _COMMAND, argv)
    from dalle.data.naming import expand

    train, evaluation = (expand(spec, config.images.pipes) for spec in (config.data, config.evaluation))
    with claimed(config.output, _COMMAND, overwrite=config.overwrite) as folder:
        import torch

        from dalle.evaluation.features.named import features
        from dalle.evaluation.overlap.overlap import write_overlap

        network = features(config.features, "cuda" if torch.cuda.is_available() else "cpu")
        # the small set first: what is wrong with either shows sooner
        ours = _embedded(folder / "evaluation", evaluation, network, config)
        theirs = _embedded(folder / "train", train, network, config)
        found = write_overlap(folder, ours, theirs, network, config.threshold, config.shown)
    print(
        f"{found.excluded:,} of {found.evaluation:,} evaluation images are at a cosine of {found.threshold:g} or more to a "
        f"training image, the nearest at {found.closest:.4f}: {folder / 'index.html'}, {folder / 'exclude.txt'}"
    )


def _embedded(folder: Path, shards: list[str], network: Features, config: Dedup) -> Index:
    from dalle.evaluation.overlap.index import embed
    from dalle.outputs.bar import progress_bar

    with progress_bar(unit=" images", desc=folder.name) as bar:
        index = embed(
            folder,
            shards,
            network,
            config.size_px,
            config.images,
            overwrite=config.overwrite,
            told=lambda rows: bar.update(rows - bar.n),
        )
    print(f"{folder.name}: {index.counts.line()}")
    return index
