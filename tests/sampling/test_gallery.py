"""Pictures and pages: facts inside the PNG, escaped captions, links that exist."""

import json
import re

import pytest
from PIL import Image

from dalle.sampling.gallery import Drawing, make_grid, save_drawing, write_gallery, write_grid, write_sheet

CAPTION = 'a <b>red</b> "circle" & ü / ../../x'


def _drawings(count, caption=CAPTION, scored=True):
    return [
        Drawing(
            Image.new("RGB", (32, 32), (i * 20, 0, 0)),
            caption,
            0.9 - i / 10 if scored else None,
            7 + i,
            i + 1,
            {"n": 4},
        )
        for i in range(count)
    ]


def test_a_png_says_what_it_is(tmp_path):
    save_drawing(_drawings(1)[0], tmp_path / "one.png")
    image = Image.open(tmp_path / "one.png")
    assert image.size == (32, 32)
    assert image.text["caption"] == CAPTION
    assert json.loads(image.text["dalle"]) == {"seed": 7, "rank": 1, "score": 0.9, "settings": {"n": 4}}


def test_grid_shows_every_image_enlarged(tmp_path):
    drawings = _drawings(5)
    grid = make_grid(drawings, columns=3)
    colours = {colour for _, colour in grid.getcolors(10**6)}
    assert {(i * 20, 0, 0) for i in range(5)} <= colours
    assert grid.width >= 3 * 128
    write_grid(drawings, tmp_path / "grid.png", title="t")
    assert json.loads(Image.open(tmp_path / "grid.png").text["captions"]) == [CAPTION]
    write_sheet(_drawings(3, scored=False), tmp_path / "sheet.png", columns=2)
    assert len(json.loads(Image.open(tmp_path / "sheet.png").text["dalle"])["drawings"]) == 3
    with pytest.raises(ValueError, match="at least one"):
        make_grid([])


def test_gallery_is_escaped_and_complete(tmp_path):
    groups = {CAPTION: _drawings(3)[::-1], "a <b>red</b>": _drawings(2, "a <b>red</b>", scored=False)}
    write_gallery(groups, tmp_path, "T & t", {"hash <x>": "1 < 2"})
    page = (tmp_path / "index.html").read_text()
    assert "<b>red</b>" not in page and "&lt;b&gt;red" in page and "1 &lt; 2" in page
    links = set(re.findall(r'(?:src|href)="(images/[^"]+)"', page))
    assert len(links) == 5
    assert all((tmp_path / link).is_file() for link in links)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == [0.9, 0.8, 0.7, None, None]
    assert all((tmp_path / line["file"]).is_file() for line in lines)
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]
