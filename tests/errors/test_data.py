"""Refusals of settings, pictures, captions and tokens in files that no other test is about."""

import asyncio
import json
import os
from types import SimpleNamespace

from dalle.config import Sample, Sampling, plain_json, plain_yaml, shape, shipped
from dalle.data.captions import concepts, read_all_captions, read_captions
from dalle.data.counts import Broken, Counts, Filtered, Reason
from dalle.data.naming import names
from dalle.data.shapes import claim
from dalle.data.shapes.outline import outline
from dalle.data.shapes.shards import write_shards
from dalle.data.sources import look
from dalle.data.sources.prepared import FILE, read_prepared
from dalle.data.sources.reading import delimited, detect, json_table, parquet
from dalle.data.token_files.reading import Meta
from dalle.data.tokens import TokenWriter
from dalle.text import Tokenizer
from dalle.web import guard
from tests.errors.refused import refused


def test_settings_in_json_and_yaml(tmp_path):
    file = tmp_path / "a"
    for text, said in (
        ("[]", "is damaged: it is not a mapping of names to values; put a whole copy there, or delete it"),
        ("{}", "is damaged: n is None; put a whole copy there"),
        ('{"n": NaN}', "is damaged: NaN is no number; put a whole copy there"),
        (f'{{"n": 1{"0" * 999}}}', "is damaged: 1000"),
    ):
        file.write_text(text)
        refused(f"{file} {said}", plain_json.read_mapping, file, n=int)
    for values, said in (
        ([], "is damaged: it is not a mapping of names to values"),
        ({"second": 1}, "is damaged, or of another version: it holds the unknown 'second'"),
        ({"count": "x"}, "is damaged: count is 'x'"),
    ):
        refused(f"f {said}", plain_json.made, Reason, values, "f")
    refused("f is damaged, or of another version: it lacks 'codebook_size'", plain_json.made, Meta, {}, "f")
    big = "a: " + "x" * 200_001
    for data, said in (
        (big.encode(), "it has more than the 200,000 bytes that settings may have; leave out what is none"),
        (b"\xff", "it is not UTF-8; save it as such"),
        (b"- a", "it is not a mapping of keys to values; write a line KEY: VALUE for each setting"),
        (b"a: [" * 60, "it is nested more than 50 deep"),
        (b"a: &x {b: *x}", "*x refers to itself"),
        (b"a: &a [xxxxxxxxxx, xxxxxxxxxx]\n" + b"".join(
            b"%c: &%c [%s]\n" % (n + 1, n + 1, b", ".join([b"*%c" % n] * 99)) for n in b"abcd"
        ), "its references add up to too much"),
        (b"a: !!set {b}", "tag:yaml.org,2002:set is no kind of setting"),
        (b'a: "\\ud800"', "'\\ud800' is no text"),
        (b"? [a]\n: b", "a key has to be a word"),
        (b"a: 1\na: 2", "key 'a' is there twice"),
    ):  # fmt: skip
        file.write_bytes(data)
        refused(f"{file} cannot be read: {said}", plain_yaml.read_mapping, file)
    refused("it cannot be read: it has more than the 200,000 bytes", plain_yaml.load, big, "it")


def test_values_of_settings():
    for values, said in (
        ({"temprature": 1.0}, "unknown key temprature; the nearest known one is temperature"),
        ({"top_k": "many"}, "top_k many: must be a whole number or null"),
        ({"guidance": float("nan")}, "guidance nan: must be a finite number"),
        ({"chunk": 2**63}, f"chunk {2**63}: no machine counts so far; give a smaller number"),
    ):
        refused(said, shape.check_values, Sampling, values)
    refused(
        "sampling 3: holds settings of its own; set one of temperature", shape.check_values, Sample, {"sampling": 3}
    )
    refused("config: no such file: demo/dvea; the nearest that is shipped is demo/dvae", shipped.find, "demo/dvea")


def test_captions_and_names_of_files(tmp_path):
    for sample, kind, said in (
        ({"__twice__": "txt"}, Broken, "a file is there twice: .txt"),
        ({"__beside__": "a.png"}, Filtered, "a second image, without a caption of its own: beside a.png"),
    ):
        refused(said, read_captions, sample, kind=kind)
    sample = {"__key__": "0", "__url__": "a.tar", "json": b"{}"}
    refused(
        "class_key kind: 0 of a.tar has no such key in its json; name one that all have",
        concepts,
        sample,
        ["a"],
        "kind",
    )
    refused("no such file: gone.txt; name one that is there", lambda: list(read_all_captions("gone.txt")))
    refused("no files were named; name shards, such as", names, "")
    refused("{0..9999999} names more than 1,000,000 files; write fewer in braces", lambda: names("{0..9999999}"))
    deep = "{a," * 200 + "}" * 200
    refused(f"{deep[:80]}... has too many braces in one another; write fewer", names, deep)


def test_drawn_data():
    thing = claim.ClaimedObject("circle", "red")
    for arguments, said in (
        (((thing,), "beyond"), "arrangement 'beyond': must be one of alone"),
        (((thing, thing),), "arrangement 'alone' is of 1 objects, not 2; name so many"),
        (((thing,), "alone", "nowhere"), "position 'nowhere': must be one of"),
        (
            ((claim.ClaimedObject("blob", "red"),),),
            "ClaimedObject(shape='blob', colour='red', size=None): must be of the shapes",
        ),
    ):
        refused(said, claim.Claim, *arguments)
    refused("shape 'blob' has no corners; draw it as an ellipse", outline, "blob")
    for values, said in (
        ({"num_train": -1}, "num_train -1, num_valid 1000: neither may be negative, and one must be positive"),
        ({"shard_size": 0}, "shard_size 0: must be from 1 to 10000"),
        ({"seed": -1}, "seed -1, num_workers 1: neither may be negative"),
        ({"size_px": 33}, "size_px 33: must be a multiple of 8 from 32 to 256"),
    ):
        refused(said, lambda values=values: write_shards("nowhere", **values))


def test_sources(tmp_path, monkeypatch):
    (tmp_path / "a.zip.txt2").write_text("")
    refused(f"source {tmp_path}/a.zip.txt2: must be a folder, a table", detect.detect, f"{tmp_path}/a.zip.txt2")
    folder = tmp_path / "folder"
    folder.mkdir()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(folder / "0.png")
    for captions, said in (
        ("table", "holds no table (.csv, .tsv, .json, .jsonl, .parquet); put one there, or name it"),
        (
            "files",
            "no image has a .txt or .json with a caption beside it; put them there, or leave --captions files out",
        ),
    ):
        refused(f"source {folder}: {said}", detect.detect, str(folder), choice=detect.Choice(captions))
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", _forbidden)
        refused(
            f"source {folder}: cannot be read: Permission denied; see that it may be read", detect.detect, str(folder)
        )
    table = tmp_path / "a.csv"
    table.write_bytes("file,caption\na,b".encode("utf-16"))
    monkeypatch.setattr(delimited, "ERRORS", "strict")
    monkeypatch.setattr(json_table, "ERRORS", "strict")
    monkeypatch.setattr(delimited, "text_encoding", lambda path: "ascii")
    monkeypatch.setattr(json_table, "text_encoding", lambda path: "ascii")
    refused(f"{table} is no table of text: 'ascii' codec", lambda: list(_rows(table)))
    refused(f"{table} is no table of text: 'ascii' codec", lambda: list(json_table.line_rows(table)))
    damaged = tmp_path / "a.parquet"
    damaged.write_bytes(b"PAR1")
    refused(f"{damaged} is damaged or no Parquet file: ", parquet.holds_bytes, damaged, "a")
    refused(f"{damaged} is damaged or no Parquet file: ", lambda: list(parquet.parquet_rows(damaged, "a")))
    (tmp_path / FILE).write_text("{}")
    refused(f"{tmp_path / FILE} was not written by dalle-filter ('counts'): delete it", read_prepared, tmp_path)


def test_a_process_that_decodes_is_killed(monkeypatch):
    monkeypatch.setattr(look, "ProcessPoolExecutor", _Broken)
    items = iter(range(10_000))
    refused("a process that decodes images was killed, as for want of memory: try --workers 1",
            lambda: list(look.look_at_all(items, None, 2)))  # fmt: skip


def test_counts_tokens_and_words(tmp_path):
    reason = {"count": 1, "first": [["a", "b", "c"]]}
    whole = {"read": 1, "filtered": {"x": reason}, "broken": {}, "other_files": {}}
    refused("its counts are no numbers", Counts.from_json, {**whole, "read": "1"}, kind=TypeError)
    wrong = {**whole, "filtered": {"x": {"count": 1, "first": [[1]]}}}
    refused("its samples are no names", Counts.from_json, wrong, kind=TypeError)
    meta = Meta(grid=2, codebook_size=2**16 + 1, dvae_hash="h", shard_sizes=())
    refused("codebook_size 65537: token shards hold codes in 16 bits; take a dVAE of at most 65,536",
            lambda: TokenWriter(tmp_path / "t", meta, 8))  # fmt: skip
    refused("vocabulary 255: must be at least 256, the number of bytes", Tokenizer.train, ["a"], 255)
    tokenizer = Tokenizer.train(["a b"], 256)
    tokenizer.save(tmp_path / "t.json")
    values = {"counts": {"a": "many"}, "fewer_than": 1, "tokenizer_hash": tokenizer.hash}
    (tmp_path / "t.words.json").write_text(json.dumps(values))
    refused(f"{tmp_path}/t.words.json does not hold counts of words (Cause('its counts are no numbers')): remove it",
            Tokenizer.load, tmp_path / "t.json")  # fmt: skip


def test_a_request_that_does_not_arrive(monkeypatch):
    async def stream():
        await asyncio.sleep(60)
        yield b""

    request = SimpleNamespace(headers={"content-type": "application/json"}, stream=stream)
    monkeypatch.setattr(guard, "_BODY_S", 0.01)
    refused(
        "the request did not arrive within 0.01 s; send it again",
        asyncio.run,
        guard.read_body(request, 9),
        kind=guard.Refused,
    )


class _Broken:
    """In place of a pool of processes."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, *_):
        from concurrent.futures.process import BrokenProcessPool

        raise BrokenProcessPool

    def shutdown(self, **_):
        pass


def _forbidden(path):
    raise PermissionError(13, "Permission denied")


def _rows(path):
    with delimited._opened(path, frozenset({"caption"})) as (rows, _):
        yield from rows
