"""Freed memory stays with the process, and threads that wait sleep soon."""

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


_WAITS = """
import sys
from dalle.cli import arguments
assert "torch" not in sys.modules
arguments.run(lambda: __import__("torch"), "dalle-sample")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
@pytest.mark.parametrize(
    ("said", "found"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=["by itself", "as it was set", "by OpenMP's own policy"],
)
def test_how_long_a_thread_looks_before_it_sleeps(said, found):
    """As the library tells that PyTorch brings."""
    kept = {n: v for n, v in clean_environment().items() if n not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    surroundings = {**kept, "OMP_DISPLAY_ENV": "VERBOSE", **said}
    command = [sys.executable, "-c", _WAITS]
    told = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=True).stderr
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("NOT TESTED: this PyTorch has another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{found}'" in told
