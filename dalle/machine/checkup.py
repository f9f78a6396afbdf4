"""All that is looked at, in the order in which one thing stands on another."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dalle.machine.compiler import compiler_findings
from dalle.machine.devices import device_findings
from dalle.machine.finding import Finding
from dalle.machine.group import deepspeed_finding, group_findings
from dalle.machine.memory import (
    core_quota,
    cpu_finding,
    look_at_memory,
    memory_finding,
    num_cores,
    processor_name,
)
from dalle.machine.network import hub_finding
from dalle.machine.packages import declared, package_findings, python_finding
from dalle.machine.places import folder_finding, open_files_finding, shared_memory_finding

_GB = 1_000_000_000


def findings(output: Path) -> Iterator[Finding]:
    """Each fact as soon as it is known. output: folder where runs would go."""
    wanted = declared()
    yield python_finding(wanted)
    yield from package_findings(wanted)
    load = os.getloadavg()[0]  # before what follows is a load itself
    yield cpu_finding(num_cores(), core_quota(), load, processor_name())
    yield memory_finding(look_at_memory())
    yield folder_finding("disk", output, _GB // 2, 20 * _GB, "make room, or run with --output on another disk")
    temporary = Path(tempfile.gettempdir())
    yield folder_finding("temporary folder", temporary, _GB // 10, 2 * _GB, "make room, or name another with TMPDIR")
    yield shared_memory_finding()
    yield open_files_finding()
    gpus = 0
    for each in device_findings():
        gpus += each.name.startswith("gpu ")
        yield each
    yield from compiler_findings()
    yield deepspeed_finding()
    yield from group_findings(gpus)
    yield hub_finding()
