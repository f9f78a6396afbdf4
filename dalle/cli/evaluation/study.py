"""`dalle-study`: make the page of a human study, or score the answers to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dalle.cli import arguments
from dalle.config import Study
from dalle.outputs.ownership import claimed

_COMMAND = "dalle-study"


def main() -> None:
    """Console script."""
    arguments.run(study, _COMMAND)


def study(argv: list[str] | None = None) -> None:
    """Parse, check; make or score."""
    config = arguments.parse(Study, _COMMAND, argv)
    if config.answers is None:
        _make(config)
    else:
        _score(config)


def _make(config: Study) -> None:
    from dalle.evaluation.study.design import read_design
    from dalle.evaluation.study.making import make
    from dalle.evaluation.study.page import write_page
    from dalle.evaluation.study.results import design_facts
    from dalle.outputs.whole import replace_text

    with claimed(config.output, _COMMAND, overwrite=config.overwrite) as folder:
        made = make(config, _named(config.images, "images"))
        path = folder / "study.json"
        if path.exists() and not config.overwrite and read_design(path).hash != made.design.hash:
            raise ValueError(
                f"output {folder}: holds another study, whose answers only its study.json can tell: name another --output, or "
                "write over it with --overwrite"
            )
        page = write_page(made.design, made.images)
        replace_text(path, json.dumps(made.design.to_json(), indent=1))
        replace_text(folder / "index.html", page)
    if len(made.sizes) > 1:
        print(
            f"dalle-study: images of {', '.join(made.sizes)} pixels are shown at one size, and their sharpness may tell the "
            "models apart",
            file=sys.stderr,
        )
    print(f"{design_facts(made.design)}: {folder / 'index.html'} ({len(page) / 1e6:.1f} MB)")
    print(f"{path} says which image is whose: keep it to yourself, and score with it")


def _score(config: Study) -> None:
    from dalle.evaluation.study.results import printed, score
    from dalle.outputs.whole import replace_text

    results = score(Path(config.output), [Path(name) for name in _named(config.answers, "answers")], config.checks)
    with claimed(config.output, _COMMAND, overwrite=config.overwrite) as folder:
        replace_text(folder / "results.json", json.dumps(results, indent=1))
    print(printed(results))
    print(f"results: {folder / 'results.json'}")


def _named(spec: str | None, setting: str) -> list[str]:
    assert spec is not None
    from dalle.data.naming import names

    try:
        return names(spec)
    except ValueError:
        raise ValueError(
            f"{setting} {spec!r}: nothing is there; name a folder, with a backslash before a space in it"
        ) from None
