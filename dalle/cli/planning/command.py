"""`dalle-plan`: what a prior's training will take on given machines, told before it is begun."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle.cli import arguments
from dalle.config import Plan
from dalle.config.checks import require
from dalle.outputs.ownership import claimed_file

if TYPE_CHECKING:
    from dalle.planning.plan import Planned
    from dalle.planning.search import Found

_COMMAND = "dalle-plan"


def main() -> None:
    """Console script."""
    arguments.run(plan, _COMMAND)


def plan(argv: list[str] | None = None) -> None:
    """Parse, plan, tell; exit status 1 where the training does not fit, or nothing that a search looked at."""
    config = arguments.parse(Plan, _COMMAND, argv)
    picture = None if config.timeline is None else Path(config.timeline)
    if picture is not None:
        require(
            config.overwrite or not picture.exists(),
            f"timeline {picture}: is there already; give --overwrite, or another name",
        )
        require(picture.parent.is_dir(), f"timeline {picture}: there is no folder {picture.parent}; make it first")
    from dalle.planning.layout import Layout, Sizes
    from dalle.planning.plan import Machines, Planned
    from dalle.planning.search import search
    from dalle.planning.told import lines

    machines = Machines.of(config)
    layout = Layout(Sizes(config.model), config.run, config.optimizer, config.machines, config.gpus)
    found = asked = Planned(layout, machines)
    fits, figures = found.fits, found.figures()
    searched = search(layout, machines) if config.search or not found.fits else None
    if config.search and searched is not None and searched.fastest is not None:
        found, fits, figures = searched.fastest, True, searched.fastest.figures()
    if config.json:
        print(json.dumps(figures | {"search": None if searched is None else _figures(searched)}))
    else:
        print("\n".join([*lines(figures), *([] if searched is None else _told(searched, asked, config.search))]))
    if picture is not None:
        from dalle.planning.picture import draw

        with claimed_file(picture, _COMMAND, config.overwrite) as path:
            draw(found.update, path)
    if not fits:
        sys.exit(1)


def _figures(searched: Found) -> dict[str, Any]:
    kinds = {"fastest": searched.fastest, "least": searched.least}
    return {"layouts": searched.considered} | {
        kind: None if found is None else found.figures() for kind, found in kinds.items()
    }


def _told(searched: Found, asked: Planned, above: bool) -> list[str]:
    """What a search found; beside it what was asked for, where the lines above are of the fastest."""
    from dalle.planning.plan import settings
    from dalle.planning.told import gb, options

    count = f"of {searched.considered:,} layouts"
    if searched.fastest is not None:
        best = searched.fastest
        told = f"{gb(best.peak_bytes)} GB at the peak, {best.update.seconds:.3f} s an update"
        lines = [f"the fastest that fits, {count}: {told}{', as above' if above else ''}"]
        if not above:
            return [*lines, f"  {options(settings(best.layout))}"]
        fits = "" if asked.fits else ", which does not fit"
        beside = f"as asked for: {gb(asked.peak_bytes)} GB at the peak{fits}, {asked.update.seconds:.3f} s an update"
        return [*lines, beside, f"  {options(settings(asked.layout))}"]
    if searched.least is None:
        return [f"nothing fits, {count}"]
    least = searched.least
    told = f"the least needs {gb(least.peak_bytes)} GB at the peak; take GPUs with more memory, more of them, or a smaller model"
    return [f"nothing fits, {count}: {told}", f"  {options(settings(least.layout))}"]
