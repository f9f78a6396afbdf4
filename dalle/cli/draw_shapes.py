"""`dalle-draw-shapes`: write the drawn data set as webdataset shards."""

from __future__ import annotations

from dalle.cli import arguments
from dalle.config import DrawShapes
from dalle.outputs.ownership import claimed


def main() -> None:
    """Console script."""
    arguments.run(draw_shapes, "dalle-draw-shapes")


def draw_shapes(argv: list[str] | None = None) -> None:
    """Parse, check, draw."""
    config = arguments.parse(DrawShapes, "dalle-draw-shapes", argv)
    with claimed(config.output, "dalle-draw-shapes", ("train-*.tar", "valid-*.tar")) as folder:
        from dalle.data.shapes import write_shards

        paths = write_shards(
            folder,
            num_train=config.num_train,
            num_valid=config.num_valid,
            size_px=config.size_px,
            seed=config.seed,
            num_workers=config.workers,
        )
    print(
        f"{config.num_train:,} training and {config.num_valid:,} validation drawings in {len(paths)} shards: {folder}"
    )
