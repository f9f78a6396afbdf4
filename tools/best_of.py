"""Does a prior gain by training on the best of its own candidates? Control against test, on the drawn data, and the table.

    python tools/best_of.py --model demo --output best-of --arms clip checker clip@1.0

Starts from the models of a folder that `dalle-demo` made. The control trains for some updates more on real pairs alone; each
arm for as many, with the same schedule and seed, with a share of the best of its own candidates among them. An arm is a
judge, as in `--best_of.judge`, perhaps with the temperature that candidates are drawn at: `checker`, `clip@1.0`; without
one it is the prior's own. All are judged by the checker on captions of unseen combinations: the share of all candidates
that is right (what an unranked pick can expect), the share of captions whose best by the model's reranker is right, and
how varied the candidates are. An arm that the checker chose for has its judge for its teacher, so its figures say less
than those of `clip`.

A cell is an arm with a seed. One that is finished is not repeated, and one that was stopped goes on; its seconds are then those of
the last stretch. Several run at a time, each on one CPU thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BEFORE, CONTROL = "before", "control"
COLUMNS = {
    "unranked": ("right, unranked", "{:.1%}"),
    "reranked": ("right, best by CLIP", "{:.1%}"),
    "differing": ("candidates that differ", "{:.1f}"),
    "scenes": ("right scenes that differ", "{:.1f}"),
    "agreement": ("codes alike", "{:.1%}"),
    "seconds": ("seconds", "{:.0f}"),
}
_EVALUATION_SEED = 10**11
"""Far from the seeds of training candidates, which share it with no caption but would share its random numbers."""


def judge(model: Path, prior: Path, captions: int, candidates: int, seed: int) -> dict:
    """What the checker sees in a prior's candidates for unseen captions: a value for each caption under every name."""
    import numpy as np

    from dalle.data.naming import escape
    from dalle.data.shapes import Claim, holds, read
    from dalle.evaluation.accuracy import distinct
    from dalle.evaluation.accuracy import judge as judged
    from dalle.sampling.loading import load_transformer
    from dalle.stages.best_of.results import agreement

    pipeline = load_transformer(model, prior=prior)
    pairs = distinct(f"{escape(model)}/data/valid-*.tar", pipeline.dvae.config.image_size_px, captions)
    found: dict[str, list[float]] = {name: [] for name in COLUMNS if name != "seconds"}
    first = _EVALUATION_SEED + seed * candidates
    for pair, judgement in zip(pairs, judged(pipeline, pairs, candidates, first, keep=candidates), strict=True):
        assert pair.scene is not None, "of `distinct`"
        claim, scenes = Claim.from_json(pair.scene), set()
        for drawing in judgement.drawings:
            reading = read(drawing.picture)
            if holds(reading, claim):
                scenes.add(
                    frozenset((o.shape, o.colour, o.size, round(8 * o.x), round(8 * o.y)) for o in reading.objects)
                )
        codes = [d.codes_I for d in judgement.drawings if d.codes_I is not None for _ in range(d.times)]
        found["unranked"].append(judgement.shares["candidates"])
        found["reranked"].append(judgement.shares["reranked"])
        found["differing"].append(len(judgement.drawings))
        found["scenes"].append(len(scenes))
        found["agreement"].append(agreement(np.stack(codes)))
    return found


def command(arm: str, seed: int, folder: Path, options: argparse.Namespace) -> list[str]:
    """How a cell is trained."""
    model = options.model
    settings = {
        "config": "demo/prior",
        "data": model / "tokens/train",
        "valid_data": model / "tokens/valid",
        "dvae": model / "dvae",
        "tokenizer": model / "tokenizer.json",
        "output": folder,
        "start_from": model / "prior",
        "run.steps": options.updates,
        "run.seed": seed,
        "run.checkpoint_every_minutes": 2,
        "optimizer.step_size.start": options.step_size,
        "optimizer.step_size.warmup_steps": "5%",
    }
    if arm != CONTROL:
        name, _, temperature = arm.partition("@")
        drawn = {
            "model": model,
            "judge": name,
            "captions": options.captions,
            "candidates": options.candidates,
            "keep": options.keep,
            "share": options.share,
            "seed": seed,
            "sampling.chunk": options.chunk,
        }
        drawn |= {"scenes": f"{model}/data/train-*.tar"} if name == "checker" else {}
        drawn |= {"sampling.temperature": temperature} if temperature else {}
        settings |= {f"best_of.{key}": value for key, value in drawn.items()}
    if any((folder / "checkpoints").glob("step-*[0-9]/state.json")):
        settings["resume"] = "true"
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-c", "from dalle.cli.train import train_prior; train_prior()", *words]


def cell(arm: str, seed: int, options: argparse.Namespace) -> dict:
    """The figures of a cell, trained and judged where they are not there. Raises RuntimeError when a part of it fails."""
    folder = options.output / f"{arm}-{seed}"
    path = folder / "result.json"
    if path.is_file():
        return json.loads(path.read_text())
    prior, took, judged = (
        options.model / "prior" if arm == BEFORE else folder,
        folder / "seconds.json",
        folder / "judged.json",
    )
    folder.mkdir(parents=True, exist_ok=True)
    if arm != BEFORE and not (folder / "model.safetensors").is_file():
        began_s = time.monotonic()
        _run(command(arm, seed, folder, options), folder)
        _write(took, time.monotonic() - began_s)
    told = [
        f"--{name}={getattr(options, name)}" for name in ("model", "output", "judged_captions", "judged_candidates")
    ]
    _run([sys.executable, __file__, *told, f"--judge={prior}", f"--seed={seed}", f"--into={judged}"], folder)
    seconds = json.loads(took.read_text()) if took.is_file() else 0.0 if arm == BEFORE else float("nan")
    result = {**json.loads(judged.read_text()), "seconds": seconds}
    _write(path, result)
    print(f"{arm}, seed {seed}: {_said(result)}", file=sys.stderr, flush=True)
    return result


def _write(path: Path, value) -> None:
    """As JSON, whole or not at all."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(value))
    os.replace(partial, path)


def _run(words: list[str], folder: Path) -> None:
    root = str(Path(__file__).parents[1])
    places = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {"DS_ACCELERATOR": "cpu", **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    done = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{folder}: ended with {done.returncode}\n{done.stderr[-2000:]}")


def _said(result: dict) -> str:
    return ", ".join(f"{title} {_written(_mean(result, name), form)}" for name, (title, form) in COLUMNS.items())


def _written(value: float, form: str) -> str:
    """A figure; "?" for seconds that were lost, where the stretch was cut off that trained a cell to its end."""
    return form.format(value) if value == value else "?"


def _mean(result: dict, name: str) -> float:
    return statistics.fmean(result[name]) if isinstance(result[name], list) else result[name]


def difference(test: list[dict], control: list[dict], name: str) -> tuple[float, float, float]:
    """Test minus control, and its 95% interval over captions: of each the mean over the seeds is taken first, and both have the
    same captions, so that what makes a caption hard falls out."""
    by_caption = [
        statistics.fmean(t[name][i] - c[name][i] for t, c in zip(test, control, strict=True))
        for i in range(len(test[0][name]))
    ]
    mean = statistics.fmean(by_caption)
    half = 1.96 * statistics.stdev(by_caption) / len(by_caption) ** 0.5 if len(by_caption) > 1 else float("inf")
    return mean, mean - half, mean + half


def table(results: dict[str, list[dict]]) -> str:
    """Markdown: mean ± standard deviation over the seeds, and the differences to the control in points."""
    rows = [["", *(title for title, _ in COLUMNS.values()), "unranked, to control", "best by CLIP, to control"]]
    rows.append(["---"] * len(rows[0]))
    for arm, runs in results.items():
        row = [arm]
        for name, (_, form) in COLUMNS.items():
            means = [_mean(run, name) for run in runs]
            spread = f" ± {_written(statistics.stdev(means), form)}" if len(means) > 1 else ""
            row.append(_written(statistics.fmean(means), form) + spread)
        for name in ("unranked", "reranked"):
            if arm in (BEFORE, CONTROL):
                row.append("")
                continue
            mean, low, high = (100 * value for value in difference(runs, results[CONTROL], name))
            row.append(f"{mean:+.1f} ({low:+.1f} to {high:+.1f})")
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder that dalle-demo made")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=["clip", "checker"], help="JUDGE or JUDGE@TEMPERATURE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=800)
    parser.add_argument(
        "--step_size", type=float, default=5e-4, help="the highest; it falls to the configuration's last"
    )
    parser.add_argument("--captions", type=int, default=8192, help="that candidates are drawn for")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--keep", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--chunk", type=int, default=128, help="candidates that are drawn together")
    parser.add_argument("--judged_captions", type=int, default=256)
    parser.add_argument("--judged_candidates", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time")
    for name, kind in (("judge", Path), ("seed", int), ("into", Path)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # of a cell's second process
    return parser.parse_args(argv)


def main() -> None:
    """Parse, do what is missing, print the table."""
    options = parse()
    if options.judge:
        numbers = (options.judged_captions, options.judged_candidates, options.seed)
        found = judge(options.model, options.judge, *numbers)
        _write(options.into, found)
        return
    arms = [BEFORE, CONTROL, *options.arms]
    cells = list(itertools.product(range(options.seeds), arms))
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(cell, arm, seed, options) for seed, arm in cells]
        try:
            made = [future.result() for future in futures]
        except RuntimeError as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(f"best_of: {error}")
    results: dict[str, list[dict]] = {arm: [] for arm in arms}
    for (_, arm), result in zip(cells, made, strict=True):
        results[arm].append(result)
    print(table(results))


if __name__ == "__main__":
    main()
