"""The notebook: run from top to bottom in a kernel of its own, as somebody runs it who has just opened it."""

import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("nbclient", reason="NOT RUN: the notebook; pip install 'dalle[docs]'")
pytest.importorskip("ipykernel", reason="NOT RUN: the notebook; pip install 'dalle[docs]'")

import nbformat

PATH = ROOT / "docs/notebook.ipynb"


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "tools/documentation"))
    try:
        from run_notebook import run
    finally:
        sys.path.remove(str(ROOT / "tools/documentation"))
    with pytest.MonkeyPatch.context() as patch:
        # nothing is fetched, and nothing of a person's own settings is read
        for name, value in {"HF_HUB_OFFLINE": "1", "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython"))}.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(ROOT))
        return run(PATH)


def _kinds(notebook):
    """Of each cell, what it shows: text, or a picture."""
    shown = [
        [] if cell.cell_type != "code" else [sorted(o.get("data", {"text": 0})) for o in cell.outputs]
        for cell in notebook.cells
    ]
    return shown


def test_it_runs_and_shows_what_is_kept_of_it(ran, kept):
    assert _kinds(ran) == _kinds(kept)
    pictures = sum(kind == ["image/png"] for cell in _kinds(kept) for kind in cell)
    assert pictures == 5


def _printed(notebook, of):
    (text,) = [
        "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code" and of in cell.source
    ]
    return text


def test_what_it_says_of_the_drawings_holds(ran):
    ranks = [line.split()[1] for line in _printed(ran, "drawing.score").splitlines()]
    assert ranks == ["1:", "2:", "3:", "4:"]
    scores = [float(line.split("score ")[1].split(",")[0]) for line in _printed(ran, "drawing.score").splitlines()]
    assert scores == sorted(scores, reverse=True)
    first, *others = _printed(ran, "captioning import score").splitlines()
    # the caption that was drawn, by far: nats, each a factor of e, where others trail by fifteen
    assert first.endswith("a red circle above a blue square")
    assert float(first.split()[1]) > 5 + max(float(line.split()[1]) for line in others)
    assert _printed(ran, "read_drawing").startswith("a red circle above a blue square ")


def test_nothing_of_the_machine_is_kept(kept):
    text = PATH.read_text(encoding="utf-8")
    assert "/home" not in text and "site-packages" not in text and "Traceback" not in text
    assert all(output.get("name") != "stderr" for cell in kept.cells for output in cell.get("outputs", []))
    assert all(cell.outputs or "import dalle" in cell.source for cell in kept.cells if cell.cell_type == "code")
