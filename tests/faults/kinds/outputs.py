"""Files that this program writes for itself: tokens, runs, drawings, plans, tokenizers, weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dalle.config import DVAEModel, PriorModel
from dalle.data.counts import Broken, Counts
from dalle.data.tokens import Meta, TokenShards, TokenWriter
from dalle.own.gallery import Row, read_rows
from dalle.own.plan_files import PlanFiles
from dalle.own.progress import Done, Progress
from dalle.reporting.earlier_run import drop_after
from dalle.reporting.report import read_run, write_report
from dalle.reporting.samples import samples_section
from dalle.sampling.drawing import Drawing, read_drawing, save_drawing
from dalle.sampling.gallery import Gallery
from dalle.text import Tokenizer
from tests.faults.kinds.kind import Kind

CAPTIONS = ["a red circle", "ein Bär", "two blue squares above a green star", "日本"]


def tokens(folder: Path) -> Path:
    with TokenWriter(folder, Meta(2, 16, "0" * 64, precision="fp32"), 3) as writer:
        for i in range(4):
            writer.add(np.arange(i, i + 4), [CAPTIONS[i], "another"])
        counts = Counts()
        counts.add({"__url__": "a.tar", "__key__": "1"}, Broken("no image"))
        writer.close(counts)
    return folder / "meta.json"


def read_tokens(folder: Path):
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


def gallery(folder: Path) -> Path:
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


def plan(folder: Path) -> Path:
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


def weights(kind: str, model: Callable[[], Any]) -> Callable[[Path], Path]:
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
    "meta.json": Kind(tokens, read_tokens),
    "tokens-00000.safetensors": Kind(tokens, read_tokens),
    "run.json": Kind(_run, _read_run),
    "metrics.jsonl": Kind(_run, _read_run, tolerant=True),
    "samples.json": Kind(_run, _read_run, tolerant=True),
    "results.jsonl": Kind(gallery, _read_gallery),
    "it.png": Kind(_drawing, _read_drawing),
    "progress.json": Kind(_progress, _read_progress, tolerant=True),
    "plan.json": Kind(plan, _read_plan),
    "dvae.yaml": Kind(plan, _read_plan),
    "gallery/rows.json": Kind(_rows, read_rows),
    "tokenizer.json": Kind(_tokenizer, _read_tokenizer),
    "tokenizer.words.json": Kind(_tokenizer, _read_tokenizer),
    "model.safetensors of a dVAE": Kind(weights("dvae", _dvae), _read_dvae, proven=True),
    "model.safetensors of a prior": Kind(weights("prior", _prior), _read_prior, proven=True),
}
