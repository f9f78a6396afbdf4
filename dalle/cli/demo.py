"""`dalle-demo`: the whole road on drawings, in minutes on two CPU cores.

Each step is the command that a user would run; here they share one process, so that libraries are loaded once.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path

from dalle.cli import arguments
from dalle.cli.road import options, say, train_stage
from dalle.config import Demo, TrainCLIP, TrainDVAE, TrainPrior, shipped
from dalle.outputs.ownership import claimed
from dalle.outputs.run_files import is_of_a_run
from dalle.outputs.whole import replace_text

_GALLERY_CAPTIONS = 32
_GRID_CAPTIONS = 24
_MADE = {
    "data": ("train-*.tar", "valid-*.tar"),
    "tokens": ("*/meta.json", "*/tokens-*.safetensors"),
    "gallery": ("index.html", "results.jsonl", "sheet.png", "images/*.png"),
}
_TRAINED = ("dvae", "prior", "clip")
"""What an earlier demo has left in each of its folders, those of trainings beside, and the next one removes."""


def _is_made(name: str, path: str) -> bool:
    return is_of_a_run(path) if name in _TRAINED else any(fnmatch(path, pattern) for pattern in _MADE[name])


def main() -> None:
    """Console script."""
    arguments.run(demo, "dalle-demo")


def demo(argv: list[str] | None = None) -> None:
    """Parse, check, run the road, judge."""
    with ExitStack() as held:
        _demo(argv, held)


def _demo(argv: list[str] | None, held: ExitStack) -> None:
    began_s = time.monotonic()
    config = arguments.parse(Demo, "dalle-demo", argv)
    from dalle.data.naming import escape

    folder = Path(config.output)
    train_shards, valid_shards = (f"{escape(folder)}/data/{split}-*.tar" for split in ("train", "valid"))
    dvae, prior, clip, tokenizer = (str(folder / name) for name in ("dvae", "prior", "clip", "tokenizer.json"))
    tokens, valid_tokens = str(folder / "tokens/train"), str(folder / "tokens/valid")
    images = {"data": train_shards, "valid_data": valid_shards}
    prior_options = {"data": tokens, "valid_data": valid_tokens, "dvae": dvae, "tokenizer": tokenizer, "output": prior}
    stages = {
        "dvae": _stage(config, "dvae", images | {"output": dvae}),
        "prior": _stage(config, "prior", prior_options),
        "clip": _stage(config, "clip", images | {"tokenizer": tokenizer, "output": clip}),
    }
    # read before anything is removed or drawn; what they say of the data no other file has to repeat
    size_px = arguments.parse(TrainDVAE, "dvae", stages["dvae"]).model.image_size_px
    tuned = arguments.parse(TrainPrior, "prior", stages["prior"])
    vocabulary = tuned.model.text_vocabulary
    arguments.parse(TrainCLIP, "clip", stages["clip"])
    from dalle.sampling.model_set import Tuning, settle

    tuning = Tuning(
        caption_dropout=tuned.caption_dropout,
        temperature=tuned.sampling_temperature,
        guidance=tuned.sampling_guidance,
    )
    settle(config.sampling, tuned.model, tuning)
    held.enter_context(claimed(folder, "dalle-demo"))
    _clear(folder)

    from dalle.cli.data.draw_shapes import draw_shapes
    from dalle.cli.data.tokenize import tokenize
    from dalle.cli.data.train_tokenizer import train_tokenizer

    say("1/7", f"drawing {config.num_train:,} captioned scenes")
    numbers = {"num_train": config.num_train, "num_valid": 4 * config.captions, "seed": config.seed}
    draw_shapes(options({"output": folder / "data", "size_px": size_px} | numbers))
    say("2/7", "learning the captions' tokens")
    train_tokenizer(options({"data": train_shards, "output": tokenizer, "vocabulary": vocabulary}))

    from dalle.cluster.topology import joined

    with joined():
        say("3/7", "stage one: a discrete VAE turns pixels into tokens")
        train_stage("dvae", stages["dvae"])
        say("4/7", "turning all images into tokens")
        for shards, output in ((train_shards, tokens), (valid_shards, valid_tokens)):
            tokenize(options({"data": shards, "dvae": dvae, "output": output}))
        say("5/7", "stage two: a sparse transformer learns to continue captions with image tokens")
        train_stage("prior", stages["prior"])
        say("6/7", "the reranker: CLIP learns which image belongs to which caption")
        train_stage("clip", stages["clip"])

    say("7/7", f"drawing {config.candidates} candidates for each of {config.captions} captions of unseen combinations")
    _judge(config, folder, valid_shards, began_s)


def _judge(config: Demo, folder: Path, valid_shards: str, began_s: float) -> None:
    from dalle.evaluation import accuracy
    from dalle.outputs.bar import progress_bar
    from dalle.sampling.gallery import write_gallery
    from dalle.sampling.grid import write_sheet
    from dalle.sampling.loading import load_transformer

    pipeline = load_transformer(folder, precision=config.sampling.precision)
    pairs = accuracy.distinct(valid_shards, pipeline.dvae.config.image_size_px, config.captions)
    judged = accuracy.judge(pipeline, pairs, config.candidates, config.seed, config.sampling)
    judgements = list(progress_bar(iterable=judged, total=len(pairs), unit=" captions"))
    figures = {name: round(share, 4) for name, share in accuracy.figures(judgements)}
    shown = {judgement.caption: judgement.drawings for judgement in judgements[:_GALLERY_CAPTIONS]}
    facts = {f"caption accuracy, {name.replace('_', ' ')}": f"{share:.1%}" for name, share in figures.items()}
    write_gallery(shown, folder / "gallery", f"Captions of unseen combinations, best of {config.candidates}", facts)
    best = [drawings[0] for drawings in list(shown.values())[:_GRID_CAPTIONS]]
    write_sheet(best, folder / "gallery" / "sheet.png", columns=6)
    for name, share in facts.items():
        print(f"{name}: {share}")
    print(f"gallery: {folder / 'gallery' / 'index.html'}")
    result = {
        "seconds": round(time.monotonic() - began_s, 1),
        "caption_accuracy": figures,
        "captions": config.captions,
        "gallery": str(folder / "gallery" / "index.html"),
    }
    replace_text(folder / "result.json", json.dumps(result, indent=2))
    print(json.dumps(result))


def _stage(config: Demo, stage: str, paths: dict[str, str]) -> list[str]:
    """The arguments of a stage's command."""
    configs = Path(config.configs) if config.configs else shipped.folder() / "demo"
    file = configs / f"{stage}.yaml"
    if not file.is_file():
        raise ValueError(f"configs {configs}: no {stage}.yaml there; name the folder with --configs")
    return ["--config", str(file), *options(paths)]


def _clear(folder: Path) -> None:
    """Remove what an earlier demo made, and nothing else.

    Raises:
        ValueError: another process is writing there, or there is a file that no demo makes
    """
    for name in (*_MADE, *_TRAINED):
        for path in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
            inside = path.relative_to(folder / name)
            hidden = any(part.startswith(".") for part in inside.parts)
            if not hidden and not _is_made(name, inside.as_posix()):
                raise ValueError(
                    f"output {folder}: {path} was not made by dalle-demo; move it, or name another --output"
                )
    for name in ("data", "dvae", "tokens/train", "tokens/valid", "prior", "clip"):
        if (folder / name).exists():
            with claimed(folder / name, "dalle-demo", writes=()):
                pass
    for name in (*_MADE, *_TRAINED):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("tokenizer.json", "tokenizer.words.json", "result.json"):
        (folder / name).unlink(missing_ok=True)
