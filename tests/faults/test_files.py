"""Files of this program that were cut off or have other bytes somewhere: refused by name, or the same as ever. Never a traceback of
another kind, and nothing that is read without being what it says."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import load_file, save_file

from dalle.config import DVAEModel, PriorModel, plain_json
from dalle.data.counts import Broken, Counts
from dalle.data.tokens import Meta, TokenShards, TokenWriter, packed
from dalle.own.gallery import Row, read_rows
from dalle.own.plan_files import PlanFiles
from dalle.own.progress import Done, Progress
from dalle.reporting.earlier_run import drop_after
from dalle.reporting.report import read_run, write_report
from dalle.reporting.samples import samples_section
from dalle.sampling.again import read_record
from dalle.sampling.drawing import Drawing, read_drawing, save_drawing
from dalle.sampling.gallery import Gallery
from dalle.text import Tokenizer
from tests.faults.damage import Kind, fuzz
from tests.faults.frame import counts

CAPTIONS = ["a red circle", "ein Bär", "two blue squares above a green star", "日本"]


def _tokens(folder: Path) -> Path:
    with TokenWriter(folder, Meta(2, 16, "0" * 64, precision="fp32"), 3) as writer:
        for i in range(4):
            writer.add(np.arange(i, i + 4), [CAPTIONS[i], "another"])
        counts = Counts()
        counts.add({"__url__": "a.tar", "__key__": "1"}, Broken("no image"))
        writer.close(counts)
    return folder / "meta.json"


def _read_tokens(folder: Path):
    shards = TokenShards(folder)
    pairs = [shards.pair(shard, row) for shard, size in enumerate(shards.meta.shard_sizes) for row in range(size)]
    assert all(len(codes) == shards.meta.grid**2 and codes.max() < shards.meta.codebook_size for codes, _ in pairs)
    return [(codes.tolist(), captions) for codes, captions in pairs]


def _run(folder: Path) -> Path:
    records = [
        {"step": 10 * i, "time_s": 1.5 * i, "loss": 1 / i, "valid/loss": None, "scales": [1.0, 2.0]}
        for i in range(1, 9)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = {"title": "prior", "unit": "tokens", "total_steps": 80, "status": "finished", "flops_per_unit": 1e6}
    (folder / "run.json").write_text(json.dumps({**run, "limit_flops_per_s": 1e9, "wandb_id": None}))
    counts = Counts(5)
    counts.add({"__url__": "a.tar", "__key__": "1"}, Broken("no image", "cut off"))
    (folder / "samples.json").write_text(json.dumps({"data": counts.to_json()}))
    return folder / "run.json"


def _read_run(folder: Path):
    write_report(folder)
    samples_section(folder)
    run = read_run(folder)
    drop_after(folder, 40)
    return run.get("title"), run.get("total_steps")


def _gallery(folder: Path) -> Path:
    gallery = Gallery(folder, "drawings")
    for caption in CAPTIONS[:2]:
        image = Image.fromarray(np.full((4, 4, 3), 7, np.uint8))
        settings = {"models": {"prior": "0" * 64}, "temperature": 0.5}
        gallery.put(
            caption, [Drawing(image, caption, 0.5, seed, 0, settings, np.arange(4) + seed) for seed in (3, 4)], 8
        )
    gallery.write()
    return folder / "results.jsonl"


def _read_gallery(folder: Path):
    gallery = Gallery(folder, "drawings")
    done = gallery.resume(8)
    gallery.write()
    return len(done) >= 0


def _drawing(folder: Path) -> Path:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    save_drawing(
        Drawing(image, "a cat", 0.25, 3, 0, {"models": {"prior": "0"}, "place": 1}, np.arange(4)), folder / "it.png"
    )
    return folder / "it.png"


def _read_drawing(folder: Path):
    found = read_drawing(folder / "it.png")
    assert isinstance(found.caption, str) and isinstance(found.settings, dict)
    return found.image.size


def _progress(folder: Path) -> Path:
    progress = Progress(folder)
    progress.begin("dvae", {"data": "1", "plan": "2"})
    progress.add("dvae", 2.5, True)
    return folder / "progress.json"


def _read_progress(folder: Path):
    progress = Progress(folder)
    assert all(isinstance(progress.of(stage), Done | None) for stage in ("dvae", "prior"))
    return progress.spent_s() >= 0 or progress.changes("dvae", {"data": "1"})


def _plan(folder: Path) -> Path:
    request = {"data": "0", "minutes": 10.0, "changes": {}, "filters": {"max_aspect_ratio": float("inf")}}
    settings = {"dvae": {"run": {"steps": 100}, "model": {"widths": [1, 2]}}, "prior": {"run": {"steps": 9}}}
    PlanFiles(folder).write(settings, request, {"said": ["so it is"], "update_s": {"dvae": 0.1}})
    return folder / "plan.json"


def _read_plan(folder: Path):
    files = PlanFiles(folder)
    return (
        len(files.stages),
        files.request,
        files.facts,
        [files.digest(s) for s in files.stages if files.path(s).is_file()],
    )


def _rows(folder: Path) -> Path:
    (folder / "gallery").mkdir()
    path = folder / "gallery/rows.json"
    path.write_text(
        json.dumps([vars(Row(caption, True, "real/0.png", ["a.png"])) for caption in CAPTIONS]), encoding="utf-8"
    )
    return path


def _tokenizer(folder: Path) -> Path:
    Tokenizer.train(CAPTIONS * 3, 300).save(folder / "tokenizer.json")
    return folder / "tokenizer.json"


def _read_tokenizer(folder: Path):
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    tokenizer.unknown = tokenizer.words.unknown(["a red cat"]) if tokenizer.words else None
    return type(tokenizer.encode("a red circle"))


def _weights(kind: str, model: Callable[[], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from dalle.models.folder import save_weights

        torch.manual_seed(0)
        made = model()
        save_weights(folder, kind, made.state_dict(), made.config, {})
        return folder / "model.safetensors"

    return make


def _dvae():
    from dalle.models.dvae import DVAE

    return DVAE(DVAEModel(8, 4, 4, (1, 1), 1, 4))


def _prior():
    from dalle.models.prior import Prior

    return Prior(PriorModel(4, 2, 260, 4, 8, 1, 1, conv_kernel=1))


def _read_dvae(folder: Path):
    from dalle.models.folder import load_dvae

    return {name: value.sum().item() for name, value in load_dvae(folder).state_dict().items()}


def _read_prior(folder: Path):
    from dalle.models.folder import load_prior

    return {name: value.sum().item() for name, value in load_prior(folder).state_dict().items()}


KINDS = {
    "meta.json": Kind(_tokens, _read_tokens),
    "tokens-00000.safetensors": Kind(_tokens, _read_tokens),
    "run.json": Kind(_run, _read_run),
    "metrics.jsonl": Kind(_run, _read_run, tolerant=True),
    "samples.json": Kind(_run, _read_run, tolerant=True),
    "results.jsonl": Kind(_gallery, _read_gallery),
    "it.png": Kind(_drawing, _read_drawing),
    "progress.json": Kind(_progress, _read_progress, tolerant=True),
    "plan.json": Kind(_plan, _read_plan),
    "dvae.yaml": Kind(_plan, _read_plan),
    "gallery/rows.json": Kind(_rows, read_rows),
    "tokenizer.json": Kind(_tokenizer, _read_tokenizer),
    "tokenizer.words.json": Kind(_tokenizer, _read_tokenizer),
    "model.safetensors of a dVAE": Kind(_weights("dvae", _dvae), _read_dvae, proven=True),
    "model.safetensors of a prior": Kind(_weights("prior", _prior), _read_prior, proven=True),
}


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
    _tokens(tmp_path)
    path = tmp_path / "tokens-00000.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(ValueError, match=rf"token shard {path}.*{said}"):
        _read_tokens(tmp_path)


def test_shards_of_another_shape_are_refused_before_anything_is_read(tmp_path):
    _tokens(tmp_path)
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
    path = _tokens(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ValueError, match=rf"^{path} is damaged.*{said}"):
        TokenShards(tmp_path)


@pytest.mark.parametrize(
    "file", ["../another's.png", "/etc/passwd", "images/../../x.png", "images/x.png/", "results.jsonl"]
)
def test_results_that_name_files_elsewhere_are_refused(tmp_path, file):
    path = _gallery(tmp_path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line | {"file": file}) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{path}, line 1: names a file of another place"):
        Gallery(tmp_path, "drawings").resume(8)


def test_a_plan_whose_record_is_lost_is_not_written_over(tmp_path):
    """Else what was changed by hand would be."""
    path = _plan(tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=rf"^{path} is damaged: .*; move the folder {tmp_path} away to plan anew"):
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


@pytest.mark.parametrize("text", ["1e999", "NaN", "-Infinity", "9" * 41, '"\\ud800"', "[" * 100_000, b"\xff", "", "{"])
def test_json_that_is_none_is_refused_with_its_source(text):
    with pytest.raises(ValueError, match=r"^its\.json is damaged: ") as raised:
        plain_json.load(text, "its.json")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
