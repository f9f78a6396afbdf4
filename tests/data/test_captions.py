"""The caption that is there is used, wherever the file of a sample has it; what is no text is broken, never a traceback."""

import json

import pytest

from dalle.config import Images
from dalle.data.captions import class_name, read_all_captions, read_captions
from dalle.data.counts import Broken, Counts
from dalle.data.samples import Decoder
from tests.data.pictures import encoded, gradient, write_shard


def _json(**values) -> bytes:
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"txt": b" a  b\n"}, ["a b"]),
        ({"json": _json(captions=[" a  b ", "c"]), "txt": b"d"}, ["a b", "c"]),
        # the txt stands for all where one caption has to
        ({"json": _json(captions=["a", "b", "c", "b"]), "txt": b" b\n"}, ["b", "a", "c"]),
        ({"json": b"{}", "txt": "ä".encode()}, ["ä"]),
        # img2dataset
        ({"json": _json(caption="a", url="u", status="success", key="0"), "txt": b"a"}, ["a"]),
        ({"json": _json(caption="a", url="u")}, ["a"]),
        ({"json": _json(caption=None, url="u"), "txt": b"b"}, ["b"]),
        ({"json": _json(caption="", url="u"), "txt": b"b"}, ["b"]),
        ({"json": _json(caption="a"), "txt": b""}, ["a"]),
        # others
        ({"json": _json(caption=["a", "b"])}, ["a", "b"]),
        ({"json": _json(captions="a")}, ["a"]),
        ({"json": _json(captions=[], caption="a")}, ["a"]),
        ({"json": _json(captions=["", None], caption="a")}, ["a"]),
        ({"json": _json(captions=["a", None, "", 3])}, ["a"]),
        ({"json": _json(captions=[]), "txt": b"x"}, ["x"]),
        ({"json": _json(captions=None), "txt": b"x"}, ["x"]),
        ({"json": _json(TEXT="a")}, ["a"]),
        ({"json": _json(prompt="a")}, ["a"]),
        ({"json": _json(Caption="a")}, ["a"]),
        # what is damaged beside a caption that is whole
        ({"json": b"{bad", "txt": b"x"}, ["x"]),
        ({"json": b"[1]", "txt": b"x"}, ["x"]),
        ({"json": b'{"caption": "a", "caption": "b"}', "txt": b"x"}, ["x"]),
        ({"json": _json(caption="a"), "txt": b"\xff"}, ["a"]),
        ({"json": _json(captions=["\ud800", "b"])}, ["b"]),
        ({"json": b"[" * 100_000, "txt": b"x"}, ["x"]),
        # byte order marks
        ({"txt": b"\xef\xbb\xbfa"}, ["a"]),
        ({"txt": "ä b".encode("utf-16")}, ["ä b"]),
        ({"txt": b"\xfe\xff" + "ä b".encode("utf-16-be")}, ["ä b"]),
        ({"json": b"\xef\xbb\xbf" + _json(caption="a")}, ["a"]),
        ({"json": _json(caption="\ufeffa")}, ["a"]),
        # none
        ({}, []),
        ({"txt": b"   "}, []),
        ({"txt": b"\xef\xbb\xbf"}, []),
        ({"json": _json(captions=[])}, []),
        ({"json": _json(captions=[None], caption=None)}, []),
        ({"json": b"null"}, []),
    ],
)
def test_the_caption_that_is_there_is_used(files, expected):
    assert read_captions({"__key__": "0", "__url__": "u", **files})[0] == expected


@pytest.mark.parametrize(
    "files",
    [
        {"txt": b"\xff\xfe\xfa"},
        {"txt": b"caf\xe9"},
        {"json": b"{bad"},
        {"json": b'{"caption": "a", "caption": "b"}'},
        {"json": b"\xff"},
        {"json": b"[" * 100_000},
        {"json": _json(captions=[1, 2])},
        {"json": _json(caption={"a": 1})},
        {"json": _json(caption="a \ud800 b")},
        {"json": b'"\xed\xa0\x80"', "txt": b"\xed\xa0\x80"},
    ],
)
def test_what_is_no_text_is_broken_also_where_no_caption_is_needed(files):
    sample = {"__key__": "0", "__url__": "u", "png": encoded(gradient()), **files}
    for least in (0, 1, 2):
        with pytest.raises(Broken, match="caption is not text"):
            Decoder(Images(min_caption_chars=least), 16, seed=0).captions(sample)


def test_no_caption_is_broken_where_one_is_needed():
    sample = {"__key__": "0", "__url__": "u", "png": encoded(gradient()), "txt": b" "}
    assert Decoder(Images(min_caption_chars=0), 16, seed=0).captions(sample) == ([""], None)
    with pytest.raises(Broken, match=r"^no caption$"):
        Decoder(Images(), 16, seed=0).captions(sample)


def test_a_scene_that_is_not_ours_is_none():
    assert read_captions({"json": _json(caption="a", scene="kitchen")}) == (["a"], None)
    assert read_captions({"json": _json(caption="a", scene={"x": 1})}) == (["a"], {"x": 1})


def test_all_captions_are_counted_like_any_samples(tmp_path):
    samples = [{"txt": b"one"}, {"json": _json(captions=["two", "three"])}, {"txt": b""}, {"txt": b"\xff"}]
    write_shard(tmp_path / "some.tar", [{"png": b"unread", **files} for files in samples])
    counts = Counts()
    assert list(read_all_captions(str(tmp_path / "some.tar"), counts=counts)) == ["one", "two", "three"]
    assert counts.read == 4 and counts.num_filtered == 0
    assert {reason: [key for _, key, _ in found.first] for reason, found in counts.broken.items()} == {
        "no caption": ["0002"],
        "caption is not text": ["0003"],
    }
    write_shard(tmp_path / "none.tar", [{"png": b"unread"}])
    with pytest.raises(ValueError, match=r"none\.tar has no caption: of 1 samples .*1 × no caption: 0000"):
        list(read_all_captions(str(tmp_path / "none.tar")))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_files_may_have_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "some.txt").write_text("ä one\n\ntwo\n", encoding=encoding)
    assert list(read_all_captions(str(tmp_path / "some.txt"))) == ["ä one", "two"]
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfea")
    with pytest.raises(ValueError, match=r"odd\.txt is not UTF-8 text"):
        list(read_all_captions(str(tmp_path / "odd.txt")))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (" cat ", "cat"), (7, "7"), (0, "0"), (False, "false"), ({"b": 1, "a": [2]}, '{"a": [2], "b": 1}'),
        (" ", None), (None, None), ([], None), ({}, None),
    ],
)  # fmt: skip
def test_whatever_a_json_calls_its_class_is_one(written, name):
    sample = {"__key__": "0", "__url__": "x.tar", "json": json.dumps({"Kind": written}).encode()}
    assert class_name(sample, "KIND") == name and class_name(sample, "other") is None
