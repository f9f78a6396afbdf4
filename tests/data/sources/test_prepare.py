"""What is left out, what is held out, and what is written: whatever goes wrong, the source is as it was and the output is whole."""

import errno
import hashlib
import json
import os
import re
import tarfile

import pytest
from PIL import Image

from dalle.cli.data.filter import filter_pictures
from dalle.config import Filters, Images
from dalle.data.samples import read_pairs
from dalle.data.sources import make, write
from dalle.data.sources.judge import caption_reason
from dalle.data.sources.prepare import read_prepared
from tests.data.sources.pictures import captioned, picture, prepared, written


def _folder(path, number, captions=lambda n: f"number {n} of all"):
    for n in range(number):
        captioned(path, n, captions(n))
    return path


def _bytes(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*"))
        if path.suffix in (".tar", ".html")
    }


def test_the_shards_are_what_the_trainings_read(tmp_path):
    found = prepared(_folder(tmp_path / "in", 30), tmp_path / "out put", share=0.2)
    pairs = [list(read_pairs(spec, Images(augmentation="none"), 32)) for spec in (found.train, found.valid)]
    assert [len(p) for p in pairs] == [found.num_train, found.num_valid]
    assert {c for p in pairs for pair in p for c in pair.captions} == {f"number {n} of all" for n in range(30)}
    assert read_prepared(tmp_path / "out put") == found
    os.rename(tmp_path / "out put", tmp_path / "moved")
    assert read_prepared(tmp_path / "moved").train == f"{tmp_path}/moved/train-000.tar"
    assert read_prepared(tmp_path) is None


def test_figures_are_those_of_what_is_kept(tmp_path):
    captioned(tmp_path / "in", 0, "one two three\nfour")
    captioned(tmp_path / "in", 1, "five six")
    picture(2, (70, 90)).save(tmp_path / "in/2.png")
    (tmp_path / "in/2.txt").write_text("five six")
    found = prepared(tmp_path / "in", tmp_path / "out")
    assert (found.caption_words_median, found.caption_tokens_max_chars, found.side_px_median) == (2, 13, 40)
    assert found.captions_per_image == pytest.approx(4 / 3)
    assert found.inspection["captions_of_several_images"] == 1
    assert found.inspection["sides_px"] == [0, 2, 1, 0, 0, 0, 0, 0, 0]  # 32 to 63, 64 to 127
    assert found.inspection["words"] == [1, 3, 0, 0, 0, 0, 0]
    page = (tmp_path / "out/report.html").read_text()
    for bar in (
        '32 – 63</span><i style="width:100.0%"></i><span>2<',
        '64 – 127</span><i style="width:50.0%"></i><span>1<',
    ):
        assert bar in page
    assert ">128 – 255<" not in page  # of what there is none, between what there is alone
    assert found.inspection["captions_an_image"] == {"1": 2, "2": 1}


def test_images_of_equal_pixels_and_other_sides_are_two(tmp_path):
    (tmp_path / "in").mkdir()
    for name, size in (("lying", (60, 40)), ("standing", (40, 60))):
        Image.new("RGB", size, "red").save(tmp_path / f"in/{name} red.png")
    assert prepared(tmp_path / "in", tmp_path / "out").num_train == 2


def test_equal_images_are_one_with_the_captions_of_all(tmp_path):
    source = tmp_path / "in"
    captioned(source, 1, "IMG_1234", name="a")  # says nothing, but its double does
    captioned(source, 1, "a ball\nred", name="b")
    picture(1).save(source / "c.bmp")  # other bytes, equal pixels
    (source / "c.txt").write_text("red\nround")
    captioned(source, 2, "other", name="d")
    found = prepared(source, tmp_path / "out")
    assert written(tmp_path / "out") == {"a.png": ["a ball", "red", "round"], "d.png": ["other"]}
    (reason,) = found.counts.filtered.values()
    assert reason.count == 2 and {detail for _, _, detail in reason.first} == {"a.png"}
    assert found.caption_counts.num_filtered == 1 and found.inspection["equal_images"] == 2
    prepared(source, tmp_path / "all", Filters(duplicates=None))
    assert list(written(tmp_path / "all").values()) == [["a ball", "red"], ["red", "round"], ["other"]]


@pytest.mark.parametrize(
    ("filters", "size", "kept"),
    [
        (Filters(), (32, 64), True),
        (Filters(), (32, 65), False),
        (Filters(), (65, 32), False),
        (Filters(max_aspect_ratio=None), (32, 200), True),
        (Filters(), (31, 40), False),
        (Filters(min_side_px=None), (5, 6), True),
        (Filters(min_side_px=100), (99, 120), False),
    ],
)
def test_sizes(tmp_path, filters, size, kept):
    (tmp_path / "in").mkdir()
    picture(0, (120, 120)).save(tmp_path / "in/0.png")
    (tmp_path / "in/0.txt").write_text("always there")
    picture(1, size).save(tmp_path / "in/1.png")
    (tmp_path / "in/1.txt").write_text("may be there")
    found = prepared(tmp_path / "in", tmp_path / "out", filters)
    assert found.num_train == 1 + kept and found.counts.num_filtered == 1 - kept
    assert ("may be there" in (tmp_path / "out/report.html").read_text()) or kept  # shown with the reason


@pytest.mark.parametrize(
    "caption",
    [
        *(
            "photographed on 3 May 2014",
            "Photograph taken on May 3rd, 2014.",
            "IMG_1234",
            "DSC00012.JPG",
            "untitled",
            "001234",
        ),
        *(
            "photo by unknown",
            "© 2014 Some Body",
            "Foo Inc. All rights reserved.",
            "https://example.com/x.jpg",
            "image",
        ),
        *(
            "Click to enlarge",
            "image may contain: outdoor",
            "no caption available",
            "2014-05-03",
            "Uploaded: 3.5.2014",
            "...",
        ),
        *("Screenshot 2021-03-04 at 10.11.12", "view full-size image", "a photo"),
    ],
)
def test_boilerplate(caption):
    assert caption_reason(caption, Filters()) is not None
    assert caption_reason(caption, Filters(boilerplate=None)) is None


@pytest.mark.parametrize(
    "caption",
    [
        *(
            "a cat photographed on 3 May 2014",
            "May",
            "a photo of a cat",
            "pin",
            "cat",
            "img2img sketch of a dog",
            "P is for pig",
        ),
        *(
            "untitled painting of a horse",
            "a test tube",
            "the image of a saint",
            "猫",
            "may flowers on a table",
            "7 dwarfs",
        ),
        *(
            "an error message",
            "none of them smiles",
            "unknown soldier",
            "a title page",
            "3d emoji of a cat",
            "O",
            "no entry",
            "😀",
            "12",
            "a",
        ),
    ],
)
def test_what_only_looks_like_boilerplate_stays(caption):
    assert caption_reason(caption, Filters()) is None


def test_captions_are_left_out_one_by_one(tmp_path):
    captioned(tmp_path / "in", 0, "short\nlong enough to stay\n" + "x" * 41)
    captioned(tmp_path / "in", 1, "tiny")
    captioned(tmp_path / "in", 2, "a stock photograph of it")
    captioned(tmp_path / "in", 3, None)
    filters = Filters(min_caption_chars=6, max_caption_chars=40, boilerplate=("a stock .*",))
    found = prepared(tmp_path / "in", tmp_path / "out", filters)
    assert written(tmp_path / "out") == {"0000.png": ["long enough to stay"]}
    assert {reason: about.count for reason, about in found.caption_counts.filtered.items()} == {
        "shorter than filters.min_caption_chars 6": 2,
        "longer than filters.max_caption_chars 40": 1,
        "boilerplate, which says nothing of the picture": 1,
    }
    assert found.counts.num_filtered == 2 and found.counts.broken["no caption"].count == 1
    page = (tmp_path / "out/report.html").read_text()
    assert all(text in page for text in ("tiny", "a stock photograph of it", "no caption", "0003.png"))
    assert not re.search(r'(src|href)="(?!data:)', page) and len(page) < 1_500_000
    with pytest.raises(ValueError, match="no image can be used: of 4 samples 0 were used, 3 filtered out, 1 broken"):
        prepared(tmp_path / "in", tmp_path / "none", Filters(min_caption_chars=100))


def test_another_language_is_left_out_and_short_english_is_not():
    pytest.importorskip("py3langid")
    filters = Filters(language="en")
    other = ("Eine Gruppe von Menschen steht am Strand vor den Wellen", "Взрыв!!!", "みんなに きりわけられた パン")
    assert all(caption_reason(caption, filters) is not None for caption in other)
    assert all(caption_reason(caption, Filters()) is None for caption in other)  # off by default
    english = (
        "Boom!!!",
        "A glove.",
        "Hair.",
        "tanabata tree",
        "ship",
        "a 3d emoji of pizza",
        "A young girl rides a pony",
    )
    assert [caption for caption in english if caption_reason(caption, filters)] == []
    assert caption_reason("猫が好き", Filters(language="en", language_min_chars=5)) is None  # of four characters
    with pytest.raises(ValueError, match=r"filters\.language xx: is none that the detector knows; known are .*, en, "):
        prepared("nowhere", "out", Filters(language="xx"))


def test_where_the_limits_of_the_language_filter_lie(monkeypatch):
    """By a detector that is as sure as it is told to be."""
    from dalle.data.sources import judge

    filters = Filters(language="en", language_confidence=0.75, language_min_chars=4)
    for sure, caption, is_kept in ((0.75, "ente", False), (0.74, "ente", True), (1.0, "eis", True)):
        monkeypatch.setattr(judge, "in_another_language", lambda text, language, sure=sure: sure)
        assert (judge.caption_reason(caption, filters) is None) == is_kept


def test_the_detector_is_asked_for_in_one_line(tmp_path, monkeypatch):
    from dalle.data.sources import judge

    judge._detector.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "py3langid.langid", None)
    with pytest.raises(ValueError, match=r"filters\.language: needs a detector .* pip install 'dalle\[data\]'"):
        prepared(tmp_path, tmp_path / "out", Filters(language="en"))


def test_held_out_images_are_drawn_by_their_pixels(tmp_path):
    source = _folder(tmp_path / "in", 40)
    prepared(source, tmp_path / "a", share=0.3)
    held = written(tmp_path / "a", "valid").keys()
    assert 4 <= len(held) <= 21  # binomial(40, 0.3): outside with probability below 0.2%, and the draw is fixed
    for n in range(40, 60):
        captioned(source, n, "more", name=f"0000-{n}")  # between those that were there
    captioned(source, 7, "again", name="double")
    prepared(source, tmp_path / "b", Filters(duplicates=None), share=0.3)
    after = written(tmp_path / "b", "valid").keys()
    assert held == {name for name in after if name in {f"{n:04d}.png" for n in range(40)}}
    assert ("double.png" in after) == ("0007.png" in after)
    prepared(source, tmp_path / "c", share=0.3, seed=1)
    assert written(tmp_path / "c", "valid").keys() != written(tmp_path / "b", "valid").keys()


def test_few_pictures(tmp_path):
    three = prepared(_folder(tmp_path / "three", 3), tmp_path / "a", share=0.5)
    assert (three.num_train, three.num_valid, three.valid) == (3, 0, None)
    assert any("No image is held out" in note for note in three.notes)
    ten = prepared(_folder(tmp_path / "ten", 10), tmp_path / "b", share=1e-9)
    assert (ten.num_train, ten.num_valid) == (9, 1)


def test_the_same_bytes_with_any_number_of_workers(tmp_path, monkeypatch):
    from dalle.data.sources import look

    monkeypatch.setattr(look, "_IN_ONE_PROCESS", 4)
    monkeypatch.setattr(look, "_CHUNK", 1)
    monkeypatch.setattr(write, "SHARD_IMAGES", 5)
    source = _folder(tmp_path / "in", 12)
    rows = [f"{n % 12:04d}.png,caption {n}" for n in range(30)]
    (source / "a.csv").write_text("\n".join(["file,caption", *rows]))
    several = prepared(source, tmp_path / "a", workers=2)
    assert several.train == f"{tmp_path}/a/train-{{000..002}}.tar"
    prepared(source, tmp_path / "b", workers=1)
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b") and len(_bytes(tmp_path / "a")) == 4
    assert written(tmp_path / "a")["0003.png"] == ["caption 3", "caption 15", "caption 27"]


def test_a_second_call_does_nothing_and_another_making_is_refused(tmp_path):
    source, output = _folder(tmp_path / "in", 3), tmp_path / "in/out"  # inside: not read as a source
    first = prepared(source, output)
    times = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert prepared(source, output) == first and {p: p.stat().st_mtime_ns for p in output.iterdir()} == times
    with pytest.raises(ValueError, match=r"made with other settings \(seed was 0, is 1\).*--overwrite"):
        prepared(source, output, seed=1)
    captioned(source, 9, "new")
    with pytest.raises(ValueError, match=r"the source was 6 files of .* and is 8 files"):
        prepared(source, output)
    assert prepared(source, output, overwrite=True).num_train == 4
    (output / "train-000.tar").unlink()
    assert prepared(source, output).num_train == 4 and (output / "train-000.tar").is_file()  # made again
    assert not list(output.glob(".dalle-unfinished*"))


def test_where_nothing_is_written(tmp_path):
    source = _folder(tmp_path / "a/in", 3)
    for output in (source, tmp_path / "a"):
        with pytest.raises(ValueError, match=r"holds the source .*, which is never written into"):
            prepared(source, output)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train-000.tar").write_text("somebody's")
    with pytest.raises(ValueError, match=r"is not empty: it holds train-000\.tar"):
        prepared(source, tmp_path / "mine")
    assert (tmp_path / "mine/train-000.tar").read_text() == "somebody's"
    with pytest.raises(ValueError, match="there is no such file or folder"):
        prepared(tmp_path / "nowhere", tmp_path / "out")


def test_a_disk_that_fills_leaves_nothing_half_done(tmp_path, monkeypatch):
    source, output = _folder(tmp_path / "in", 4), tmp_path / "out"
    before = {path: path.read_bytes() for path in source.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(write.ShardWriter, "_add", full)
        with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\): make room") as error:
            prepared(source, output)
    assert "\n" not in str(error.value) and not [p for p in output.glob("*")] and read_prepared(output) is None
    assert prepared(source, output).num_train == 4
    assert {path: path.read_bytes() for path in source.iterdir()} == before


def test_one_that_was_killed_is_made_anew(tmp_path, monkeypatch):
    source, output = _folder(tmp_path / "in", 4), tmp_path / "out"
    prepared(source, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(make, "write_page", killed)
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # a killed process removes nothing
        with pytest.raises(Killed):
            prepared(source, output)
    assert list(output.glob(".dalle-unfinished*/train-000.tar")) and read_prepared(output) is None
    prepared(source, output)
    assert written(output) == written(tmp_path / "whole") and not list(output.glob(".dalle-unfinished*"))


def test_two_at_once_are_refused(tmp_path):
    source, output = _folder(tmp_path / "in", 3), tmp_path / "out"
    said = []

    def told(what, number):
        if what == "write" and not said:
            with pytest.raises(ValueError, match="is writing there") as error:
                prepared(source, output)
            said.append(str(error.value))

    assert prepared(source, output, told=told).num_train == 3 and said


def test_a_source_that_changes_while_it_is_read_is_said(tmp_path):
    source = _folder(tmp_path / "in", 3)

    def told(what, number):
        if what == "read" and number == 3:
            (source / "0001.png").write_bytes(b"other")

    with pytest.raises(ValueError, match=r"0001\.png was changed while it was read: call it again"):
        prepared(source, tmp_path / "out", told=told)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folders(tmp_path):
    source = _folder(tmp_path / "in", 3)
    source.chmod(0o500)
    assert prepared(source, tmp_path / "out").num_train == 3
    with pytest.raises(ValueError, match="is not writable"):
        prepared(source, source / "out")


def test_the_command(tmp_path, capsys):
    source = _folder(tmp_path / "in", 12)
    filter_pictures([str(source), str(tmp_path / "out"), "--valid_share", "0.2", "--filters.min_caption_chars", "null"])
    printed = capsys.readouterr().out
    assert "Taken for a folder of images with .txt files" in printed and "12 of 12 images are kept." in printed
    assert "shorter sides are 40 px at the median and 40 at least; their captions, 12 in all, have " in printed
    assert f"{tmp_path}/out/report.html" in printed.splitlines()[-1]
    values = json.loads((tmp_path / "out/prepared.json").read_text())
    assert values["num_train"] + values["num_valid"] == 12
    filter_pictures(
        ["--output", str(tmp_path / "b"), str(source), "--filters.boilerplate", '["stock .*"]', "--workers=1"]
    )


def test_names_from_strangers_are_harmless_on_the_page(tmp_path):
    captioned(tmp_path / "in", 1, '<script>alert("x")</script>\x00', name="<b>&amp;")
    prepared(tmp_path / "in", tmp_path / "out", captions="files")
    page = (tmp_path / "out/report.html").read_text()
    assert "<script" not in page and "<b>&amp;.png" not in page and "\x00" not in page
    with tarfile.open(tmp_path / "out/train-000.tar") as tar:
        assert tar.getnames()[0] == "000000000.png"
