"""What a command says stops no work, and is not lost in silence. In processes of their own, whose streams are broken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dalle.outputs.streams import kept_open
from tests.conftest import ROOT, clean_environment

_COMMAND = """
import os, sys
from pathlib import Path
from dalle.cli import arguments

def main():
    for _ in range(3):
        print("said", file=sys.stderr, flush=True)
        print("x" * (9000, 200_000)["much" in sys.argv], flush="flush" in sys.argv)  # more than buffers hold
    with open(sys.argv[1], "w") as file:
        file.write("work")
        file.flush()
        os.write(2, b"of a library")
        os.write(1, b"of a library")
    if "wrong" in sys.argv:
        raise ValueError("it is wrong")

arguments.run(main, "dalle-x")
"""

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def _run(output: Path, redirected: str, *words: str) -> subprocess.CompletedProcess:
    environment = {**clean_environment(), "PYTHONPATH": str(ROOT)}
    shell = ["sh", "-c", f'"$@" {redirected}', "sh", sys.executable, "-c", _COMMAND, str(output), *words]
    return subprocess.run(shell, env=environment, capture_output=True, text=True)


@needs_full
@pytest.mark.parametrize("words", [(), ("flush",)], ids=["at the end", "at once"])
def test_words_that_find_no_room_are_told_of_after_the_work(tmp_path, words):
    done = _run(tmp_path / "out", ">/dev/full", *words)
    assert (tmp_path / "out").read_text() == "work"
    told = done.stderr.replace("said\n", "").replace("of a library", "").splitlines()
    assert told == [
        "dalle-x: standard output: No space left on device: its work is done, its last words are lost; send it elsewhere"
    ]
    assert done.returncode == 2


@needs_full
def test_a_log_on_a_full_disk_ends_no_work(tmp_path):
    done = _run(tmp_path / "out", "2>/dev/full", "flush")
    assert (done.returncode, (tmp_path / "out").read_text()) == (0, "work") and done.stdout.count("x") == 27000


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_ends_no_work_and_no_file_takes_its_number(tmp_path, closed):
    done = _run(tmp_path / "out", closed)
    assert (done.returncode, (tmp_path / "out").read_text()) == (0, "work")
    assert _run(tmp_path / "out", closed, "wrong").returncode == 2


def test_a_reader_who_goes_away_ends_it(tmp_path):
    """As is the custom, such as in `dalle-describe ... | head`."""
    done = _run(tmp_path / "out", "| head -c 1", "flush", "much")
    assert not (tmp_path / "out").exists() and done.stderr.replace("said\n", "") == ""


def test_what_a_terminal_would_obey_is_written_out_of_what_is_printed(capfd):
    """Whoever named a file that is told of. A bar may move: it is on the standard error."""
    text = "\x1b[2Ja\r\x07b\x9bc\udc80\td é 北京 \u202e👩\u200d🔬\n"
    with kept_open():
        print(text, end="")
        print(json.dumps({"caption": text}))
        print("\r\x1b[A", end="", file=sys.stderr)
    out, err = capfd.readouterr()
    told, as_json = out.splitlines()
    assert told == r"\u001b[2Ja\u000d\u0007b\u009bc\udc80" + "\td é 北京 \u202e👩\u200d🔬"
    assert json.loads(as_json) == {"caption": text} and err == "\r\x1b[A"
