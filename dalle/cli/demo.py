"""`dalle-demo`: the whole road on drawings, in minutes on two CPU cores.

Each step is the command that a user would run; here they share one process, so that libraries are loaded once.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from dalle.cli import arguments
from dalle.config import Demo

_GALLERY_CAPTIONS = 32
_GRID_CAPTIONS = 24


def main() -> None:
    """Console script."""
    arguments.run(demo, "dalle-demo")


def demo(argv: list[str] | None = None) -> None:
    """Parse, check, run the road, judge."""
    config = arguments.parse(Demo, "dalle-demo", argv)
    configs = Path(config.configs) if config.configs else Path(__file__).parents[2] / "configs" / "demo"
    for stage in ("dvae", "prior", "clip"):
        if not (configs / f"{stage}.yaml").is_file():
            raise ValueError(f"configs {configs}: no {stage}.yaml there; name the folder with --configs")
    folder = arguments.check_output(config.output)
    began_s = time.monotonic()
    _clean(folder)

    from dalle.cli.draw_shapes import draw_shapes
    from dalle.cli.tokenize import tokenize
    from dalle.cli.train import train
    from dalle.cli.train_tokenizer import train_tokenizer
    from dalle.config import TrainCLIP, TrainDVAE, TrainPrior

    train_shards, valid_shards = f"{folder}/data/train-*.tar", f"{folder}/data/valid-*.tar"
    num_valid = str(4 * config.captions)
    seed = str(config.seed)
    dvae, prior, clip, tokenizer = (str(folder / name) for name in ("dvae", "prior", "clip", "tokenizer.json"))
    tokens, valid_tokens = str(folder / "tokens/train"), str(folder / "tokens/valid")

    # what the configurations say of the data is asked of them, so that no two files have to agree
    size_px = arguments.parse(
        TrainDVAE, "dvae", [*_config(configs, "dvae"), "--data", "", "--output", ""]
    ).model.image_size_px
    vocabulary = arguments.parse(TrainPrior, "prior", _prior(configs, "", "", "", "", "")).model.text_vocabulary

    _say("1/7", f"drawing {config.num_train:,} captioned scenes")
    drawings = [
        "--num_train",
        str(config.num_train),
        "--num_valid",
        num_valid,
        "--seed",
        seed,
        "--size_px",
        str(size_px),
    ]
    draw_shapes(["--output", str(folder / "data"), *drawings])
    _say("2/7", "learning the captions' tokens")
    train_tokenizer(["--data", train_shards, "--output", tokenizer, "--vocabulary", str(vocabulary)])

    from dalle.training.topology import joined

    with joined():
        data = ["--data", train_shards, "--valid_data", valid_shards]
        _say("3/7", "stage one: a discrete VAE turns pixels into tokens")
        _must(train("dvae", TrainDVAE, [*_config(configs, "dvae"), *data, "--output", dvae]))
        _say("4/7", "turning all images into tokens")
        tokenize(["--data", train_shards, "--dvae", dvae, "--output", tokens])
        tokenize(["--data", valid_shards, "--dvae", dvae, "--output", valid_tokens])
        _say("5/7", "stage two: a sparse transformer learns to continue captions with image tokens")
        _must(train("prior", TrainPrior, _prior(configs, tokens, valid_tokens, dvae, tokenizer, prior)))
        _say("6/7", "the reranker: CLIP learns which image belongs to which caption")
        names = ["--tokenizer", tokenizer, "--dvae", dvae, "--output", clip]
        _must(train("clip", TrainCLIP, [*_config(configs, "clip"), *data, *names]))

    _say("7/7", f"drawing {config.candidates} candidates for each of {config.captions} captions of unseen combinations")
    _judge(config, folder, valid_shards, began_s)


def _judge(config: Demo, folder: Path, valid_shards: str, began_s: float) -> None:
    from tqdm import tqdm

    from dalle.evaluation import accuracy
    from dalle.sampling.gallery import write_gallery, write_sheet
    from dalle.sampling.pipeline import load

    pipeline = load(folder)
    with tqdm(total=config.captions, unit=" captions", disable=not sys.stderr.isatty()) as bar:
        found = accuracy.run(
            pipeline,
            valid_shards,
            config.captions,
            config.candidates,
            config.seed,
            config.sampling,
            progress=lambda done: bar.update(done - bar.n),
        )
    figures = {name: round(share, 4) for name, share in found.figures().items()}
    shown = dict(list(found.drawings.items())[:_GALLERY_CAPTIONS])
    seconds = round(time.monotonic() - began_s, 1)
    facts = {f"caption accuracy, {name.replace('_', ' ')}": f"{share:.1%}" for name, share in figures.items()}
    write_gallery(shown, folder / "gallery", f"Captions of unseen combinations, best of {config.candidates}", facts)
    best = [drawings[0] for drawings in list(shown.values())[:_GRID_CAPTIONS]]
    write_sheet(best, folder / "gallery" / "sheet.png", columns=6)
    for name, share in facts.items():
        print(f"{name}: {share}")
    print(f"gallery: {folder / 'gallery' / 'index.html'}")
    result = {
        "seconds": seconds,
        "caption_accuracy": figures,
        "captions": config.captions,
        "gallery": str(folder / "gallery" / "index.html"),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2))
    print(json.dumps(result))


def _config(configs: Path, stage: str) -> list[str]:
    return ["--config", str(configs / f"{stage}.yaml")]


def _prior(configs: Path, data: str, valid_data: str, dvae: str, tokenizer: str, output: str) -> list[str]:
    options = {"data": data, "valid_data": valid_data, "dvae": dvae, "tokenizer": tokenizer, "output": output}
    return [*_config(configs, "prior"), *(text for k, v in options.items() for text in (f"--{k}", v))]


def _clean(folder: Path) -> None:
    """Remove what an earlier demo made, and nothing else."""
    for name in ("data", "dvae", "tokens", "prior", "clip", "gallery"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("tokenizer.json", "result.json"):
        (folder / name).unlink(missing_ok=True)


def _say(number: str, text: str) -> None:
    print(f"\n[{number}] {text}", flush=True)


def _must(finished: bool) -> None:
    if not finished:
        raise KeyboardInterrupt
