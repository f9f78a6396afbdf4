"""What people read: links that lead somewhere, lines that fit a terminal, a log that can be taken in at a glance."""

import re

import pytest

from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MOST_CHARACTERS = 120
A_SCREEN = 45


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documents_link_to_what_exists(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for target, heading in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        other = page.parent / target if target else page
        assert heading in _anchors(other.read_text(encoding="utf-8")), f"{target}#{heading}"


def _anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_fit(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not {n: len(line) for n, line in enumerate(lines, 1) if len(line) > MOST_CHARACTERS}


def test_the_log_has_dated_entries_of_a_screen_at_most():
    _, *entries = re.split(r"^## ", (ROOT / "docs/LOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    dates = [entry[:10] for entry in entries]
    assert dates and all(re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", date) for date in dates)
    assert dates == sorted(dates, reverse=True)
    assert not {entry.splitlines()[0]: n for entry in entries if (n := len(entry.rstrip().splitlines())) > A_SCREEN}
