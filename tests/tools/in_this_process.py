"""What stands in for a benchmark's process in tests."""

import importlib
import sys

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
sides = importlib.import_module("benchmarks.sides")


class InThisProcess:
    """A `Side` without a process."""

    peak_memory_bytes = 5

    def __init__(self, name, build, keep_memory):
        self.calls = build()

    def call(self, what):
        return sides.timed(self.calls[what])

    def close(self):
        pass
