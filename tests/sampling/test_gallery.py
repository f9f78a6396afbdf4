"""Pictures and pages: facts inside the PNG, escaped captions, links that exist, pages that are written again."""

import base64
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFont
from PIL.PngImagePlugin import PngInfo

from dalle.sampling import grid
from dalle.sampling.drawing import Drawing, read_drawing, save_drawing
from dalle.sampling.gallery import Gallery, write_gallery
from dalle.sampling.grid import make_grid, write_grid, write_sheet

CAPTION = 'a <b>red</b> "circle" & ü / ../../x'
WHOLE = "whole\u2028caption"  # with what some take for the end of a line


def _drawings(count, caption=CAPTION, scored=True, first=0):
    return [
        Drawing(
            Image.new("RGB", (32, 32), (i * 20, 0, 0)),
            caption,
            0.9 - i / 10 if scored else None,
            7 + i,
            i + 1,
            {"n": 4},
            np.array([i, 70_000, 3, 0]),
        )
        for i in range(first, count)
    ]


def _packed(data, cut=0, more=b""):
    packed = zlib.compress(data)
    return base64.b64encode(packed[: len(packed) - cut] + more).decode()


def _results(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_png_says_what_it_is(tmp_path):
    (drawing,) = _drawings(1)
    save_drawing(drawing, tmp_path / "one.png")
    image = Image.open(tmp_path / "one.png")
    assert image.size == (32, 32)
    assert image.text["caption"] == CAPTION
    facts = json.loads(image.text["dalle"])
    assert {name: facts[name] for name in ("seed", "rank", "score", "times")} == {
        "seed": 7, "rank": 1, "score": 0.9, "times": 1,
    }  # fmt: skip
    back = read_drawing(tmp_path / "one.png")
    assert np.array_equal(back.image, drawing.image)
    assert back.codes_I.tolist() == [0, 70_000, 3, 0]
    assert (back.caption, back.score, back.seed, back.rank, back.settings) == (CAPTION, 0.9, 7, 1, {"n": 4})
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def _saved_again(path, to, change=lambda image: image, without=()):
    """A drawing's file as an editor saves it: other pixels, the same text."""
    with Image.open(path) as image:
        image.load()
        text = PngInfo()
        text.add_itxt("caption", image.text["caption"])
        known = json.loads(image.text["dalle"])
        text.add_itxt("dalle", json.dumps({name: value for name, value in known.items() if name not in without}))
        change(image).save(to, pnginfo=text)
    return read_drawing(to)


def _painted(image):
    image = image.copy()
    image.paste("green", (0, 0, 1, 1))
    return image


def _erased(image):
    image.putalpha(Image.new("L", image.size, 255))
    image.putpixel((0, 0), (*image.getpixel((0, 0))[:3], 0))  # the colour is there still, and nobody sees it
    return image


@pytest.mark.parametrize("change", [_painted, _erased, lambda image: image.resize((40, 40))])
def test_a_file_whose_pixels_were_edited_is_known_and_its_codes_are_not(tmp_path, change):
    (drawing,) = _drawings(1)
    save_drawing(drawing, tmp_path / "one.png")
    same = _saved_again(tmp_path / "one.png", tmp_path / "same.png")
    assert not same.edited and same.codes_I.tolist() == [0, 70_000, 3, 0]
    alpha = _saved_again(tmp_path / "one.png", tmp_path / "alpha.png", lambda image: image.convert("RGBA"))
    assert not alpha.edited
    edited = _saved_again(tmp_path / "one.png", tmp_path / "edited.png", change)
    assert edited.edited and edited.codes_I is None
    # written once more, as a zip of the page is, it has no codes of other pixels either
    save_drawing(edited, tmp_path / "more.png")
    assert read_drawing(tmp_path / "more.png").codes_I is None
    earlier = _saved_again(tmp_path / "one.png", tmp_path / "earlier.png", change, without=("pixels",))
    assert not earlier.edited  # an earlier version did not say


def test_a_file_that_is_no_drawing_of_ours_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no image")
    write_grid(_drawings(2), tmp_path / "grid.png")
    for name, words in (
        ("plain.png", "does not say how it was drawn"),
        ("text.png", "no image"),
        ("grid.png", "several drawings"),
        ("gone.png", "No such file"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{words}"):
            read_drawing(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codes": "?"}, "metadata are damaged: its codes cannot be unpacked"),
        ({"codes": 7}, "cannot be unpacked"),
        ({"codes": [1, 2]}, "cannot be unpacked"),
        ({"codes": _packed(b"abc")}, "cannot be unpacked"),  # no whole numbers of 32 bits
        ({"codes": _packed(bytes(64), cut=3)}, "cannot be unpacked"),
        ({"codes": _packed(bytes(64), more=b"x")}, "cannot be unpacked"),
        ({"codes": _packed(bytes(2**24 + 4))}, "cannot be unpacked"),
        ({"seed": "7"}, "metadata are damaged"),
        ({"seed": 7.5}, "metadata are damaged"),
        ({"seed": 2**63}, "metadata are damaged"),
        ({"rank": None}, "metadata are damaged"),
        ({"times": "often"}, "metadata are damaged"),
        ({"score": "high"}, "metadata are damaged"),
        ({"pixels": 7}, "metadata are damaged"),
        ({"caption": " "}, "metadata are damaged: its caption is empty; take another copy"),
        ({"settings": [1]}, "metadata are damaged"),
        ({"settings": {"models": "x"}}, "metadata are damaged"),
    ],
)
def test_a_file_with_damaged_metadata_is_named(tmp_path, changes, words):
    (drawing,) = _drawings(1)
    save_drawing(drawing, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:
        image.load()
        text = PngInfo()
        text.add_itxt("caption", changes.get("caption", image.text["caption"]))
        text.add_itxt("dalle", json.dumps({**json.loads(image.text["dalle"]), **changes}))
        image.save(tmp_path / "damaged.png", pnginfo=text)
    with pytest.raises(ValueError, match=f"damaged.png: its {words}" if words[0] == "m" else f"damaged.png.*{words}"):
        read_drawing(tmp_path / "damaged.png")


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


def test_how_often_a_drawing_came_is_shown(tmp_path):
    once, often = _drawings(2)
    often = replace(often, times=5)
    save_drawing(often, tmp_path / "one.png")
    assert read_drawing(tmp_path / "one.png").times == 5
    write_gallery({CAPTION: [once, often]}, tmp_path / "gallery", "t")
    assert [line["times"] for line in _results(tmp_path / "gallery")] == [1, 5]
    assert re.findall(r"seed \d+[^<]*", (tmp_path / "gallery/index.html").read_text()) == [
        "seed 7",
        "seed 8, drawn 5 times",
    ]
    for drawings in ([once, often], [replace(d, score=None) for d in (once, often)]):
        changed = [replace(d, times=1) for d in drawings]
        assert make_grid(drawings).tobytes() != make_grid(changed).tobytes()
    write_grid([once, often], tmp_path / "grid.png")
    records = json.loads(Image.open(tmp_path / "grid.png").text["dalle"])["drawings"]
    assert [record["times"] for record in records] == [1, 5]


def test_results_of_an_earlier_version_are_taken_up(tmp_path):
    gallery = Gallery(tmp_path, "t")
    gallery.put("a", _drawings(2, "a"), 8)
    gallery.write()
    lines = [{k: v for k, v in line.items() if k != "times"} for line in _results(tmp_path)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Gallery(tmp_path, "t").resume(8) == {"a"}


def test_gallery_is_escaped_and_complete(tmp_path):
    groups = {CAPTION: _drawings(3)[::-1], "a <b>red</b>": _drawings(2, "a <b>red</b>", scored=False)}
    write_gallery(groups, tmp_path, "T & t", {"hash <x>": "1 < 2"})
    page = (tmp_path / "index.html").read_text()
    assert "<b>red</b>" not in page and "&lt;b&gt;red" in page and "1 &lt; 2" in page
    links = set(re.findall(r'(?:src|href)="(images/[^"]+)"', page))
    assert len(links) == 5
    assert all((tmp_path / link).is_file() for link in links)
    lines = _results(tmp_path)
    assert [line["score"] for line in lines] == [0.9, 0.8, 0.7, None, None]
    assert all((tmp_path / line["file"]).is_file() for line in lines)
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]


def test_a_page_written_again_drops_what_fell_out(tmp_path):
    gallery = Gallery(tmp_path, "t")
    gallery.put(CAPTION, _drawings(3, first=1), candidates=4)
    gallery.put("other", _drawings(1, "other"), candidates=4)
    gallery.write()
    gallery.put(CAPTION, _drawings(2), candidates=8)
    assert len(list((tmp_path / "images").iterdir())) == 4  # the page still shows the one that fell out
    gallery.write()
    assert [(line["seed"], line["candidates"]) for line in _results(tmp_path)] == [(7, 8), (8, 8), (7, 4)]
    assert {f"images/{path.name}" for path in (tmp_path / "images").iterdir()} == {
        line["file"] for line in _results(tmp_path)
    }


def test_a_gallery_takes_up_what_is_whole(tmp_path):
    gallery = Gallery(tmp_path, "t")
    for caption, candidates in ((WHOLE, 8), ("half", 4), ("lost", 8)):
        gallery.put(caption, _drawings(2, caption), candidates)
    gallery.write()
    next((tmp_path / "images").glob("lost-*")).unlink()
    pages = (tmp_path / "index.html").read_text()
    again = Gallery(tmp_path, "t")
    assert again.resume(8) == {WHOLE}
    again.put("half", _drawings(2, "half"), 8)
    again.put("lost", _drawings(2, "lost"), 8)
    again.write()
    assert (tmp_path / "index.html").read_text() == pages
    first = (tmp_path / "results.jsonl").read_text(encoding="utf-8").split("\n")[0]
    (tmp_path / "results.jsonl").write_text(first + '\n{"cap\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 is damaged"):
        Gallery(tmp_path, "t").resume(8)


def test_what_a_grid_says_is_in_its_font():
    """Pillow's own font has no ×: a letter that is missing is an empty box, which all missing ones share."""
    drawing = Drawing(Image.new("RGB", (8, 8)), "a red circle", 0.5, 0, 1, {}, times=6)
    label = grid._label(drawing)
    assert "6" in label and "0.500" in label
    font = ImageFont.load_default(size=12)
    missing = bytes(font.getmask("\ue000"))
    assert all(bytes(font.getmask(letter)) != missing for letter in label if letter != " ")


def test_small_pictures_are_enlarged_sharply_and_phones_show_them_first(tmp_path):
    small, large = (Drawing(Image.new("RGB", (size, size)), f"of {size}", None, size, 0, {}) for size in (32, 256))
    write_gallery({d.caption: [d] for d in (small, large)}, tmp_path, "Drawings", {"prior": "0123"})
    page = (tmp_path / "index.html").read_text()
    assert re.findall(r'<img( class="sharp")? src="images/of-(\d+)', page) == [(' class="sharp"', "32"), ("", "256")]
    assert "body > dl { order: 1;" in page.split("@media (max-width: 700px)")[1].splitlines()[0]


@pytest.mark.parametrize("letter", ["x", "W", "北", "\u0301"])
def test_a_caption_without_a_space_takes_no_longer_than_its_lines(letter):
    """A word of a million letters, of which more are measured only where none has a width."""
    font = ImageFont.load_default(size=12)
    measured = []

    class Counting:
        def getlength(self, text):
            measured.append(len(text))
            return font.getlength(text)

    lines = grid._wrap(f"a {1_000_000 * letter} b", Counting(), 200)
    assert 1 <= len(lines) <= grid.MAX_CAPTION_LINES and sum(measured) < 20_000_000
    if font.getlength(letter):
        assert sum(measured) < 20_000 and len(lines) == grid.MAX_CAPTION_LINES and lines[-1].endswith(" …")
        assert all(font.getlength(line.removesuffix(" …")) <= 200 for line in lines)
        assert all(font.getlength(line + letter) > 200 for line in lines[1:-1])


def test_lines_break_at_spaces_and_within_a_word_that_is_too_wide():
    font = ImageFont.load_default(size=12)
    wide = font.getlength("wwww")
    assert grid._wrap("", font, wide) == [""]
    assert grid._wrap("a b", font, wide) == ["a b"]
    assert grid._wrap("i wwww i", font, wide) == ["i", "wwww", "i"]
    assert grid._wrap("i wwwwwwi i i", font, wide) == ["i", "wwww", "wwi i i"]
    assert grid._wrap("wwww " * 9, font, wide) == [*["wwww"] * 5, "wwww …"]
