"""Sources of every kind: what each is taken for, and which captions belong to which image."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from dalle.data.sources.reading.names import caption_of
from tests.data.sources.pictures import captioned, picture, png, prepared, written


def test_text_files_hold_a_caption_a_line(tmp_path):
    source = tmp_path / "in"
    captioned(source, 1, "\ufeffa red ball\r\n\r\na ball\r\n")
    captioned(source / "deeper/still", 2, "a  tree ", name="Öl.v2")
    (source / "0003.PNG").write_bytes(png(3))
    (source / "0003.TXT").write_bytes("ein Haus".encode("utf-16"))
    (source / "0004.png").write_bytes(png(4))
    (source / "0004.png.txt").write_text("beside the whole name")
    (source / "README.txt").write_text("not a caption")
    found = prepared(source, tmp_path / "out")
    assert found.kind == "a folder of images with .txt files"
    assert "Files (.txt, .json) that are beside no image, and are not read: 1." in found.notes
    assert written(tmp_path / "out") == {
        "0001.png": ["a red ball", "a ball"],
        "0003.PNG": ["ein Haus"],
        "0004.png": ["beside the whole name"],
        "deeper/still/Öl.v2.png": ["a tree"],
    }
    assert (found.num_train, found.num_valid, found.captions_per_image) == (4, 0, 1.25)


def test_a_json_with_captions_goes_before_the_text_which_goes_before_a_json_with_one(tmp_path):
    source = tmp_path / "in"
    for number, values in enumerate([{"captions": ["one", "two"]}, {"caption": "other"}, {"licence": "CC0"}]):
        captioned(source, number, "line a\nline b").with_suffix(".json").write_text(json.dumps(values))
    found = prepared(source, tmp_path / "out")
    assert list(written(tmp_path / "out").values()) == [["one", "two"], ["line a", "line b"], ["line a", "line b"]]
    assert any(".json" in note and "goes before the .txt" in note for note in found.notes)
    with tarfile.open(tmp_path / "out/train-000.tar") as tar:
        assert json.load(tar.extractfile("000000002.json"))["licence"] == "CC0"  # what else it says is kept


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("a.csv", 'file_name,caption\nx/1.png,"red, round"\nx/2.png,blue\n', "utf-8-sig"),
        ("a.csv", "Image Path;Text\r\nx\\1.png;red, round\r\nx/2.png;blue\r\n", "utf-16"),
        ("a.tsv", "file\tcaption\n1.png\tred, round\n2\tblue\n", "utf-8"),
        ("a.csv", "image,caption\n1.png,red, round\n2.png,blue\n", "utf-8"),  # no quotes around it
        ("a.csv", "image| comment\n1.png| red, round\n2.png| blue\n", "utf-8"),
        ("a.csv", 'x/1.png,"red, round"\nx/2.png,blue\n', "utf-8"),  # no header
        ("a.jsonl", '{"image": "x/1.png", "text": ["red, round"]}\n\n{"image": "2.png", "text": "blue"}\n', "utf-8"),
    ],
)
def test_tables_of_many_forms(tmp_path, name, text, encoding):
    source = tmp_path / "in"
    for number in (1, 2):
        captioned(source / "x", number, None, name=str(number))
    (source / name).write_bytes(text.encode(encoding))
    found = prepared(source / name, tmp_path / "out")
    assert sorted(map(tuple, written(tmp_path / "out").values())) == [("blue",), ("red, round",)]
    assert "of images and captions" in found.kind and found.num_train == 2
    assert prepared(source, tmp_path / "again").counts.read == 2  # the folder is taken for the same


def test_rows_about_one_image_are_its_captions(tmp_path):
    source = tmp_path / "in"
    for number in (1, 2, 3):
        captioned(source, number, None)
    (source / "a.csv").write_text("file,caption\n0001.png,a\n0002.png,b\n0001.png,c\n0001.png,a\nmissing.png,d\n,e\n")
    found = prepared(source, tmp_path / "out")
    assert written(tmp_path / "out") == {"0001.png": ["a", "c"], "0002.png": ["b"]}
    assert {reason: about.count for reason, about in found.counts.broken.items()} == {
        "no such image file": 1,
        "a row that names no image": 1,
    }
    assert "Images of the folder that are in no row of the table, and are not read: 1." in found.notes


def test_the_column_is_told_and_can_be_chosen(tmp_path):
    source = tmp_path / "in"
    captioned(source, 1, None)
    (source / "a.csv").write_text("file,title,caption,mine\n0001.png,t,c,m\n")
    found = prepared(source, tmp_path / "out")
    assert written(tmp_path / "out") == {"0001.png": ["c"]}
    assert any("title" in note and "--caption_column" in note for note in found.notes)
    prepared(source, tmp_path / "b", caption_column="mine")
    assert written(tmp_path / "b") == {"0001.png": ["m"]}
    with pytest.raises(
        ValueError, match=r"caption_column other: .*a\.csv has no such column; name one of its columns: file, title"
    ):
        prepared(source, tmp_path / "c", caption_column="other")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("url,caption\nhttp://x/1.png,a\n", "its column url holds addresses, .* img2dataset"),
        ("a,b\n1,2\n", "no column names image files by a usual name .*a, b.*--image_column"),
        ("file,b\n0001.png,2\n", "no column holds captions by a usual name .*--caption_column"),
    ],
)
def test_tables_without_the_columns_are_refused(tmp_path, text, said):
    captioned(tmp_path / "in", 1, None)
    (tmp_path / "in/a.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        prepared(tmp_path / "in", tmp_path / "out")


def test_a_quote_that_is_never_closed_is_said(tmp_path):
    captioned(tmp_path / "in", 1, None)
    rows = "".join(f"0001.png,caption {n}\n" for n in range(200))
    (tmp_path / "in/a.csv").write_text('file,caption\n0001.png,"open\n' + rows)
    with pytest.raises(ValueError, match=r"a\.csv: the row from line 2 on has over 100 lines: a quote"):
        prepared(tmp_path / "in", tmp_path / "out")


def test_parquet_with_images_in_it_and_files_beside_it(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table
    source = tmp_path / "in"
    source.mkdir()
    img2dataset = table({"caption": ["a", "b"], "jpg": [png(1), png(2)], "url": ["http://x", "http://y"]})
    parquet.write_table(img2dataset, source / "00000.parquet")
    hub = table({"text": ["c"], "image": [{"bytes": png(3), "path": "3.png"}]})
    parquet.write_table(hub, tmp_path / "hub.parquet")
    prepared(source, tmp_path / "out")
    assert written(tmp_path / "out") == {"row 1": ["a"], "row 2": ["b"]}
    prepared(tmp_path / "hub.parquet", tmp_path / "b")
    assert written(tmp_path / "b") == {"row 1": ["c"]}
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "hub.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cut\.parquet is damaged or no Parquet file"):
        prepared(tmp_path / "cut.parquet", tmp_path / "c")


def test_parquet_files_of_one_form_are_read_together_by_columns_that_are_chosen(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "in").mkdir()
    for number in range(2):
        rows = pa.table({"pixels": [{"bytes": png(number), "path": None}], "words": [f"number {number}"]})
        pq.write_table(rows, tmp_path / f"in/part-{number}.parquet")
    with pytest.raises(ValueError, match="--image_column"):
        prepared(tmp_path / "in", tmp_path / "out")
    found = prepared(tmp_path / "in", tmp_path / "out", image_column="pixels", caption_column="words")
    assert found.num_train == 2


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet: reading Parquet needs pyarrow: pip install 'dalle\[data\]'"):
        prepared(tmp_path / "a.parquet", tmp_path / "out")


def test_what_img2dataset_writes(tmp_path):
    shards, files = tmp_path / "shards", tmp_path / "files"
    captioned(files / "00000", 1, "one", name="000000001")
    captioned(files / "00000", 2, "two", name="000000002").with_suffix(".json").write_text('{"caption": "two"}')
    shards.mkdir()
    with tarfile.open(shards / "00000.tar", "w") as tar:
        tar.add(files / "00000", arcname=".")
    for folder in (shards, files):
        (folder / "00000.parquet").write_bytes(b"its metadata, which is not read")
        (folder / "00000_stats.json").write_text("{}")
    for folder in (shards, files):
        prepared(folder, folder.with_suffix(".out"))
        assert sorted(written(folder.with_suffix(".out")).values()) == [["one"], ["two"]]
    assert prepared(f"{shards}/*.tar", tmp_path / "again").num_train == 2
    captioned(shards, 3, "three")
    with pytest.raises(ValueError, match=r"holds 00000\.tar and also 1 images: say which are meant"):
        prepared(shards, tmp_path / "both")


def test_an_image_folder_of_hugging_face(tmp_path):
    source = tmp_path / "in"
    for number, split in enumerate(("train", "validation")):
        captioned(source / split, number, None)
        (source / split / "metadata.jsonl").write_text(json.dumps({"file_name": f"{number:04d}.png", "text": split}))
    prepared(source, tmp_path / "out")
    assert written(tmp_path / "out") == {"0000.png": ["train"], "0001.png": ["validation"]}
    (source / "train/metadata.csv").write_text("file_name,text\n0000.png,other\n")
    with pytest.raises(
        ValueError, match=r"train/metadata\.csv and train/metadata\.jsonl both name images and captions"
    ):
        prepared(source, tmp_path / "twice")


def test_names_and_folders_as_captions(tmp_path):
    names, classes = tmp_path / "names", tmp_path / "classes"
    for number, name in enumerate(("a red apple (2)", "a_red_apple_001", "green-pear", "sub/Ein Haus")):
        captioned(names, number, None, name=name)
    found = prepared(names, tmp_path / "a")
    assert found.kind == "images whose names are the captions"
    assert written(tmp_path / "a") == {
        "a red apple (2).png": ["a red apple"],
        "a_red_apple_001.png": ["a red apple"],
        "green-pear.png": ["green pear"],
        "sub/Ein Haus.png": ["Ein Haus"],
    }
    for number, name in enumerate(("train/black_cat/IMG_1", "train/black_cat/2", "valid/dog/images/3")):
        captioned(classes, number, None, name=name)
    assert prepared(classes, tmp_path / "b").kind == "images whose folders are the captions"
    assert list(written(tmp_path / "b").values()) == [["black cat"], ["black cat"], ["dog"]]
    assert written(tmp_path / "b").keys() == {f"train/black_cat/{n}.png" for n in ("2", "IMG_1")} | {
        "valid/dog/images/3.png"
    }
    assert prepared(names, tmp_path / "c", captions="folders").counts.num_broken == 3  # the word of the user counts


def test_four_names_in_five_and_two_folders_are_enough_and_fewer_are_not(tmp_path):
    names, folders = tmp_path / "names", tmp_path / "folders"
    for number, name in enumerate(("red", "green", "yellow", "orange", "IMG_1")):
        captioned(names, number, None, name=name)
    assert prepared(names, tmp_path / "a").kind == "images whose names are the captions"
    captioned(names, 9, None, name="IMG_2")
    with pytest.raises(ValueError, match="6 images, and no captions"):
        prepared(names, tmp_path / "b")
    for number in range(2):
        captioned(folders, number, None, name=f"cat/IMG_{number}")
    with pytest.raises(ValueError, match="2 images, and no captions"):  # all would have the same
        prepared(folders, tmp_path / "c")
    captioned(folders, 2, None, name="dog/IMG_2")
    assert prepared(folders, tmp_path / "d").kind == "images whose folders are the captions"


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("Apollo 11", "Apollo 11"),
        ("a red apple copy", "a red apple"),
        ("photo_of_a_dog", "photo of a dog"),
        ("well-known place", "well-known place"),
        ("赤いりんご_3", "赤いりんご"),
        ("red 3d", "red 3d"),
        ("IMG_20140503_123456", None),
        ("DSC00012", None),
        ("DSCF-1(1)", None),
        ("100080576_f52e8ee070_n", None),
        ("9f86d081884c7d65", None),
        ("image (12)", None),
        ("000123", None),
        ("", None),
        ("caf\udce9", None),  # bytes that are no text
    ],
)
def test_what_a_name_says(name, caption):
    assert caption_of(name) == caption


def test_a_table_goes_before_files_beside_images_which_can_be_chosen(tmp_path):
    source = tmp_path / "in"
    captioned(source, 1, "of the file")
    (source / "a.csv").write_text("file,caption\n0001.png,of the table\n")
    found = prepared(source, tmp_path / "out")
    assert written(tmp_path / "out") == {"0001.png": ["of the table"]}
    assert any("--captions files" in note for note in found.notes)
    prepared(source, tmp_path / "files", captions="files")
    assert written(tmp_path / "files") == {"0001.png": ["of the file"]}
    (source / "b.csv").write_text("file,caption\n0001.png,of another\n")
    with pytest.raises(ValueError, match=r"a\.csv and b\.csv both name images and captions: give the one"):
        prepared(source, tmp_path / "two")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], r"no images \(\.png"),
        (["a.heic", "b.HEIC"], r"no images .*2 \.heic"),
        (["a.txt", "b.txt"], "2 files that may hold captions, and no images"),
        (["00012.png", "IMG_1.png"], r"2 images, and no captions: .* NAME\.txt"),
    ],
)
def test_folders_without_pairs_are_refused_in_one_line(tmp_path, files, said):
    (tmp_path / "in").mkdir()
    for number, name in enumerate(files):
        (tmp_path / "in" / name).write_bytes(png(number) if name.endswith("png") else b"words")
    with pytest.raises(ValueError, match=said) as error:
        prepared(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_json_that_cannot_be_read_is_told_from_another_encoding(tmp_path):
    for name in ("json", "txt"):
        for number in range(2):
            captioned(tmp_path / name, number, None)
        (tmp_path / name / "0000.json").write_text('{"caption": "one"}')
    (tmp_path / "json/0001.json").write_text('{"caption": "two",}')
    (tmp_path / "txt/0001.txt").write_bytes("caf\u00e9".encode("latin-1"))
    for name, detail in (("json", "its .json is no JSON"), ("txt", "")):
        found = prepared(tmp_path / name, tmp_path / f"out-{name}")
        assert found.counts.broken["caption is not text"].first[0][1:] == ("0001.png", detail)
        assert any("save it as UTF-8" in note for note in found.notes) == (name == "txt")


def test_links_loops_and_what_is_no_file(tmp_path):
    source = tmp_path / "in"
    captioned(source / "real", 1, "one")
    captioned(tmp_path / "elsewhere", 2, "two")
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "real/loop").symlink_to(source)
    (source / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(source / "pipe.png")  # to read it would take forever
    for hidden in (".hidden", "__MACOSX", "@eaDir"):
        captioned(source / hidden, 3, "a copy")
    (source / "real/._0001.png").write_bytes(b"resource fork")
    found = prepared(source, tmp_path / "out")
    assert written(tmp_path / "out") == {"linked/0002.png": ["two"], "real/0001.png": ["one"]}
    assert found.counts.broken["a file cannot be read"].count == 1
    assert found.counts.other_files["another kind of file"].count == 1


def test_names_that_are_no_text(tmp_path):
    source = tmp_path / "in"
    captioned(source, 1, "one", name="caf\udce9")
    (source / "a.csv").write_bytes(b"file,caption\ncaf\xe9.png,two\n")
    prepared(source, tmp_path / "table")
    assert written(tmp_path / "table") == {"caf\\udce9.png": ["two"]}
    prepared(source, tmp_path / "files", captions="files")
    assert written(tmp_path / "files") == {"caf\\udce9.png": ["one"]}
    assert "caf" in (tmp_path / "files/report.html").read_text(encoding="utf-8")


def test_an_image_of_every_sort_is_decoded_or_counted(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    picture(1).save(source / "1.gif", save_all=True, append_images=[picture(2)])
    picture(3, mode="CMYK").save(source / "3.jpg")
    picture(4).convert("RGBA").save(source / "4.png")
    picture(5).convert("I;16").save(source / "5.png")
    picture(6).save(source / "6.bmp")
    exif = picture(0).getexif()
    exif[0x0112] = 6
    picture(7, (60, 40)).save(source / "7.JPEG", exif=exif)
    (source / "8.png").write_bytes(b"")
    (source / "9.jpg").write_bytes(png(9)[:-40])
    for number in range(1, 10):
        (source / f"{number}.txt").write_text(f"number {number}")
    found = prepared(source, tmp_path / "out")
    assert found.num_train == 6 and found.counts.broken["image does not decode"].count == 2
    with tarfile.open(tmp_path / "out/train-000.tar") as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}
    about = {json.loads(data)["file"]: (name[:9], json.loads(data)) for name, data in files.items() if "json" in name}
    extensions = {
        file: next(n for n in files if n[:10] == f"{key}." and n[-3:] in ("png", "jpg"))
        for file, (key, _) in about.items()
    }
    assert {file: name[-3:] for file, name in extensions.items()} == {
        **{"1.gif": "png", "3.jpg": "jpg", "4.png": "png", "5.png": "png", "6.bmp": "png", "7.JPEG": "jpg"},
    }
    # as they are, but for what has to be encoded anew
    assert all(files[extensions[name]].startswith(b"\x89PNG") for name in ("1.gif", "4.png", "5.png", "6.bmp"))
    assert files[extensions["7.JPEG"]] == (source / "7.JPEG").read_bytes()
    assert (about["7.JPEG"][1]["width"], about["7.JPEG"][1]["height"]) == (40, 60)  # upright
    with Image.open(io.BytesIO(files[extensions["1.gif"]])) as first:
        assert np.abs(np.asarray(first.convert("RGB"), float) - np.asarray(picture(1), float)).max() < 40  # 256 colours
