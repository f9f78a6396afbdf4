"""`dalle-draw-shapes`: write the drawn data set as webdataset shards, and captions to evaluate models of it by."""

from __future__ import annotations

import json
from pathlib import Path

from dalle.cli import arguments
from dalle.config import DrawShapes
from dalle.outputs.ownership import claimed, claimed_file

_COMMAND = "dalle-draw-shapes"


def main() -> None:
    """Console script."""
    arguments.run(draw_shapes, _COMMAND)


def draw_shapes(argv: list[str] | None = None) -> None:
    """Parse, check, draw."""
    config = arguments.parse(DrawShapes, _COMMAND, argv)
    if config.skills is not None:
        if not config.skills.endswith(".jsonl"):
            raise ValueError(f"skills {config.skills}: must end in .jsonl, by which dalle-sample knows what it holds")
        with claimed_file(config.skills, _COMMAND, config.overwrite) as path:
            _write_skills(config, path)
    if config.output is not None:
        _draw(config, config.output)


def _write_skills(config: DrawShapes, path: Path) -> None:
    from dalle.evaluation.compositional.skills import SKILLS, skill_captions
    from dalle.outputs.whole import replace_text

    lines = skill_captions(config.skill_captions, config.seed)
    replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    print(f"{len(lines)} captions for {len(SKILLS)} skills: {path}")


def _draw(config: DrawShapes, output: str) -> None:
    with claimed(output, _COMMAND, ("train-*.tar", "valid-*.tar")) as folder:
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
