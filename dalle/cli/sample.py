"""`dalle-sample`: candidates for a caption, ranked, as a grid and a gallery."""

from __future__ import annotations

import sys

from dalle.cli import arguments
from dalle.config import Sample


def main() -> None:
    """Console script."""
    arguments.run(sample, "dalle-sample")


def sample(argv: list[str] | None = None) -> None:
    """Parse, check, draw, write."""
    config = arguments.parse(Sample, "dalle-sample", argv, positional="caption")
    folder = arguments.check_output(config.output)

    from tqdm import tqdm

    from dalle.data.images import decode
    from dalle.sampling.gallery import write_gallery, write_grid
    from dalle.sampling.pipeline import load

    prompt = None
    if config.prompt_image is not None:
        try:
            with open(config.prompt_image, "rb") as file:
                prompt = decode(file.read())
        except OSError as error:
            raise ValueError(f"prompt_image {config.prompt_image}: {error.strerror}") from None
    pipeline = load(
        config.model, config.dvae, config.prior, config.clip, rerank=config.rerank or config.clip is not None
    )
    with tqdm(total=config.n, unit=" images", disable=not sys.stderr.isatty()) as bar:
        drawings = pipeline.generate(
            config.caption, config.n, config.keep, config.seed, config.sampling, prompt, config.rows, bar.update
        )
    write_grid(drawings, folder / "grid.png", title=None)
    facts = {"candidates": f"{config.n:,}", **{name: digest[:16] for name, digest in pipeline.hashes.items()}}
    write_gallery({config.caption: drawings}, folder, config.caption, facts)
    print(f"the best {len(drawings)} of {config.n}: {folder / 'grid.png'} and {folder / 'index.html'}")
