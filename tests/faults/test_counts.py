"""The counts are what happened, and the page that quotes them points at tests that there are."""

import re
from contextlib import nullcontext
from types import SimpleNamespace

from tests.conftest import ROOT
from tests.faults.frame import counts


def test_outcomes_are_counted_told_and_added_up(monkeypatch):
    capsys = SimpleNamespace(disabled=nullcontext)
    monkeypatch.setattr(counts, "_told", {})
    assert counts.table() == []
    for name in ("export", "sample"):
        with counts.counted("killed", name, capsys) as outcomes:
            outcomes["whole"] += 1200
    with counts.counted("killed", "sample", capsys) as outcomes:
        outcomes["FAILED"] += 1
    with counts.counted("ENOSPC", "sample", capsys) as outcomes:
        outcomes["whole"] += 2
    assert counts.table()[2:] == [
        "| killed | export | 1,200 | 1,200 whole |",
        "| killed | sample | 1,201 | 1 FAILED, 1,200 whole |",
        "| ENOSPC | sample | 2 | 2 whole |",
        "| killed | all | 2,401 | 1 FAILED, 2,400 whole |",
        "| ENOSPC | all | 2 | 2 whole |",
    ]


def test_the_page_points_at_tests_that_there_are():
    page = (ROOT / "docs/trust.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 30
    for file, test in named:
        if file.startswith("tools/bench"):
            continue
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, (file, test)
