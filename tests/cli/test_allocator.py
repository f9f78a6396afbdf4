"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, clean_environment

_FAULTS = """
import resource, sys
from dalle.cli.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(9):
    block = bytearray(64 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_blocks_are_mapped_once():
    def faults(mode):
        command = [sys.executable, "-c", _FAULTS, mode]
        done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True)
        return int(done.stdout)

    # nine blocks of 64 MB, two alive at a time, in pages of 4 kB unless the kernel gives huge ones to all
    given_back = faults("given back")
    if given_back < 20_000:
        pytest.skip("the kernel gives huge pages to all: too few faults to tell")
    assert faults("kept") < 0.7 * given_back
