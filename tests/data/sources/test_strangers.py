"""Folders that nobody made for us: odd names, damaged and enormous images, archives, links, and captions that try to be HTML."""

import html.parser
import io
import json
import os
import struct
import time
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle.cli.data.filter import filter_pictures
from dalle.config import Filters, Images
from dalle.data.samples import read_pairs
from dalle.data.sources.judge import caption_reason, image_filtered
from dalle.data.sources.reading import delimited
from dalle.data.sources.reading.walk import walk
from tests.data.sources.pictures import captioned, picture, png, prepared, written

_ODD = [
    *(
        "-rf",
        "--output",
        "a\nb",
        "a\rb",
        "quote'\"`",
        "$(touch x)",
        "%s{}",
        "a;b",
        "*?[x]",
        "\\",
        "a\\nb",
        "~",
        "#1",
        "x.tar",
        "con",
    ),
    *(
        "\udcff\udcfe",
        "caf\udce9",
        "\x1b[31mred",
        "\u202eevil",
        "e\u0301",
        "\x7f",
        "<img src=x onerror=alert(1)>",
        "&lt;",
        "😀",
    ),
]


@pytest.mark.parametrize("captions", ["files", "table", "names"])
def test_names_of_every_sort(tmp_path, captions):
    source = tmp_path / "in" / "<odd>\n\udcff"
    for number, name in enumerate(_ODD):
        captioned(source, number, f"number {number}", name=name)
    if captions == "table":
        rows = "".join('"{}","{}"\n'.format(f"{n}.png".replace('"', '""'), i) for i, n in enumerate(_ODD))
        (source / "a.csv").write_bytes(f"file,caption\n{rows}".encode(errors="surrogateescape"))
    found = prepared(source, tmp_path / "out \udcfe{1..2}", Filters(boilerplate=None), captions=captions)
    if captions != "names":
        assert found.num_train == len(_ODD)
    pairs = list(read_pairs(found.train, Images(augmentation="none"), 32))
    assert len(pairs) == found.num_train
    page = (tmp_path / "out \udcfe{1..2}/report.html").read_text(encoding="utf-8")
    assert all(note.isprintable() for note in found.notes)
    assert _tags(page) <= _OURS and "\x1b" not in page


_OURS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "span",
        "div",
        "b",
        "ul",
        "li",
        "p",
        "img",
        "i",
    ),
    *("br", "table", "tbody", "tr", "td", "figure", "figcaption"),
}


def _tags(page):
    """All elements of a page, of which only pictures that it holds may name anything."""
    found = set()

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.add(tag)
            names = {"class", "style", "src", "alt", "loading", "lang", "dir", "charset", "name", "content"}
            assert {name for name, _ in attributes} <= names, attributes
            assert all(value.startswith("data:image/webp;base64,") for name, value in attributes if name == "src")

    Reader().feed(page)
    return found


def test_captions_and_columns_that_try_to_be_html(tmp_path):
    source = tmp_path / "<script>alert(1)</script>"
    evil = '</p><script>alert("1")</script><img src=x onerror=alert(1)>" onload="x" \' \x00\x1b &amp;'
    for number in range(4):
        captioned(source, number, None)
    rows = [{"file": f"{n:04d}.png", "<script>": evil + "x" * 500 * n, "caption": "b"} for n in range(3)]
    (source / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = prepared(source, tmp_path / "out", Filters(max_caption_chars=400), caption_column="<script>")
    assert found.num_train == 1 and found.counts.num_filtered == 2  # shown, and shown as left out
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert page.count("alert") >= 4 and _tags(page) <= _OURS and "\x00" not in page


def _png_header(width, height, data=b""):
    def chunk(kind, held):
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_images_that_would_fill_the_memory_or_are_damaged(tmp_path):
    source = tmp_path / "in"
    captioned(source, 1, "good")
    rows = zlib.compressobj(9)
    bomb = b"".join(rows.compress(bytes(60_001)) for _ in range(2_000)) + rows.flush()  # the beginning of 1.2 GB
    file = io.BytesIO()
    picture(3, (200, 200)).save(file, "JPEG")
    damaged = {
        "bomb.png": _png_header(20_000, 20_000, bomb),
        "huge.png": _png_header(2**31 - 1, 2**31 - 1),
        "empty.png": b"",
        "cut.jpg": file.getvalue()[: len(file.getvalue()) // 2],
        "head.jpg": file.getvalue()[:20],
        "text.jpg": b"no image",
        "page.jpg": b"<html>404</html>",
        "nothing.png": _png_header(0, 10),
        "post.png": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }
    for name, data in damaged.items():
        (source / name).write_bytes(data)
        (source / name).with_suffix(".txt").write_text(name)
    found = prepared(source, tmp_path / "out")
    assert written(tmp_path / "out") == {"0001.png": ["good"]}
    limit = "more pixels than the limit, images.max_pixels 89478485"
    assert found.counts.filtered[limit].count == 2
    assert found.counts.broken["image does not decode"].count == len(damaged) - 2


def _sparse(path, text, num_bytes=1 << 40):
    """A file that takes no place on the disk, and more memory than there is where somebody reads it whole."""
    path.write_bytes(text)
    os.truncate(path, num_bytes)
    return path


def test_files_larger_than_the_memory(tmp_path):
    source = tmp_path / "in"
    for number in range(3):
        captioned(source, number, f"number {number}")
    _sparse(source / "0001.txt", b"a caption")
    _sparse(source / "0002.png", b"\x89PNG")
    found = prepared(source, tmp_path / "out")
    assert written(tmp_path / "out") == {"0000.png": ["number 0"]}
    assert {reason: about.count for reason, about in found.counts.broken.items()} == {
        "a file of over 64 MiB": 1,
        "a file of over 1,024 MiB": 1,
    }


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", b"file,caption\n0000.png,one\n", "is no table of text: a line of over"),
        ("t.csv", b"", "is no table of text: a line of over"),
        ("t.jsonl", b'{"file": "0000.png", "caption": "one"}\n', "is no table of text: a line of over"),
        ("t.json", b'[{"file": "0000.png", "caption": "one"}]', r"has 1,099,\d+,\d+,\d+ bytes.* save it as \.jsonl"),
    ],
)
def test_tables_larger_than_the_memory(tmp_path, monkeypatch, name, text, said):
    monkeypatch.setattr(delimited, "_LINE_CHARS", 1 << 20)  # as many characters take a second
    captioned(tmp_path, 0, None)
    table = _sparse(tmp_path / name, text)
    with pytest.raises(ValueError, match=said) as error:
        prepared(table, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_line_as_long_as_any_may_be_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_LINE_CHARS", 64)
    for number in range(2):
        captioned(tmp_path, number, None)
    row = "0000.png," + "a" * (63 - len("0000.png,"))
    (tmp_path / "t.csv").write_text(f"file,caption\n{row}\n0001.png,two\n")
    prepared(tmp_path, tmp_path / "out")
    assert written(tmp_path / "out")["0000.png"] == [row.split(",")[1]]


def test_archives_beside_and_alone(tmp_path):
    for name in ("beside", "alone"):
        (tmp_path / name).mkdir()
        with zipfile.ZipFile(tmp_path / name / "pics.zip", "w") as file:
            file.writestr("1.png", png(1))
    captioned(tmp_path / "beside", 1, "one")
    assert "Files of other kinds, which are not read: 1 .zip." in prepared(tmp_path / "beside", tmp_path / "out").notes
    with pytest.raises(ValueError, match=r"no images .* 1 \.zip: unpack the archives"):
        prepared(tmp_path / "alone", tmp_path / "b")
    with pytest.raises(ValueError, match=r"pics\.zip: is an archive: unpack it"):
        prepared(tmp_path / "alone/pics.zip", tmp_path / "c")


def test_no_command_is_run_that_a_source_names(tmp_path):
    with pytest.raises(ValueError, match=r"source pipe:.*: is a command, and none is run here"):
        prepared(f"pipe:touch {tmp_path}/ran", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_links_that_lead_round_and_files_that_cannot_be_read(tmp_path):
    source = tmp_path / "in"
    captioned(source / "a/b", 1, "one")
    (source / "a/b/up").symlink_to("../../a")
    (source / "a/self").symlink_to("self")
    (source / "a/self.png").symlink_to("self.png")
    (source / "ping").symlink_to("pong")
    (source / "pong").symlink_to("ping")
    (source / "again").symlink_to("a")
    (source / "a/b/io.png").symlink_to("/proc/self/mem")
    (source / "a/b/io.txt").write_text("an image whose bytes cannot be read")
    (source / "a/b/zero.png").symlink_to("/dev/zero")
    found = prepared(source, tmp_path / "out")
    assert found.num_train == 1 and found.counts.broken["a file cannot be read"].count == 5
    assert found.counts.other_files["another kind of file"].count == 1


def test_ten_thousand_files_in_one_folder_are_listed_in_order(tmp_path):
    names = [f"{n:05d}.png" for n in range(10_000)]
    for name in reversed(names):
        (tmp_path / name).touch()
    began = time.process_time()
    (listing,) = walk(tmp_path)
    assert listing.files == names and listing.odd == []
    assert time.process_time() - began < 5  # linear: a tenth of a second


def test_deep_folders(tmp_path):
    deep = tmp_path.joinpath("in", *["d" * 50] * 30)
    captioned(deep, 1, "deep")
    prepared(tmp_path / "in", tmp_path / "out")
    assert list(written(tmp_path / "out").values()) == [["deep"]]


def test_the_command_takes_odd_names_and_says_one_line_of_those_it_cannot(tmp_path, capsys):
    source = tmp_path / "-a b \n{1..2}"
    captioned(source, 1, "one")
    filter_pictures([str(source), str(tmp_path / "out [x] {1..2}"), "--workers=1"])
    assert "1 of 1 images are kept." in capsys.readouterr().out
    for name, said in (("x" * 5000, "there is no such file or folder"), ("x\0y", "there is no such file or folder")):
        with pytest.raises(ValueError, match=said) as error:
            prepared(name, tmp_path / "b")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="a line end in its name"):
        prepared(source, tmp_path / "b\nc")


def test_equal_images_are_told_by_name_whatever_the_name(tmp_path):
    for name in ("caf\udce9", "second"):
        captioned(tmp_path / "in", 1, name.replace("\udce9", "e"), name=name)
    found = prepared(tmp_path / "in", tmp_path / "out")
    (reason,) = found.counts.filtered.values()
    assert reason.count == 1 and "caf" in reason.first[0][2]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a " * 1000,
            "1" * 2000,
            "-" * 2000,
            "x" * 1990 + "day, 3",
            "photo " * 330,
            "Monday, " * 250,
            "img_" + "1_" * 990,
        ),
        *(
            "(c) " * 500,
            "at 1:1" * 330,
            "photographed on " * 120,
            "3rd of " * 280,
            " " * 1000 + "." * 1000,
            "click to view " * 140,
        ),
    ],
)
def test_no_caption_takes_the_patterns_long(text):
    began = time.process_time()
    caption_reason(text, Filters())
    assert time.process_time() - began < 0.5  # each takes milliseconds


_FILTERS = st.builds(
    Filters,
    min_caption_chars=st.none() | st.integers(1, 20),
    max_caption_chars=st.none() | st.integers(20, 60),
    boilerplate=st.none() | st.just(()) | st.just(("cat.*",)),
    max_aspect_ratio=st.none() | st.floats(1, 10),
    min_side_px=st.none() | st.integers(1, 100),
)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80).map(lambda t: " ".join(t.split())).filter(bool), _FILTERS)
def test_a_caption_that_stays_is_within_all_limits_and_switched_off_filters_take_none(caption, filters):
    reason = caption_reason(caption, filters)
    low, high = filters.min_caption_chars or 0, filters.max_caption_chars or 10**9
    assert (reason is not None and "caption_chars" in reason) == (not low <= len(caption) <= high)
    if filters.boilerplate is None and low <= len(caption) <= high:
        assert reason is None
    if filters.boilerplate == ("cat.*",):
        assert caption_reason(f"Cat {caption}", filters) is not None
    looser = Filters(None, None, boilerplate=filters.boilerplate)
    assert reason is not None or caption_reason(caption, looser) is None


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)), _FILTERS)
def test_an_image_stays_by_its_sides_however_it_is_turned(size, filters):
    found = image_filtered(size, filters)
    assert (found is None) == (image_filtered(size[::-1], filters) is None)
    is_small = filters.min_side_px is not None and min(size) < filters.min_side_px
    is_long = filters.max_aspect_ratio is not None and max(size) / min(size) > filters.max_aspect_ratio * (1 + 1e-12)
    assert (found is not None) == (is_small or is_long)
