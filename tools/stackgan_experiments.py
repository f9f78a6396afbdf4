"""The experiments of the StackGAN document, A to H, and DF-GAN's recipe beside them: their table and their training curves.

    python tools/stackgan_experiments.py --data 'shapes/train-{000..009}.tar' --valid_data shapes/valid-000.tar --class_key scene \\
        --clip shapes/clip --chars shapes/chars --output experiments

Trains `configs/stackgan/NAME.yaml` and measures what it draws for held-out captions with `dalle-evaluate`: Fréchet distances by
EfficientNet and by a CLIP of ours, and how many captions are right (where a checker reads the drawings) or found (by that CLIP).
Several run at a time, each on one CPU thread. What is finished is not repeated, and what left a checkpoint goes on.

A run is called stable when nothing that the training warns of (a discriminator that has won, a generator that is lost, images that are
all alike) lasted for a tenth of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs without an installation
sys.path.insert(0, str(Path(__file__).parent))

import torch
from ablations import how_to_start, run_all

from dalle.cli import arguments
from dalle.cluster.topology import World
from dalle.config import TrainStackGAN
from dalle.stages.adversarial.collapse import Collapse

ROOT = Path(__file__).parents[1]
NAMES = ["a", "b", "c", "d", "e", "f", "g", "h", "dfgan"]
DOCUMENT = {
    "a": "unstable: D at 0, G rises",
    "b": "unstable: D at 0, G rises",
    "c": "does not help",
    "d": "no word, after C",
    "e": "no word",
    "f": "no word",
    "g": "worse",
    "h": "the best",
    "dfgan": "not tried",
}
"""What the document found of each, at 256 px on birds."""
COLUMNS = {
    "stable": ("stable", "{}"),
    "frechet": ("Fréchet distance, EfficientNet", "{:.1f}"),
    "frechet_clip": ("Fréchet distance, our CLIP", "{:.4f}"),
    "right": ("captions right", "{:.1%}"),
    "facts": ("of their facts", "{:.1%}"),
    "found_1": ("found first", "{:.1%}"),
    "found_5": ("among 5", "{:.1%}"),
    "caption_spread": ("spread over captions", "{:.2f}"),
    "noise_spread": ("over noise", "{:.2f}"),
    "discriminator_loss": ("discriminator's last loss", "{:.2f}"),
    "minutes": ("minutes", "{:.0f}"),
}


def train(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One experiment, trained and measured, and its figures. Raises RuntimeError when a part of it fails."""
    folder = options.output / f"{name}-{seed}"
    path = folder / "result.json"
    if path.is_file():
        return json.loads(path.read_text())
    if not (folder / "model.safetensors").is_file():
        encoder = f"chars:{options.chars}" if name == "h" else options.text_encoder
        settings = {
            "config": f"stackgan/{name}",
            "data": options.data,
            "valid_data": options.valid_data,
            "text_encoder": encoder,
            "embeddings": options.output / f"captions-{'chars' if name == 'h' else 'others'}-{seed}.embeddings",
            "output": folder,
            "run.seed": seed,
            **({"class_key": options.class_key} if options.class_key else {}),
            **({"run.steps": options.steps} if options.steps else {}),
        }
        _run("train", "train_stackgan", settings, [*how_to_start(folder), *options.more])
    evaluation = folder / "evaluation"
    if not (evaluation / "metrics.json").is_file():
        settings = {
            "model": folder,
            "reference": options.valid_data,
            "most": options.most,
            "features": f"efficientnet-lite0 clip:{options.clip}",
            "judge": options.clip,
            "blur_radii": [0],
            "rerank": "false",
            "keep": 1,
            "output": evaluation,
        }
        _run("evaluation.evaluate", "main", settings, [])
    found = figures(folder)
    path.write_text(json.dumps(found))
    told = {key: value for key, value in found.items() if key != "curve"}
    print(f"{name}, seed {seed}: {told}", file=sys.stderr, flush=True)
    return found


def figures(folder: Path) -> dict[str, Any]:
    """What the table says of a training that is finished and measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged, shown = ([line for line in lines if name in line] for name in ("loss", "valid/caption_spread"))
    config = arguments.parse_model(
        TrainStackGAN, arguments.read_yaml(str(folder / "config.yaml")), f"{folder}/config.yaml: "
    )
    metrics = json.loads((folder / "evaluation/metrics.json").read_text())
    by_network = {key: each["by_radius"][0] for key, each in metrics.items() if key.startswith("distances_")}
    clip = next(key for key in by_network if key.startswith("distances_clip"))
    judged = metrics["judged"]["samples"]
    checked = metrics["compositional"]["captions"] if "compositional" in metrics else {}
    return {
        "stable": "yes" if stable(lines, config) else "no",
        "frechet": by_network["distances_efficientnet-lite0"]["frechet_distance"],
        "frechet_clip": by_network[clip]["frechet_distance"],
        "right": checked.get("whole"),
        "facts": checked.get("arithmetic"),
        "found_1": judged["image_to_caption_r1"],
        "found_5": judged["image_to_caption_r5"],
        "caption_spread": shown[-1]["valid/caption_spread"],
        "noise_spread": shown[-1]["valid/noise_spread"],
        "discriminator_loss": logged[-1]["discriminator_loss"],
        "minutes": logged[-1]["time_s"] / 60,
        "curve": [
            [line["step"], line["loss"], line["discriminator_loss"]] for line in logged if line["loss"] is not None
        ],
    }


def stable(lines: list[dict[str, Any]], config: TrainStackGAN) -> bool:
    """Whether nothing that the training warns of lasted for a tenth of it.

    Args:
        lines: of metrics.jsonl, log lines and validations
        config: of the training
    """
    watching = Collapse(
        config.objective,
        config.model.unconditional,
        config.run.steps,
        stops=True,
        world=World(0, 1, torch.device("cpu")),
    )
    for line in lines:
        if "loss" not in line:
            watching.validated.update({name.removeprefix("valid/"): value for name, value in line.items()})
            continue
        if line["loss"] is None:  # of no update was it finite
            continue
        watching.check(line["step"], line)
        if watching.give_up() is not None:
            return False
    return True


def _run(module: str, function: str, settings: dict[str, Any], more: list[str]) -> None:
    words = [f"--{name}={value}" for name, value in settings.items()]
    places = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    command = [sys.executable, "-c", f"from dalle.cli.{module} import {function}; {function}()", *words, *more]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{settings['output']}: {function} ended with {done.returncode}\n{done.stderr[-2000:]}")


def _title(name: str) -> str:
    return "DF-GAN's recipe" if name == "dfgan" else name.upper()


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: means, ± standard deviation where there are several seeds; of "stable" how many were."""
    columns = {
        name: told
        for name, told in COLUMNS.items()
        if all(r.get(name) is not None for rs in results.values() for r in rs)
    }
    rows = [["", "the document", *(title for title, _ in columns.values())]]
    rows.append(["---"] * len(rows[0]))
    for name, runs in results.items():
        row = [_title(name), DOCUMENT[name]]
        for column, (_, form) in columns.items():
            values = [run[column] for run in runs]
            if column == "stable":
                row.append(values[0] if len(values) == 1 else f"{values.count('yes')} of {len(values)}")
                continue
            spread = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
            row.append(form.format(statistics.mean(values)) + spread)
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """The losses of both players over the updates, one small plot for each experiment, of its first seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.9 * -(-len(results) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(results) // 3), 3, squeeze=False, sharex=True).ravel()
    for axis, (name, runs) in zip(axes, results.items(), strict=False):
        steps, generator, discriminator = zip(*runs[0]["curve"], strict=True)
        axis.plot(steps, generator, color="#3b76d6", linewidth=0.9, label="generator")
        axis.plot(steps, discriminator, color="#b83b8e", linewidth=0.9, label="discriminator")
        told = "" if runs[0]["stable"] == "yes" else ", unstable"
        axis.set_title(_title(name) + told, fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    for axis in axes[len(results) :]:
        axis.set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; those that are not known are `more`, for every training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="training shards")
    parser.add_argument("--valid_data", required=True, help="held-out shards")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--clip", type=Path, required=True, help="folder of a CLIP of ours, for distances and captions found"
    )
    parser.add_argument("--text_encoder", default="bert:all-minilm-l6-v2", help="of all experiments but H")
    parser.add_argument("--chars", type=Path, help="folder of dalle-train-text-encoder, for H")
    parser.add_argument("--class_key", help="of the samples' json: a wrong caption is of another class")
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="updates, in place of those of the configurations")
    parser.add_argument("--most", type=int, default=512, help="held-out captions that are drawn")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time")
    options, more = parser.parse_known_args(argv)
    options.more = more
    if "h" in options.names and options.chars is None:
        parser.error("--chars: experiment H reads a char-CNN-RNN: name its folder, or leave h out of --names")
    return options


def main() -> None:
    """Parse, do what is missing, print the table, draw the curves."""
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    cells = [(name, seed) for seed in range(options.seeds) for name in options.names]
    try:
        found = run_all([partial(train, *cell, options) for cell in cells], options.jobs)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"stackgan_experiments: {error}")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.names}
    for (name, _), result in zip(cells, found, strict=True):
        results[name].append(result)
    plot(results, options.output / "curves.png")
    print(table(results))


if __name__ == "__main__":
    main()
