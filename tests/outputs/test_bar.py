"""A bar where somebody sees it."""

import io
import subprocess
import sys

from dalle.outputs.bar import progress_bar
from tests.conftest import clean_environment


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_is_shown_on_a_terminal_alone(monkeypatch, capsys):
    with progress_bar(total=2, unit=" images") as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress_bar(total=2, unit=" images") as bar:
        bar.update(2)
    assert "2/2" in terminal.getvalue()


def test_it_goes_on_after_a_leap(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress_bar(total=200_000, mininterval=0) as bar:
        bar.update(100_000)
        bar.update(1)
        assert "100001/200000" in terminal.getvalue()


def test_it_begins_no_thread():
    code = "import threading; from dalle.outputs.bar import progress_bar; bar = progress_bar(total=1)\n"
    code += "print(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean_environment()
    )
    assert done.stdout == "1\n"
