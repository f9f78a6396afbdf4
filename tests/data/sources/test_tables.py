"""Tables as people have them, and as strangers break them: which files their rows mean, and that no caption is changed on the way."""

import csv
import io
import json
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dalle.data.sources.reading.detect import Choice, detect
from dalle.data.sources.reading.table import find_columns, is_table, looks_like_table, table_items
from tests.data.sources.pictures import captioned, png, prepared, written

_CAPTION = st.text(st.characters(codec="utf-8"), max_size=60)
"""Every character that there is, line ends, quotes, null and delimiters among them."""


def _folder(path, names):
    for number, name in enumerate(names):
        captioned(path, number, None, name=name)
    return path


def _read(table, root=None):
    return [
        (item.key, item.captions, item.fate and item.fate.reason)
        for item in table_items(table, find_columns(table), root)
    ]


@settings(max_examples=30, deadline=None)
@example(["[1]", 'a "b" c', "a\nb", "\r", "x\0y", "[]{}", " ", "\x1e", "\u2028", "=1+1", "a;b|c\td,e"])
@given(st.lists(_CAPTION, min_size=1, max_size=6))
def test_captions_come_back_from_every_form_of_table(tmp_path_factory, captions):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table
    folder = tmp_path_factory.mktemp("tables")
    names = [f"{n}.png" for n in range(len(captions))]
    for n in names:
        (folder / n).touch()
    rows = list(zip(names, captions, strict=True))
    for delimiter in ",;|":
        file = io.StringIO(newline="")
        csv.writer(file, delimiter=delimiter).writerows([("file_name", "caption"), *rows])
        (folder / f"{ord(delimiter)}.csv").write_bytes(file.getvalue().encode())
    file = io.StringIO(newline="")
    csv.writer(file, delimiter="\t").writerows([("file_name", "caption"), *rows])
    (folder / "16.tsv").write_bytes(file.getvalue().encode("utf-16"))
    objects = [{"image": name, "text": caption} for name, caption in rows]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, objects)))
    (folder / "b.ndjson").write_text("\r\n".join(json.dumps(o, ensure_ascii=False) for o in objects), newline="")
    (folder / "list.json").write_text(json.dumps(objects))
    (folder / "map.json").write_text(json.dumps(dict(rows)))
    parquet.write_table(table({"image": names, "text": captions}), folder / "p.parquet")
    expected = [(name, (caption,), None) for name, caption in rows if not _is_list(caption)]
    for path in sorted(p for p in folder.iterdir() if p.suffix != ".png"):
        found = [row for row, caption in zip(_read(path), captions, strict=True) if not _is_list(caption)]
        assert found == expected, path.name


def _is_list(caption):
    """A list of texts in a cell is several captions."""
    try:
        values = json.loads(caption)
    except ValueError:
        return False
    return isinstance(values, list) and all(isinstance(v, str) for v in values)


_KAGGLE = 'image,caption\n1.png,A child in a dress .\n1.png,"A girl , going in ."\n2.png,A dog .\n'
_COCO = {
    "info": {"year": 2017},
    "images": [{"id": 7, "file_name": "2.png"}, {"id": 3, "file_name": "1.png"}],
    "annotations": [
        {"image_id": 3, "id": 1, "caption": "A child in a dress ."},
        {"image_id": 7, "id": 2, "caption": "A dog ."},
        {"image_id": 3, "id": 3, "caption": "A girl , going in ."},
    ],
}
_KARPATHY = {
    "images": [
        {
            "filename": "1.png",
            "split": "train",
            "sentences": [{"raw": "A child in a dress ."}, {"raw": "A girl , going in ."}],
        },
        {"filename": "2.png", "split": "test", "sentences": [{"raw": "A dog ."}]},
    ],
    "dataset": "flickr8k",
}
_TOKENS = "1.png#0\tA child in a dress .\n1.png#1\tA girl , going in .\n2.png#0\tA dog .\n"
_MAP = {"1.png": ["A child in a dress .", "A girl , going in ."], "2.png": "A dog ."}
_KOHYA = {
    "/elsewhere/1": {"caption": "not here"},
    "Images/1": {"caption": "A child in a dress .", "tags": "1girl, dress"},
    "Images/1.png": {"caption": "A girl , going in ."},
    "2.png": {"caption": "A dog .", "train_resolution": [64, 64]},
}
_LIST = [
    {"image": "1.png", "caption": "A child in a dress ."},
    {"image": "1.png", "caption": "A girl , going in ."},
    {"image": "2.png", "caption": "A dog ."},
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.txt", _KAGGLE),
        ("results_20130124.token", _TOKENS),
        ("Flickr8k.token.txt", _TOKENS),
        ("annotations/captions_val2017.json", json.dumps(_COCO)),
        ("dataset_flickr8k.json", json.dumps(_KARPATHY, indent=1)),
        ("meta.json", json.dumps(_MAP)),
        ("meta_cap.json", json.dumps(_KOHYA)),
        ("captions.json", json.dumps(_LIST)),
        ("captions.json", "\ufeff" + json.dumps(_LIST)),
        (
            "excel.csv",
            'sep=;\r\nBild;image;caption\r\n1;1.png;A child in a dress .\r\n1;1.png;"A girl , going in ."\r\n2;2.png;A dog .;\r\n',
        ),
    ],
)
@pytest.mark.parametrize("is_given", [False, True])
def test_tables_of_well_known_makers(tmp_path, name, text, is_given):
    source = _folder(tmp_path / "in", ["Images/1", "Images/2"])
    (source / "readme.txt").write_text("Images, captions and such\n")
    (source / "other.json").write_text('{"name": "text"}')
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_text(text, encoding="utf-8", newline="")
    found = prepared(source / name if is_given else source, tmp_path / "out")
    key = {c[0]: c[1:] for c in written(tmp_path / "out").values()}
    assert key == {"A child in a dress .": ["A girl , going in ."], "A dog .": []}
    assert found.num_train == 2 and found.counts.num_broken == ("meta_cap" in name)


def test_a_quote_at_the_beginning_of_a_caption_of_flickr8k_stays(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "a.token").write_text('1.png#0\t" Hello " says a man\n1.png#1\t"open\n')
    assert [captions for _, captions, _ in _read(tmp_path / "a.token")] == [('" Hello " says a man',), ('"open',)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a cat on a mat\n"),
        ("a.txt", "1.png 2.png\n"),
        ("a.txt", "x.jpg\ty.jpg#1\t1\t1\n"),  # Flickr8k's judgements
        ("a.txt", ""),
        ("a.json", '{"caption": 1}'[:5]),
        ("a.json", '{"count": 12, "status": {"ok": 3}}'),  # img2dataset's statistics
        (
            "a.json",
            json.dumps({"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "bbox": [1]}]}),
        ),
    ],
)
def test_other_texts_are_no_tables(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert not looks_like_table(tmp_path / name) and not is_table(name)


def test_captions_of_kohya(tmp_path):
    source = _folder(tmp_path / "in", ["1", "2", "3"])
    (source / "1.caption").write_text("a girl in a red dress")
    (source / "1.txt").write_text("1girl, red_dress")
    (source / "2.CAPTION").write_text("a dog")
    (source / "3.txt").write_text("a tree")
    assert prepared(source, tmp_path / "out").kind == "a folder of images with .txt files"
    assert list(written(tmp_path / "out").values()) == [["a girl in a red dress"], ["a dog"], ["a tree"]]


def test_files_that_a_table_names_outside_of_its_folder(tmp_path):
    source = _folder(tmp_path / "in", ["1"])
    captioned(tmp_path, 2, None, name="secret")
    outside = ["../secret.png", str(tmp_path / "secret.png"), "1/../../secret", "x/../../secret.png"]
    rows = [*outside, "../../../../../../etc/passwd", "/etc/passwd", str(source / "1.png"), "./x/../1.png"]
    (source / "a.csv").write_text("\n".join(["file,caption", *(f"{row},caption of it" for row in rows)]))
    found = prepared(source, tmp_path / "out")
    assert written(tmp_path / "out") == {str(source / "1.png"): ["caption of it"]}
    reason = "an image outside of the source folder, which is read where the table itself is given as the source"
    assert found.counts.broken[reason].count == len(outside) + 2
    found = prepared(source / "a.csv", tmp_path / "given")
    assert written(tmp_path / "given").keys() == {str(source / "1.png"), "../secret.png"}
    assert "Images that the table names outside of its own folder: 2, the first of them ../secret.png." in found.notes
    assert found.counts.broken["image does not decode"].count == 1  # one file under two names


@pytest.mark.parametrize("name", ["/", ".", "..", "#0", "x\0y", "\\", "x" * 5000, "//", "a/", "\ud800.png", "true"])
def test_names_that_are_none(tmp_path, name):
    source = _folder(tmp_path / "in", ["1"])
    captioned(tmp_path, 2, None, name="in")  # beside the folder, under its name
    rows = [{"file": "1.png", "caption": "one"}, {"file": name, "caption": "two"}]
    (source / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for place, output in ((source, "out"), (source / "a.jsonl", "b")):
        found = prepared(place, tmp_path / output)
        assert found.num_train == 1 and sum(r.count for r in found.counts.broken.values()) == 1


def test_a_file_that_is_there_twice_is_not_guessed_at(tmp_path):
    source = tmp_path / "in"
    for folder, number in (("train", 1), ("test", 2), ("test", 3)):
        captioned(source / folder, number, None, name=f"{number % 2}")
    (source / "other.csv").write_text("file,caption\n1.png,a\n0.png,c\n")
    found = prepared(source, tmp_path / "out")
    assert (
        written(tmp_path / "out") == {"0.png": ["c"]} and found.counts.broken["several files of that name"].count == 1
    )
    (source / "other.csv").rename(source / "train.csv")
    prepared(source, tmp_path / "b")
    items = detect(str(source), None, Choice()).items()
    assert [item.path.parent.name for item in items] == ["train", "test"]  # the table's name says which


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,caption,licence\n1.png,red, round,CC0\n", "a row that has more fields than columns"),
        ("image,caption\n,red\n", "a row that names no image"),
        ("image,caption\n1.png\n", "no caption"),
        ("image,caption\n1.png,caf\udce9\n", "caption is not text"),
    ],
)
def test_rows_that_cannot_be_read_are_counted(tmp_path, text, said):
    source = _folder(tmp_path / "in", ["1", "2"])
    text += "2.png,good" + ",CC0" * ("licence" in text)
    (source / "a.csv").write_bytes(text.encode(errors="surrogateescape"))
    found = prepared(source, tmp_path / "out")
    assert list(written(tmp_path / "out").values()) == [["good"]] and found.counts.broken[said].count == 1
    assert any("save it as UTF-8" in note for note in found.notes) == ("not text" in said)


def test_fields_that_a_spreadsheet_filled_up(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "a.csv").write_text('image,caption\n1.png,"red, round",,\n1.png,red,\n1.png,red, round\n')
    assert [c for _, (c,), _ in _read(tmp_path / "a.csv")] == ["red, round", "red", "red, round"]


def test_a_table_of_very_many_columns_and_one_of_a_very_long_line(tmp_path):
    (tmp_path / "1.png").touch()
    wide = [f"c{n}" for n in range(20_000)]
    with open(tmp_path / "a.csv", "w") as file:
        file.write(",".join([*wide, "image", "caption"]) + "\n" + "," * 20_000 + "1.png,one\n")
    assert _read(tmp_path / "a.csv") == [("1.png", ("one",), None)]
    (tmp_path / "b.csv").write_text(",".join(wide))
    with pytest.raises(ValueError, match=r"no column names image files .*c11, …\)") as error:
        find_columns(tmp_path / "b.csv")
    assert len(str(error.value)) < 500
    long = "word " * 200_000  # 1 MB
    (tmp_path / "c.csv").write_text(f"image,caption\n1.png,{long}\n{long}\n")
    assert [(key[:5], reason) for key, _, reason in _read(tmp_path / "c.csv")] == [
        ("1.png", None),
        ("word ", "no such image file"),
    ]
    (tmp_path / "d.csv").write_text(long)
    with pytest.raises(ValueError, match="no column names image files") as error:
        find_columns(tmp_path / "d.csv")
    assert len(str(error.value)) < 500


def test_what_a_header_holds_stays_on_one_line(tmp_path):
    (tmp_path / "a.csv").write_text('"a\nb\x1b[31m",c\n')
    with pytest.raises(ValueError, match="no column names image files") as error:
        find_columns(tmp_path / "a.csv")
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet"])
@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="the file that cannot be read is Linux's")
def test_a_table_that_cannot_be_read_is_one_line_about_it(tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).symlink_to("/proc/self/mem")  # its first byte is an I/O error, whoever reads it
    with pytest.raises(ValueError, match=rf"{name}.* (cannot be read: Input/output error|is damaged)") as error:
        prepared(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[", "{}", "[1, 2]", '"x"', "[" * 100_000, '{"a": NaN'])
def test_json_that_is_no_table(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json.* (is no JSON|holds no list|no column)") as error:
        prepared(tmp_path / "a.json", tmp_path / "out")
    assert len(str(error.value)) < 500


def test_a_key_that_is_there_twice_in_a_table(tmp_path):
    """Of lines one is a broken item; of a whole .json nobody can tell which of two files or captions is meant."""
    source = _folder(tmp_path / "in", ["1", "2"])
    lines = ['{"file": "1.png", "caption": "one"}', '{"file": "2.png", "caption": "two", "caption": "three"}']
    (source / "a.jsonl").write_text("\n".join(lines))
    found = prepared(source / "a.jsonl", tmp_path / "out")
    assert found.num_train == 1 and sum(r.count for r in found.counts.broken.values()) == 1
    for text in (f"[{', '.join(lines)}]", '{"1.png": "a", "caption": "", "caption": "b"}'):
        (source / "a.json").write_text(text)
        said = r"a\.json is no JSON: key 'caption' is there twice; write it anew as JSON$"
        with pytest.raises(ValueError, match=said):
            prepared(source / "a.json", tmp_path / "other")


def test_a_changed_image_of_a_table_is_noticed(tmp_path):
    source = _folder(tmp_path / "in", ["1", "2"])
    (source / "a.csv").write_text("file,caption\n1.png,one\n2.png,two\n2.png,zwei\n3.png,three\n")
    first = prepared(source / "a.csv", tmp_path / "out")
    assert prepared(source / "a.csv", tmp_path / "out") == first
    about = (source / "2.png").stat()
    (source / "2.png").write_bytes(png(7))
    os.utime(source / "2.png", ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    with pytest.raises(ValueError, match=r"the source was 3 files of .* --overwrite"):
        prepared(source / "a.csv", tmp_path / "out")
    prepared(source / "a.csv", tmp_path / "out", overwrite=True)
    (source / "3.png").write_bytes(png(3))  # it was missing
    with pytest.raises(ValueError, match=r"the source was 3 files of .* is 4 files"):
        prepared(source / "a.csv", tmp_path / "out")


def test_parquet_of_bytes_and_names_in_turn(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    source = _folder(tmp_path / "in", ["0"])
    images = [{"bytes": None, "path": "0.png"}, {"bytes": None, "path": "0.png"}, {"bytes": png(5), "path": None}]
    table = pyarrow.table({"image": [*images, {"bytes": png(6), "path": "x"}], "text": ["a", "b", "c", "d"]})
    parquet.write_table(table, source / "a.parquet")
    prepared(source / "a.parquet", tmp_path / "out")
    assert list(written(tmp_path / "out").values()) == [["a", "b"], ["c"], ["d"]]


def test_what_decides_where_several_things_could(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "a.txt").write_text("1.png#0\tred, round, small; new\n")
    assert _read(tmp_path / "a.txt") == [("1.png#0", ("red, round, small; new",), None)]  # not what has more fields
    (tmp_path / "b.json").write_text(json.dumps({"1.png": {"caption": "one", "file_name": "of an earlier place.png"}}))
    assert _read(tmp_path / "b.json") == [("1.png", ("one",), None)]
    images = [{"id": n, "file_name": f"{n}.png", "height": 480, "width": 640} for n in range(4000)]
    coco = {"images": images, "annotations": [{"image_id": 1, "caption": "one"}]}
    (tmp_path / "c.json").write_text(json.dumps(coco))  # captions are at its end alone
    assert looks_like_table(tmp_path / "c.json") and _read(tmp_path / "c.json") == [("1.png", ("one",), None)]
