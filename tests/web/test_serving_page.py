"""What docs/serving.md says: its program runs, and its limits are those that are there."""

import re

from dalle.config import Serve
from dalle.sampling.drawing import read_drawing
from tests.conftest import ROOT

TEXT = (ROOT / "docs/serving.md").read_text(encoding="utf-8")


def test_the_program_draws(server, tmp_path, monkeypatch):
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(program.replace("http://127.0.0.1:8000", server.address), {})
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("a-red-circle-above-a-blue-square-")
    assert read_drawing(file).rank == 1


def test_the_limits_are_the_defaults():
    rows = re.findall(r"^\| (`--.*?) \|.*\| ([\d, ]+) \|$", TEXT, flags=re.MULTILINE)
    told = {}
    for names, values in rows:
        told |= dict(zip(re.findall(r"--(\w+)", names), map(float, values.split(", ")), strict=True))
    assert told == {name: getattr(Serve(), name) for name in told}
    limits = {"most_n", "most_waiting", "seconds", "most_caption_chars", "upload_mb", "upload_megapixels"}
    assert set(told) == limits
    assert f"{Serve().chunk} without another wish" in TEXT
