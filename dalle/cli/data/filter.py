"""`dalle-filter`: look at a person's own pictures and captions, and write shards of those that can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dalle.cli import arguments
from dalle.config import Filter

_COMMAND = "dalle-filter"


def main() -> None:
    """Console script."""
    arguments.run(filter_pictures, _COMMAND)


def filter_pictures(argv: list[str] | None = None) -> None:
    """Parse, prepare, say what was found."""
    config = arguments.parse(Filter, _COMMAND, argv, positional=("source", "output"))
    from dalle.data.sources.prepare import Choice, prepare
    from dalle.data.sources.prepared import PAGE

    with counted_images() as told:
        prepared = prepare(
            config.source,
            Path(config.output),
            config.filters,
            config.valid_share,
            config.seed,
            choice=Choice(config.captions, config.image_column, config.caption_column),
            workers=config.workers,
            overwrite=config.overwrite,
            told=told,
        )
    for note in prepared.notes:
        print(note)
    valid = f", {prepared.num_valid:,} held out in {prepared.valid}" if prepared.valid else ""
    images = f"image{'s' * (prepared.num_train != 1)}"
    print(f"{prepared.num_train:,} {images} to train on in {prepared.train}{valid}; {Path(config.output) / PAGE}")


@contextmanager
def counted_images() -> Iterator[Callable[[str, int], None]]:
    """A bar on a terminal, moved by what `prepare` tells."""
    from dalle.outputs.bar import progress_bar

    with progress_bar(unit=" images") as bar:

        def told(what: str, number: int) -> None:
            bar.set_description(what, refresh=False)
            bar.update(number - bar.n)

        yield told
