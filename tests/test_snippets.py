"""The Python of the documents runs as it stands there, from top to bottom of a page, on small models and data."""

import io
import re
import shutil
from contextlib import redirect_stdout

import pytest
from PIL import Image

from tests.conftest import ROOT, threads

RUN = ("README", "python", "tutorial", "sampling", "captioning", "filtering", "overlap")
ELSEWHERE = {
    "serving": "tests/web/test_serving_page.py",
    "stackgan-data": "its encoder is a package that is no part of the extras",
    "study": "it takes people's answers",
}


def _pages():
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _snippets(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_each_page_with_python_is_run():
    assert {path.stem for path in _pages() if _snippets(path)} == {*RUN, *ELSEWHERE}


@pytest.fixture(scope="module")
def place(models, tmp_path_factory):
    """A folder with all that the pages name. A folder stands before the ready model of its name."""
    place = tmp_path_factory.mktemp("snippets")
    for name in ("icons", "demo", "runs/mine"):
        for part in ("prior", "dvae", "clip"):
            shutil.copytree(
                models / part, place / name / part, ignore=shutil.ignore_patterns("checkpoints", "pictures")
            )
    (place / "pictures").mkdir()
    for number in range(12):
        Image.new("RGB", (64, 48), (20 * number, 90, 160)).save(place / f"pictures/{number}.png")
        (place / f"pictures/{number}.txt").write_text(f"a picture of colour {number}")
    for name in ("cat.png", "picture.png"):
        Image.linear_gradient("L").convert("RGB").save(place / name)
    (place / "overlap").mkdir()
    (place / "overlap/exclude.txt").write_text("# a list\nvalid-000.tar/000001\n")
    (place / "overlap/pairs.jsonl").write_text('{"evaluation": {"shard": "valid-000.tar", "key": "000001"}}\n')
    return place


@pytest.mark.filterwarnings("ignore")  # the captions are of other models
@pytest.mark.parametrize("name", RUN)
def test_it_runs(name, place, monkeypatch):
    page = ROOT / "README.md" if name == "README" else ROOT / f"docs/{name}.md"
    monkeypatch.chdir(place)
    known, printed = {}, io.StringIO()
    with redirect_stdout(printed), threads(1):
        for number, snippet in enumerate(_snippets(page), 1):
            exec(compile(snippet, f"{page.name}, snippet {number}", "exec"), known)
    assert printed.getvalue() or list(place.glob("*1.png"))
