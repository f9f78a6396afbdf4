"""All commands that write, on tiny models and data, each as a user would call it; with `over` or `again` of a making that is there
already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from tests.conftest import TINY_CLIP, TINY_DVAE, TINY_PRIOR
from tests.data.pictures import encoded, flat, write_shard
from tests.evaluation.study_folders import CAPTIONS, write_images
from tests.faults.frame.trials import Command
from tests.test_road import write_config

_STEPS = ["--run.steps", "3", "--run.checkpoint_every_minutes", "1e-6"]  # one after each update
_OF_A_RUN = ("metrics.jsonl", "run.json", "report.html", "pictures")
"""Of a training, what tells of the clock; the same lines are there for other times. And pictures, which a run does without, and says
so."""
_TRAINED = {"again": ["--resume"], "volatile": (*_OF_A_RUN, "pictures/*")}
_TRAINED_ON_EMBEDDINGS = _TRAINED | {"volatile": (*_TRAINED["volatile"], "embeddings.safetensors")}
"""What is lost of these is computed anew, where it is asked for again."""
_TINY_TEXT_ENCODER = [
    *("--model.channels", "16", "--model.first_widths", "[16,16]", "--model.embedding_width", "8"),
    *("--model.caption_chars", "100", "--class_key", "name", "--optimizer.weight_decay", "0"),
    *("--optimizer.step_size.start", "1e-3", "--optimizer.step_size.end", "1e-3"),
    *("--run.batch_size", "4", "--run.precision", "fp32", "--run.loader_workers", "0", "--run.log_every_steps", "1"),
]
_TINY_STACKGAN = [
    *("--model.image_size_px", "16", "--model.text_width", "16", "--model.channels", "4"),
    *("--model.discriminator_channels", "4", "--model.noise_width", "5", "--model.condition_width", "8"),
    *(f"--{player}optimizer.step_size.{end}=1e-3" for player in ("", "discriminator_") for end in ("start", "end")),
    *("--optimizer.weight_decay", "0", "--discriminator_optimizer.weight_decay", "0"),
    *("--run.batch_size", "4", "--run.precision", "fp32", "--run.loader_workers", "0", "--run.log_every_steps", "1"),
    *("--run.ema_decay", "0.9", "--class_key", "name"),
]


def commands(models: Path, shapes: Path, tokenizer: Path, folder: Path) -> dict[str, Command]:
    """By what they are called in the counts.

    Args:
        models: a folder with `dvae/`, `prior/`, `clip/` and `tokens/train/`
        shapes: a folder with `train-000.tar` and `valid-000.tar`
        tokenizer: a tokenizer's file
        folder: for what else they are given
    """
    _write_inputs(folder)
    data = ["--data", f"{shapes}/train-000.tar"]
    return {
        **_of_data(models, data, tokenizer, folder),
        **_of_trainings(models, data, tokenizer, folder),
        **_of_models(models, shapes, folder),
        **_of_judging(models, shapes, folder),
        **_of_roads(folder),
    }


def _write_inputs(folder: Path) -> None:
    (folder / "captions.txt").write_text("a red circle\na blue cross\n")
    (folder / "pictures").mkdir()
    for i in range(6):
        Image.new("RGB", (40, 40), (40 * i, 20, 90)).save(folder / f"pictures/a picture of number {i}.png")
    colours = {"red": (220, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 220), "white": (255, 255, 255)}
    about = [{"name": name, "captions": [f"a {name} picture", f"all {name}"]} for name in colours]
    pictures = [encoded(flat(colour)) for colour in colours.values()]
    samples = [{"png": png, "json": json.dumps(each).encode()} for png, each in zip(pictures, about, strict=True)]
    write_shard(folder / "colours.tar", samples)
    for seed, name in enumerate(("ours", "theirs")):
        write_images(folder / name, CAPTIONS[:3], seed=seed)


def _of_data(models: Path, data: list[str], tokenizer: Path, folder: Path) -> dict[str, Command]:
    def older_tokens(output: Path) -> None:
        shutil.copytree(models / "tokens/train", output)

    def older_tokenizer(output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tokenizer, output)

    def older_shapes(output: Path) -> None:
        output.mkdir(parents=True)
        for name in (".dalle-draw-shapes", "train-000.tar", "valid-000.tar"):
            (output / name).write_text("older")

    bpe = [*data, "--vocabulary", "280"]
    bpe_file = {"main": "dalle.cli.data.train_tokenizer:main", "output": "tokenizer.json"}
    tokenize = [*data, "--dvae", f"{models}/dvae", "--pairs_per_shard", "12"]
    drawn = ["--num_train", "12", "--num_valid", "4", "--size_px", "32", "--workers", "1"]
    return {
        "train-tokenizer": Command(arguments=bpe, **bpe_file),
        "train-tokenizer over": Command(arguments=[*bpe, "--overwrite"], made=older_tokenizer, **bpe_file),
        "tokenize": Command("dalle.cli.data.tokenize:main", tokenize),
        "tokenize over": Command("dalle.cli.data.tokenize:main", [*tokenize, "--overwrite"], older_tokens),
        "filter": Command(
            "dalle.cli.data.filter:main", [f"{folder}/pictures", "--valid_share", "0.3", "--workers", "1"]
        ),
        "draw-shapes": Command("dalle.cli.data.draw_shapes:main", drawn),
    }


def _of_trainings(models: Path, data: list[str], tokenizer: Path, folder: Path) -> dict[str, Command]:
    inputs = ["--dvae", f"{models}/dvae", "--tokenizer", str(tokenizer)]
    sharded = ["--run.zero_stage", "3"]
    prior = [*TINY_PRIOR, *_STEPS, "--data", f"{models}/tokens/train", *inputs]
    dvae = [*TINY_DVAE, *_STEPS, *data]
    colours = ["--data", f"{folder}/colours.tar"]
    reads = ["--features", f"clip:{models}/clip"]
    says = ["--text_encoder", f"clip:{models}/clip"]
    return {
        "train-dvae": Command("dalle.cli.train:train_dvae", dvae, **_TRAINED),
        "train-prior": Command("dalle.cli.train:train_prior", prior, **_TRAINED),
        "train-clip": Command("dalle.cli.train:train_clip", [*TINY_CLIP, *_STEPS, *data, *inputs], **_TRAINED),
        "train-text-encoder": Command(
            "dalle.cli.train:train_text_encoder", [*_TINY_TEXT_ENCODER, *_STEPS, *colours, *reads], **_TRAINED
        ),
        "train-stackgan": Command(
            "dalle.cli.train:train_stackgan", [*_TINY_STACKGAN, *_STEPS, *colours, *says], **_TRAINED_ON_EMBEDDINGS
        ),
        "train-prior, two processes": Command(
            "dalle.cli.train:train_prior", [*prior, *sharded], **_TRAINED, processes=2
        ),
        "train-dvae, two processes": Command("dalle.cli.train:train_dvae", dvae, **_TRAINED, processes=2),
    }


def _of_models(models: Path, shapes: Path, folder: Path) -> dict[str, Command]:
    draw = ["--model", str(models), "--n", "2", "--sampling.chunk", "2", "--sampling.precision", "fp32"]

    def a_model(output: Path) -> None:
        for part in ("dvae", "prior", "clip"):
            shutil.copytree(models / part, output / part, ignore=shutil.ignore_patterns("checkpoints", "pictures"))

    said = ["--licence", "mit", "--about", "Shapes.", "--example", "a red circle", "--hardware", "two cores"]
    return {
        "export": Command("dalle.cli.export:main", [f"{models}/dvae"]),
        "publish": Command("dalle.cli.publish:main", said, a_model, output_key="--folder"),
        "sample": Command("dalle.cli.sample:main", [*draw, "a red circle"]),
        "sample many": Command("dalle.cli.sample:main", [*draw, "--captions", f"{folder}/captions.txt"]),
    }


def _of_judging(models: Path, shapes: Path, folder: Path) -> dict[str, Command]:
    clip = ["--features", f"clip:{models}/clip"]
    quick = ["--n", "2", "--keep", "1", "--blur_radii", "[0, 1]", "--most", "4", "--sampling.chunk", "2"]
    evaluate = ["--model", str(models), "--reference", f"{shapes}/valid-000.tar", *clip, *quick]
    sides = ["--data", f"{shapes}/train-000.tar", "--evaluation", f"{shapes}/valid-000.tar", "--size_px", "32"]
    study = ["--images", f"{folder}/ours {folder}/theirs", "--pairs_per_worker", "3"]
    return {
        "evaluate": Command(
            "dalle.cli.evaluation.evaluate:main",
            [*evaluate, "--sampling.precision", "fp32"],
            volatile=("report.html",),  # it tells the hour
        ),
        "dedup": Command("dalle.cli.evaluation.dedup:main", [*sides, *clip]),
        "study": Command("dalle.cli.evaluation.study:main", study),
        "plan": Command(
            "dalle.cli.planning.command:main",
            ["--config", "demo/prior"],
            output="update.png",
            output_key="--timeline",
        ),
    }


def _of_roads(folder: Path) -> dict[str, Command]:
    """All the way from data to pictures, by one command. What tells of the clock lies in the folders of their trainings."""
    (folder / "configs").mkdir()
    for kind, options in (("dvae", TINY_DVAE), ("prior", TINY_PRIOR), ("clip", TINY_CLIP)):
        write_config(folder / "configs" / f"{kind}.yaml", options, steps=3)
    of_runs = tuple(f"{kind}/{name}" for kind in ("dvae", "prior", "clip") for name in (*_OF_A_RUN, "pictures/*"))
    demo = ["--configs", f"{folder}/configs", "--num_train", "32", "--captions", "2", "--candidates", "2"]
    few = [
        word
        for kind in ("dvae", "prior", "clip")
        for word in (f"--{kind}.run.steps", "3", f"--{kind}.run.loader_workers", "0")
    ]
    pictures = [f"{folder}/pictures", "--minutes", "10", "--candidates", "2", *few]
    of_the_clock = ("plan/plan.json", "progress.json", "report.html")
    return {
        "demo": Command("dalle.cli.demo:main", demo, volatile=(*of_runs, "result.json")),
        "train": Command("dalle.cli.own.train_folder:main", pictures, volatile=(*of_runs, *of_the_clock)),
    }
