"""Files of this program that were cut off or have other bytes somewhere: refused by name, or the same as ever. Never a traceback of
another kind, and nothing that is read without being what it says."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import load_file, save_file

from dalle.config import plain_json
from dalle.data.tokens import TokenShards, packed
from dalle.own.plan_files import PlanFiles
from dalle.sampling.again import read_record
from dalle.sampling.drawing import Drawing, read_drawing, save_drawing
from dalle.sampling.gallery import Gallery
from tests.faults.damage import fuzz
from tests.faults.frame import counts
from tests.faults.kinds import KINDS
from tests.faults.kinds.outputs import gallery, plan, read_tokens, tokens


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_refused_by_name(tmp_path, name):
    fuzz(tmp_path, name, KINDS[name], 25, 0)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("name", KINDS)
def test_many_damaged_files_are_refused_by_name(tmp_path, name, seed, capsys):
    with counts.counted("damaged", name, capsys) as outcomes:
        outcomes += fuzz(tmp_path, name, KINDS[name], counts.DAMAGED, seed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: {**t, "codes_NI": t["codes_NI"][:, :3].copy()},
            r"codes_NI U16 \[3, 3\], where meta.json speaks of U16 \[3, 4\]",
        ),
        (lambda t: {**t, "codes_NI": t["codes_NI"].astype(np.int64)}, r"codes_NI I64 \[3, 4\]"),
        (
            lambda t: {**t, "codes_NI": t["codes_NI"] + np.uint16(12)},
            "pair 1, is damaged: it has code 16, and the codebook 16",
        ),
        (lambda t: {**t, "caption_ends_N": t["caption_ends_N"][:2].copy()}, r"caption_ends_N I64 \[2\]"),
        (lambda t: {**t, "caption_ends_N": t["caption_ends_N"] + 1}, "do not end where they should"),
        (lambda t: {**t, "caption_ends_N": t["caption_ends_N"][[1, 0, 2]]}, "do not end where they should"),
        (lambda t: {**t, "captions_utf8": t["captions_utf8"].astype(np.int16)}, "captions that are no text"),
        (lambda t: {name: t[name] for name in ("codes_NI", "captions_utf8")}, "cannot be read"),
        (lambda t: t | packed(t["codes_NI"], [[], [], []]), "pair 0, is damaged: its captions are none"),
        (lambda t: t | packed(t["codes_NI"], [[1], [2], [3]]), "pair 0, is damaged: its captions are none"),
    ],
    ids=range(10),
)
def test_token_shards_of_another_shape_are_refused(tmp_path, change, said):
    tokens(tmp_path)
    path = tmp_path / "tokens-00000.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(ValueError, match=rf"token shard {path}.*{said}"):
        read_tokens(tmp_path)


def test_shards_of_another_shape_are_refused_before_anything_is_read(tmp_path):
    tokens(tmp_path)
    path = tmp_path / "tokens-00001.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"codes_NI": np.zeros((1, 10), np.uint16)}, path)
    with pytest.raises(ValueError, match=r"00001.* codes_NI U16 \[1, 10\], where meta.json speaks of U16 \[1, 4\]"):
        TokenShards(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"grid": 0}, "grid 0"), ({"grid": 2.5}, "grid is 2.5"), ({"codebook_size": 10**6}, "codebook_size 1000000"),
        ({"shard_sizes": [3, -1]}, "its shards"), ({"shard_sizes": []}, "its shards"), ({"shard_sizes": None}, "shard_sizes is None"),
        ({"dvae_hash": 3}, "dvae_hash is 3"), ({"samples": {"read": "many"}}, "its samples are no counts"), ({"more": 1}, "'more'"),
    ],
)  # fmt: skip
def test_what_tokens_say_of_themselves_is_checked(tmp_path, values, said):
    path = tokens(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ValueError, match=rf"^{path} is damaged.*{said}"):
        TokenShards(tmp_path)


@pytest.mark.parametrize(
    "file", ["../another's.png", "/etc/passwd", "images/../../x.png", "images/x.png/", "results.jsonl"]
)
def test_results_that_name_files_elsewhere_are_refused(tmp_path, file):
    path = gallery(tmp_path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line | {"file": file}) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{path}, line 1: names a file of another place"):
        Gallery(tmp_path, "drawings").resume(8)


def test_a_plan_whose_record_is_lost_is_not_written_over(tmp_path):
    """Else what was changed by hand would be."""
    path = plan(tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=rf"^{path} is damaged: .*; move the folder {tmp_path} away to plan anew"):
        PlanFiles(tmp_path)


@pytest.mark.parametrize("stage", ["../another", "/etc/x", "x" * 3000])
def test_a_plan_that_names_files_elsewhere_is_refused(tmp_path, stage):
    path = plan(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"written": {stage: "0" * 16}}))
    said = rf"^{path} is damaged: written names '.*, which is no stage; move the folder {tmp_path} away to plan anew$"
    with pytest.raises(ValueError, match=said):
        PlanFiles(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"chunk": 2**40}, "chunk 1099511627776"), ({"chunk": "8"}, "chunk"), ({"chunk": 2.5}, "chunk 2.5"), ({"chunk": None}, "chunk"),
        ({"captions_together": 10**12}, "captions_together 10+"), ({"captions_together": []}, "captions_together"),
        ({"place": -1}, "place -1"), ({"place": 8}, "place 8"), ({"threads": 10**9}, "threads 10+"), ({"threads": "x"}, "threads x"),
        ({"precision": "int1"}, "precision int1"), ({"precision": ["bf16"]}, "precision"), ({"compile": "no way"}, "compile no way"),
        ({"temperature": {}}, "temperature"), ({"top_k": 1.5}, "top_k 1.5"), ({"device": 3}, "device 3"), ({"torch": None}, "torch null"),
    ],
)  # fmt: skip
def test_a_drawing_whose_settings_are_none_is_refused_before_a_model_is_loaded(tmp_path, settings, said):
    hashes = dict.fromkeys(("prior", "dvae", "tokenizer"), "0" * 64)
    sound = {
        "chunk": 8,
        "place": 1,
        "precision": "fp32",
        "captions_together": 1,
        "models": hashes,
        "device": "cpu",
        "compile": False,
    }
    sound |= {"processor": "AVX2", "torch": "2", "kernels": "plain", "threads": 1, "temperature": 1.0, "top_k": None}
    image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for name, each in (("sound", sound), ("other", sound | settings)):
        save_drawing(Drawing(image, "a", None, 3, 0, each), tmp_path / f"{name}.png")
    assert read_record(tmp_path / "sound.png", hashes).seed == 3
    with pytest.raises(ValueError, match=rf"^{tmp_path}/other.png: its metadata are damaged: {said}") as raised:
        read_record(tmp_path / "other.png", hashes)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "told", ["[" * 100_000, '{"seed": 1e999}', '{"seed": ' + "9" * 5000 + "}", "null", '{"score": NaN}', ""]
)
def test_a_drawing_whose_metadata_are_none_is_refused(tmp_path, told):
    text = PngInfo()
    text.add_itxt("caption", "a")
    text.add_itxt("dalle", told)
    Image.new("RGB", (4, 4)).save(tmp_path / "it.png", pnginfo=text)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/it.png: does not say how it was drawn"):
        read_drawing(tmp_path / "it.png")


def _chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data) if length is None else length)
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


@pytest.mark.parametrize(
    "chunks",
    [
        [_chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0))],
        [_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))],
        [_chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 4, 8, 2, 0, 0, 0))],
        [_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)), _chunk(b"IDAT", b"x", 2**31 - 1)],
        [
            _chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)),
            _chunk(b"zTXt", b"dalle\0\0" + zlib.compress(bytes(2**25))),
        ],
        [_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)), _chunk(b"IDAT", zlib.compress(bytes(52)))],
        [_chunk(b"IHDR", b"")],
    ],
    ids=range(7),
)
def test_crafted_pictures_are_refused_in_one_line(tmp_path, chunks):
    path = tmp_path / "it.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=rf"^{path}: ") as raised:
        read_drawing(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "text", ["1e999", "NaN", "-Infinity", "9" * 41, '"\\ud800"', "[" * 100_000, b"\xff", "", "{", '{"a": 1, "a": 1}']
)
def test_json_that_is_none_is_refused_with_its_source(text):
    with pytest.raises(ValueError, match=r"^its\.json is damaged: ") as raised:
        plain_json.load(text, "its.json")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
