"""`dalle-caption IMAGE --captions FILE [--json]`: what the joint model thinks of each caption for an image."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from dalle.cli import arguments
from dalle.config import Caption
from dalle.config.checks import printable

if TYPE_CHECKING:
    from dalle.sampling.captioning import ScoredCaption


def main() -> None:
    """Console script."""
    arguments.plain_warnings("dalle-caption")
    arguments.run(caption, "dalle-caption")


def caption(argv: list[str] | None = None) -> None:
    """Parse, check, score, print."""
    config = arguments.parse(Caption, "dalle-caption", argv, positional="image")

    from dalle.sampling.captioning import read_captions_file, score
    from dalle.sampling.loading import load_transformer
    from dalle.sampling.prompt import read_image

    captions = read_captions_file(config.captions)
    image = read_image(config.image, "image")
    pipeline = load_transformer(config.model, config.dvae, config.prior, rerank=False, precision=config.precision)
    scored = score(pipeline, image, captions, config.rank_by, config.batch_size, config.precision)
    if config.json:
        facts = {"image": config.image, "rank_by": config.rank_by, "precision": config.precision}
        rows = [asdict(row) for row in scored]
        print(json.dumps({**facts, "models": pipeline.hashes, "captions": rows}, indent=2, ensure_ascii=False))
    else:
        _print(scored, config.rank_by)


def _print(scored: list[ScoredCaption], rank_by: str) -> None:
    heads = ["rank", "ln p(image|caption)", "gain", "ln p(caption)", "ln p(caption, image)"]
    print("  ".join([*heads, "caption"]))
    for row in scored:
        numbers = (row.ln_p_image, row.gain, row.ln_p_text, row.ln_p_joint)
        cells = [str(row.rank), *(f"{n:.2f}" for n in numbers)]
        print(
            "  ".join(
                [
                    *(c.rjust(len(h)) for c, h in zip(cells, heads, strict=True)),
                    printable(" ".join(row.caption.split())),
                ]
            )
        )
    by = {"image": "ln p(image|caption)", "joint": "ln p(caption, image)"}[rank_by]
    print(f"in nats, ranked by {by}; gain: over ln p(image|no caption), known to priors trained with caption_dropout")
