"""The comparisons that the paper names for stage one, each with three seeds, and their table.

    python tools/ablations.py --data 'emoji/train-{000..006}.tar' --valid_data emoji/valid-000.tar --output ablations

Trains `configs/ablations/base.yaml` alone and with each file beside it. Several trainings run at a time, each on one CPU
thread, which is faster than one after the other on all of them. A training that is finished is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
}


def configs(name: str) -> list[str]:
    """The `--config` options of a comparison."""
    files = [FOLDER / "base.yaml", *([FOLDER / f"{name}.yaml"] if name != "base" else [])]
    return [word for file in files for word in ("--config", str(file))]


def figures(folder: Path) -> dict[str, float] | None:
    """The last held-out figures of a finished training; None if there are none."""
    if not (folder / "model.safetensors").is_file():
        return None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "valid/elb" in line][-1]
    return {name: last[f"valid/{name}"] for name in COLUMNS}


def train(name: str, seed: int, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """One training, and its figures."""
    if (found := figures(folder)) is not None:
        return found
    command = [str(Path(sys.executable).parent / "dalle-train-dvae"), *configs(name), "--run.seed", str(seed)]
    inputs = ["--data", options.data, "--valid_data", options.valid_data, "--output", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *inputs, *options.more], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    print(f"{name}, seed {seed}: {figures(folder)}", file=sys.stderr)
    return figures(folder)


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
    options, options.more = parser.parse_known_args()
    runs = [(seed, name) for seed in range(options.seeds) for name in NAMES]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = pool.map(lambda run: train(run[1], run[0], options.output / f"{run[1]}-{run[0]}", options), runs)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
        for (_, name), result in zip(runs, found, strict=True):
            results[name].append(result)
    print(table(results))


if __name__ == "__main__":
    main()
