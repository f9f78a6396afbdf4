"""A bar where somebody sees it."""

import io
import sys
import threading

from dalle.outputs.bar import progress_bar


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


def test_it_begins_no_thread(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    before = threading.active_count()
    with progress_bar(total=1):
        assert threading.active_count() == before
