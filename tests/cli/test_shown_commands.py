"""The commands on the pages that take a moment, run as they are shown, where what they name is there: the ready model stands in for a
trained one. That all others parse is seen to by tests/test_configs.py."""

import importlib
import json
import re
import shlex
import sys

import pytest
from PIL import Image

import dalle
from dalle.ready.names import ready_names, weights_folder
from dalle.sampling.drawing import save_drawing
from tests.conftest import ROOT
from tests.test_configs import PAGES, _shown_lines

pytestmark = pytest.mark.skipif("shapes" not in ready_names(), reason="a checkout without weights")
SCRIPTS = dict(re.findall(r'^(dalle[\w-]*) = "(.*)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))
RUN = (
    "dalle-describe",
    "dalle-filter",
    "dalle-completion",
    "dalle-draw-shapes",
    "dalle-export",
    "dalle-caption",
    "dalle-sample",
)
NOT_THERE = r"owner/name|--shortlist|--model model|captions\.csv"
"""A repository, a reader of codes, a folder and a table that nobody has here."""
FEW = ["--n", "4", "--keep", "4", "--sampling.chunk", "4", "--processes", "1", "--overwrite"]
FEWER = {
    "dalle-sample": FEW,
    "dalle-draw-shapes": [
        "--num_train",
        "8",
        "--num_valid",
        "4",
        "--skill_captions",
        "1",
        "--workers",
        "1",
        "--overwrite",
    ],
}
"""So many that it takes a moment."""


def _words(line):
    """Of a line of a page, without what stands behind it, and whether its output goes to a file."""
    line = re.split(r" +# ", line)[0]
    line, _, file = line.partition(" > ")
    return shlex.split(line), bool(file)


def _kind(line):
    """What makes it another than others: its command, its options but for how many and where, and whether the model has a name."""
    names = {word.partition("=")[0] for word in _words(line)[0] if word.startswith("--")}
    return line.split()[0], frozenset(names - {"--n", "--keep", "--output", "--processes", "--sampling.chunk"})


SHOWN = {
    " ".join(re.split(r" +# ", line)[0].split())
    for page in PAGES
    for line in _shown_lines(page)
    if line.split()[0] in RUN and not re.search(NOT_THERE, line)
}
LINES = sorted({_kind(line): line for line in sorted(SHOWN, reverse=True)}.values())
"""One of each kind."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With all that the pages name: pictures, captions, and finished models."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "runs").mkdir()
    for name in ("demo", "runs/mine", "MODEL"):
        (folder / name).symlink_to(weights_folder() / "shapes")
    captions = ["a red circle", "a blue square above a green cross"]
    (folder / "captions.txt").write_text("\n".join(captions))
    (folder / "captions.jsonl").write_text("".join(json.dumps({"caption": caption}) + "\n" for caption in captions))
    (folder / "evaluation_metadata.jsonl").write_text(json.dumps({"prompt": captions[0], "tag": "one"}))
    (folder / "pictures").mkdir()
    for number in range(12):
        Image.new("RGB", (96, 80), (20 * number, 100, 200)).save(folder / f"pictures/{number}.png")
        (folder / f"pictures/{number}.txt").write_text(f"{number + 2} shades of blue on a wall")
    for name in ("cat.png", "picture.png"):
        (folder / name).symlink_to("pictures/3.png")
    (first,) = dalle.load("shapes").generate(captions[0], n=1, chunk=4)
    for place in ("samples", "kites"):
        (folder / place / "images").mkdir(parents=True)
        save_drawing(first, folder / place / "images/one.png")
    return folder


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:60])
def test_a_shown_command_runs(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words, to_file = _words(line)
    few = [] if "--again" in words or "--list" in words else FEWER.get(words[0], [])
    at = words.index("--") if "--" in words else len(words)
    # drawings that lie in a folder which no command has marked as its own are another's
    output = ["--output", "drawings"] if words[0] == "dalle-sample" and few and "--output" not in words else []
    monkeypatch.setattr(sys, "argv", [*words[:at], *few, *output, *words[at:]])
    module, _, name = SCRIPTS[words[0]].partition(":")
    try:
        getattr(importlib.import_module(module), name)()
    except SystemExit as left:
        pytest.fail(f"exit code {left.code}: {capsys.readouterr().err}")
    told = capsys.readouterr()
    assert "Traceback" not in told.err and (told.out.strip() or not to_file)


def test_there_is_something_to_run():
    assert len(LINES) > 15 and {line.split()[0] for line in LINES} == set(RUN)
