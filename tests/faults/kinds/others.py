"""Checkpoints, settings, evaluations, studies, indices, and what strangers send as captions and tables."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from dalle.checkpoints import checkpoint
from dalle.cli import arguments
from dalle.config import CLIPModel, TrainPrior, plain_yaml, shipped
from dalle.data.shards import read as read_shards
from dalle.data.sources.reading import table
from dalle.evaluation.layout import read_metadata
from dalle.evaluation.overlap import index
from dalle.evaluation.steps import drawn, manifest
from dalle.evaluation.study import answers, design
from dalle.models.text_encoders import EmbeddingCache, TextEncoder
from dalle.outputs import lock, ownership
from dalle.ready import facts
from dalle.reporting import best_of
from dalle.sampling.candidates import Work
from dalle.sampling.captioning import read_captions_file
from dalle.sampling.output import Output
from tests.faults.kinds.kind import Kind
from tests.faults.kinds.outputs import CAPTIONS, weights


class _Alone:
    """A process without others, as checkpoints see it."""

    rank, size, is_main = 0, 1, True

    def gather(self, value):
        return [value]


def _checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    tensors = {"model/a": torch.randn(40, 3), "exp_avg/a": torch.randn(40, 3), "model/b": torch.arange(9)}
    fragments = [checkpoint.Fragment(name, tuple(t.shape), 0, t.flatten()) for name, t in tensors.items()]
    values = {"identity": {"kind": "prior"}, "loaders": [{"a": 3}], "plateau": None}
    return checkpoint.save(folder, 7, fragments, values, 2, _Alone())


def _read_checkpoint(folder: Path):
    """Of what is damaged of an index, JSON's white space alone is no other index."""
    found = checkpoint.verify(folder / "checkpoints/step-0000007", _Alone())
    return found.step, found.values, {name: found.read(name).tolist() for name in found.shapes}


def _settings(folder: Path) -> Path:
    values = plain_yaml.read_mapping(shipped.find("demo/prior"))
    values |= {"data": "x", "dvae": "x", "tokenizer": "x", "output": "x"}
    (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder / "config.yaml"


def _read_settings(folder: Path):
    """Refused by the key, or, where it is no YAML, by name."""
    try:
        return arguments.parse(TrainPrior, "dalle-train-prior", ["--config", str(folder / "config.yaml")])
    except ValueError as error:
        said = str(error)
        raise ValueError(said if folder.name in said else f"{folder.name}: {said}") from None


def _request(folder: Path) -> Path:
    _read_request(folder)
    return folder / "request.json"


def _read_request(folder: Path):
    output = Output(folder, Work(tuple(CAPTIONS[:3]), 8, 2), "drawings", {"prior": "0" * 64}, resumable=True)
    output.write()
    return output.todo


def _candidates(folder: Path) -> Path:
    place = folder / "00000"
    place.mkdir()
    told = {"drawn": 4, "numbers": [0, 1, 3], "times": [1, 2, 1], "scores": [0.5, 0.25, 0.125], "right": None}
    (place / "candidates.json").write_text(json.dumps(told))
    (place / "metadata.jsonl").write_text(json.dumps({"prompt": "a red circle", "tag": "one"}) + "\n")
    return place / "candidates.json"


def _read_drawn(folder: Path):
    found = drawn.read_candidates(folder, 0)
    assert found.best_of(4) in found.numbers and found.drawn == sum(found.times)
    return found, read_metadata(folder / "00000/metadata.jsonl")


def _manifest(folder: Path) -> Path:
    told = {"program": "dalle-evaluate", "version": "1", "request": {"seed": 3}, "versions": {"torch": "2"}}
    told |= {"captions": [{"prompt": caption} for caption in CAPTIONS], "identities": {"model": "0" * 64}}
    told |= {"machine": {"cores": 2}, "figures": {"fid": 1.5}}
    (folder / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
    return folder / "manifest.json"


def _read_manifest(folder: Path):
    found = manifest.read_manifest(folder / "manifest.json")
    with contextlib.suppress(ValueError):
        manifest.check_identities(found, {"model": "1"})
    return {**found, "path": ""}


def _best_of(folder: Path) -> Path:
    (folder / "best-of").mkdir()
    path = folder / "best-of/best-of.json"
    path.write_text(json.dumps({"judge": "clip", "captions": 4, "lines": ["of 4 captions", "8 were kept"]}))
    return path


def _study() -> design.Design:
    models = ("a", "b")
    pictures = {f"{m}{i}": design.Picture(m, CAPTIONS[i]) for m in models for i in range(3)}
    pictures |= {"x": design.Picture(None, "a cat"), "y": design.Picture(None, "a cat")}
    known = {question: ("x",) for question in design.QUESTIONS}
    return design.make_design(models, pictures, [design.Trial("a cat", ("x", "y"), known)], 2, 3, 1, 0)


def _answers(folder: Path) -> Path:
    study = _study()
    (folder / "study.json").write_text(json.dumps(study.to_json()), encoding="utf-8")
    given = [
        {"trial": shown.trial, "left": shown.left, "ms": 900.5}
        | {question: shown.left for question in design.QUESTIONS}
        for shown in study.workers[0]
    ]
    told = {"study": study.hash, "worker": 1, "name": "Bär", "answers": given}
    (folder / "answers.json").write_text(json.dumps(told), encoding="utf-8")
    return folder / "answers.json"


def _read_answers(folder: Path):
    """One file of several that is none is left out and named, and is refused where it is all there is."""
    return answers.read_answers([folder / "answers.json"], design.read_design(folder / "study.json"))[0]


def _read_study(folder: Path):
    return design.read_design(folder / "study.json")


def _embeddings(folder: Path) -> Path:
    EmbeddingCache(folder / "captions.embeddings", _encoder()).embed(CAPTIONS)
    cache = EmbeddingCache(folder / "captions.embeddings", _encoder())
    cache.embed(CAPTIONS)
    cache.save()
    return folder / "captions.embeddings"


def _encoder() -> TextEncoder:
    def read(captions):
        return torch.tensor([[float(len(caption)), 1.0, float(ord(caption[0]))] for caption in captions]).view(-1, 3)

    return TextEncoder("test", 3, "a" * 64, torch.device("cpu"), read)


def _read_embeddings(folder: Path):
    return EmbeddingCache(folder / "captions.embeddings", _encoder()).embed(CAPTIONS).tolist()


def _index(folder: Path) -> Path:
    header = index.Header({"files": 1}, {"name": "tiny", "width": 4}, {"size": 8}, "float32", 8, rows=3, finished=True)
    lines = b"".join(json.dumps([0, f"{i}", ["a cat"]]).encode() + b"\n" for i in range(3))
    (folder / index.PLACES).write_bytes(lines)
    np.eye(3, 4, dtype=np.float32).tofile(folder / index.FEATURES)
    header = index.Header(**{**vars(header), "places_bytes": len(lines)})
    header.write(folder)
    return folder / index.HEADER


def _read_index(folder: Path):
    header = index._read_header(folder)
    index._check_sizes(folder, header)
    found = index.Index(folder, ["a.tar"], None, 8, header, np.zeros((3, 4)))
    return header, found.places(range(3)), found.counts


def _mark(folder: Path) -> Path:
    ownership.write_mark(folder, "dalle-demo", {"seed": 3, "captions": CAPTIONS})
    return ownership._mark(folder, "dalle-demo")


def _lock(folder: Path) -> Path:
    told = {"token": "a", "command": "dalle-sample", "process": 3, "host": "h", "time": time.time()}
    (folder / ".dalle-lock").write_text(json.dumps(told))
    return folder / ".dalle-lock"


def _read_lock(folder: Path):
    """What is damaged is nobody's, who may still give a sign of life: `tests/outputs/test_lock.py`."""
    return lock._named(lock._holder(folder / ".dalle-lock"))


def _list(folder: Path) -> Path:
    lines = [json.dumps({"caption": caption, "n": 1}, ensure_ascii=False) for caption in CAPTIONS * 3]
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "captions.jsonl"


def _text_list(folder: Path) -> Path:
    (folder / "captions.txt").write_text("\n".join(CAPTIONS * 3), encoding="utf-8")
    return folder / "captions.txt"


def _table(name: str):
    def make(folder: Path) -> Path:
        Image.new("RGB", (4, 4)).save(folder / "a.png")
        rows = [("a.png", caption) for caption in CAPTIONS * 3]
        path = folder / name
        if name.endswith(".csv"):
            path.write_text("file,caption\n" + "".join(f'{file},"{c}"\n' for file, c in rows), encoding="utf-8")
        elif name.endswith(".parquet"):
            import pyarrow.parquet

            columns = {"file": [file for file, _ in rows], "caption": [caption for _, caption in rows]}
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
        else:
            objects = [{"file": file, "caption": caption} for file, caption in rows]
            lines = "\n".join(map(json.dumps, objects)) if name.endswith("l") else json.dumps(objects)
            path.write_text(lines, encoding="utf-8")
        return path

    def read(folder: Path):
        """A row that is none is an item that says so."""
        path = folder / name
        items = list(table.table_items(path, table.find_columns(path)))
        within = [item for item in items if item.path is not None and not item.is_outside]
        assert all(Path(os.path.abspath(item.path)).is_relative_to(folder) for item in within)
        return [(item.key, item.captions) for item in items]

    return Kind(make, read, tolerant=True)


def _shard(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i, caption in enumerate(CAPTIONS):
            picture = BytesIO()
            Image.new("RGB", (4, 4), (i, 0, 0)).save(picture, "PNG")
            for end, data in (("png", picture.getvalue()), ("json", json.dumps({"caption": caption}).encode())):
                told = tarfile.TarInfo(f"{i:03}.{end}")
                told.size = len(data)
                tar.addfile(told, BytesIO(data))
    return folder / "a.tar"


def _read_shard(folder: Path):
    """What is damaged of a stranger's shard is a sample that is left out and counted."""
    from dalle.config import Images
    from dalle.data.counts import LeftOut
    from dalle.data.samples import Decoder

    decoder, found = Decoder(Images(augmentation="none"), 4, 0), []
    for sample in read_shards([str(folder / "a.tar")]):
        with contextlib.suppress(LeftOut):
            found.append(decoder(sample, 0).captions)
    return found


def _card(folder: Path) -> Path:
    (folder / "README.md").write_text(
        "---\nlicense: mit\ntags:\n- dalle\nmetrics:\n  psnr: 24.5\n---\n# It\n\nDraws what it is told.\n"
    )
    return folder / "README.md"


def _clip():
    from dalle.models.clip import CLIP
    from dalle.text import Tokenizer

    sizes = CLIPModel(
        image_size_px=8, patch_px=4, vision_width=64, vision_layers=1, text_width=64, text_layers=1, text_slots=8,
        embedding_width=4,
    )  # fmt: skip
    return CLIP(sizes, Tokenizer.train(CAPTIONS, 260))


def _read_header(folder: Path):
    from dalle.models.folder import check_hash, read_config, read_header

    read_config(folder, read_header(folder)["kind"])
    check_hash(folder)


KINDS = {
    "checkpoints/step-0000007/state.json": Kind(_checkpoint, _read_checkpoint, proven=True),
    "checkpoints/step-0000007/rank-00000.safetensors": Kind(_checkpoint, _read_checkpoint, proven=True),
    "config.yaml": Kind(_settings, _read_settings),
    "request.json": Kind(_request, _read_request),
    "00000/candidates.json": Kind(_candidates, _read_drawn),
    "00000/metadata.jsonl": Kind(_candidates, _read_drawn),
    "manifest.json": Kind(_manifest, _read_manifest),
    "best-of/best-of.json": Kind(_best_of, best_of.best_of_section, tolerant=True),
    "study.json": Kind(_answers, _read_study, proven=True),
    "answers.json": Kind(_answers, _read_answers),
    "captions.embeddings": Kind(_embeddings, _read_embeddings, proven=True),
    f"{index.HEADER}": Kind(_index, _read_index),
    f"{index.PLACES}": Kind(_index, _read_index),
    ".dalle-demo": Kind(_mark, lambda folder: ownership.read_mark(folder, "dalle-demo"), tolerant=True),
    ".dalle-lock": Kind(_lock, _read_lock, tolerant=True),
    "captions.jsonl": Kind(_list, lambda folder: read_captions_file(folder / "captions.jsonl")),
    "captions.txt": Kind(_text_list, lambda folder: read_captions_file(folder / "captions.txt"), tolerant=True),
    **{name: _table(name) for name in ("pictures.csv", "pictures.json", "pictures.jsonl", "pictures.parquet")},
    "a.tar": Kind(_shard, _read_shard, tolerant=True),
    "README.md": Kind(_card, lambda folder: facts.read_card(folder / "README.md"), tolerant=True),
    "model.safetensors of a CLIP": Kind(weights("clip", _clip), _read_header),
}
