"""The comparisons that the paper names for stage one, each with three seeds, and their table.

    python tools/ablations.py --data 'emoji/train-{000..006}.tar' --valid_data emoji/valid-000.tar --output ablations

Trains `configs/ablations/base.yaml` alone and with each file beside it. Several trainings run at a time, each on one CPU
thread, which is faster than one after the other on all of them. A training that is finished is not repeated, and one that
left a checkpoint is continued. When one fails no other begins; those that run come to their end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "configs/ablations"
NAMES = ["base", *sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "base")]
COLUMNS = {
    "codes_used": ("codes used", "{:.0f}"),
    "perplexity": ("perplexity", "{:.0f}"),
    "kl_per_position_nats": ("KL, nats per position", "{:.2f}"),
    "psnr_db": ("PSNR, dB", "{:.2f}"),
    "elb": ("true ELB", "{:.3f}"),
    "elb_gap": ("(relaxed − true) / |true|", "{:+.1%}"),
    "elb_gap_nats": ("relaxed − true, nats per subpixel", "{:+.4f}"),
}


def configs(name: str) -> list[str]:
    """The `--config` options of a comparison."""
    files = [FOLDER / "base.yaml", *([FOLDER / f"{name}.yaml"] if name != "base" else [])]
    return [word for file in files for word in ("--config", str(file))]


def figures(folder: Path) -> dict[str, float] | None:
    """The last held-out figures of a finished training; None if there are none.

    Raises ValueError when one of them is missing, as in what an earlier version trained.
    """
    if not (folder / "model.safetensors").is_file():
        return None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "valid/elb" in line]
    if not measured:
        return None  # it ended between the weights and the validation
    if missing := [name for name in COLUMNS if f"valid/{name}" not in measured[-1]]:
        raise ValueError(
            f"{folder}/metrics.jsonl has no valid/{missing[0]}: move the folder away, or name another --output"
        )
    return {name: measured[-1][f"valid/{name}"] for name in COLUMNS}


def how_to_start(folder: Path) -> list[str]:
    """The options that begin an unfinished training, or continue it from its checkpoint.

    Raises ValueError when there is something without a checkpoint: it may be wanted, so it is neither deleted nor mixed with.
    """
    # not step-….partial, which is half a checkpoint
    if any((folder / "checkpoints").glob("step-*[0-9]/state.json")):
        return ["--resume"]
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds a training that stopped before its first checkpoint: move it away, or name another --output"
        )
    return []


def train(name: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """One training, and its figures. Raises RuntimeError when it fails."""
    folder = _folder(name, seed, options)
    if (found := figures(folder)) is not None:
        return found
    command = [str(Path(sys.executable).parent / "dalle-train-dvae"), *configs(name), "--run.seed", str(seed)]
    inputs = ["--data", options.data, "--valid_data", options.valid_data, "--output", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += [*inputs, *how_to_start(folder), *options.more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode or (found := figures(folder)) is None:
        raise RuntimeError(f"{folder}: dalle-train-dvae ended with {done.returncode}\n{done.stderr[-2000:]}")
    print(f"{name}, seed {seed}: {found}", file=sys.stderr)
    return found


def _folder(name: str, seed: int, options: argparse.Namespace) -> Path:
    return options.output / f"{name}-{seed}"


def run_all(trainings: list[Callable[[], dict[str, float]]], jobs: int) -> list[dict[str, float]]:
    """Their results, in order. After one fails none begins, and its error is raised when those that run are done."""
    failed = threading.Event()

    def one(training: Callable[[], dict[str, float]]) -> dict[str, float]:
        if failed.is_set():
            return {}  # nobody sees it: the error is raised
        try:
            return training()
        except BaseException as error:
            failed.set()
            print(f"{error}\nno other training begins; those that run come to their end", file=sys.stderr)
            raise

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, training) for training in trainings]
    return [future.result() for future in futures]


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: mean ± standard deviation over the seeds."""
    rows = [["", *(title for title, _ in COLUMNS.values())]]
    rows.append(["---"] * len(rows[0]))
    for name, runs in results.items():
        row = [name]
        for column, (_, form) in COLUMNS.items():
            values = [run[column] for run in runs]
            spread = f" ± {form.format(statistics.stdev(values)).lstrip('+')}" if len(values) > 1 else ""
            row.append(form.format(statistics.mean(values)) + spread)
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Parse, train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--valid_data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time")
    options, more = parser.parse_known_args()
    options.more = more
    runs = [(name, seed) for seed in range(options.seeds) for name in NAMES]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    try:
        for run in runs:  # what cannot be started is said before hours are spent on the others
            if figures(_folder(*run, options)) is None:
                how_to_start(_folder(*run, options))
        found = run_all([partial(train, *run, options) for run in runs], options.jobs)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"ablations: {error}")
    for (name, _), result in zip(runs, found, strict=True):
        results[name].append(result)
    print(table(results))


if __name__ == "__main__":
    main()
