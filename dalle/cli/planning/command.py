"""`dalle-plan`: what a prior's training will take on given machines, told before it is begun."""

from __future__ import annotations

import json
import sys

from dalle.cli import arguments
from dalle.config import Plan

_COMMAND = "dalle-plan"


def main() -> None:
    """Console script."""
    arguments.run(plan, _COMMAND)


def plan(argv: list[str] | None = None) -> None:
    """Parse, plan, tell; exit status 1 where the training does not fit."""
    config = arguments.parse(Plan, _COMMAND, argv)
    from dalle.planning.layout import Layout, Sizes
    from dalle.planning.plan import Machines, Planned
    from dalle.planning.told import lines

    layout = Layout(Sizes(config.model), config.run, config.optimizer, config.machines, config.gpus)
    found = Planned(layout, Machines.of(config))
    figures = found.figures()
    if config.json:
        print(json.dumps(figures))
    else:
        print("\n".join(lines(figures)))
    if not figures["fits"]:
        sys.exit(1)
