"""`dalle-doctor`: what this machine can do, a line for each fact, and then each stage tried for a moment."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from dalle.cli import arguments
from dalle.config import Doctor
from dalle.machine.asking import Asked, Told
from dalle.machine.finding import Finding

_COMMAND = "dalle-doctor"
_SELF_TEST = "dalle.cli.doctor.self_test"
_PATIENCE_S = 600.0
"""For all of the self-test, which takes ten seconds where nothing else runs, and a minute or two beside other trainings."""


def main() -> None:
    """Console script."""
    arguments.run(doctor, _COMMAND)


def doctor(argv: list[str] | None = None) -> None:
    """Parse, look, tell; exit status 1 where something does not work."""
    config = arguments.parse(Doctor, _COMMAND, argv)
    from dalle.machine.checkup import findings

    began_s = time.monotonic()
    found: list[Finding] = []
    for part in (findings(Path(config.output)), () if config.quick else self_tested()):
        for finding in part:
            found.append(finding)
            if not config.json:
                print(finding.line(), flush=True)
    counts = {verdict: sum(finding.verdict == verdict for finding in found) for verdict in ("ok", "warn", "fail")}
    seconds = round(time.monotonic() - began_s, 1)
    if config.json:
        print(json.dumps({"findings": [asdict(finding) for finding in found], "counts": counts, "seconds": seconds}))
    else:
        print(f"{counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail, in {seconds} s")
    if counts["fail"]:
        sys.exit(1)


def self_tested() -> Iterator[Finding]:
    """The findings of the self-test, in a temporary folder that is removed."""
    try:
        with tempfile.TemporaryDirectory(prefix="dalle-doctor-", ignore_cleanup_errors=True) as folder:
            asked = Asked(_SELF_TEST, folder, timeout_s=_PATIENCE_S, environment={"WANDB_MODE": "disabled"})
            yield from judged(asked.answers())
    except OSError as error:
        yield Finding("try", "fail", f"no folder to try in: {error.strerror}", "make room, or set TMPDIR to another")


def judged(told: Iterable[Told]) -> Iterator[Finding]:
    """The findings from what the self-test tells: of each stage {"begins": its name}, and then its verdict."""
    stage = "the stages"
    for each in told:
        if "begins" in each:
            stage = each["begins"]
        elif "failed" in each:
            # whatever a stage itself complains of is told by it: this one ended the process
            yield Finding(
                f"try {stage}", "fail", each["failed"], "the lines above may tell why; report it if they do not"
            )
        else:
            yield Finding(f"try {each['stage']}", each["verdict"], each["fact"], each["advice"])
