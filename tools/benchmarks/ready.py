"""How long a ready model keeps one waiting: `dalle-sample` from the start of its process to the first image, and N candidates of one
caption in Python after loading; each run in a process of its own, medians over the runs.

Rates are 1/s and candidates/s, so that more is faster, and `seconds` has the times themselves. The limit of the first is a process
that does nothing but import PyTorch; of the second, drawing the same once more in the same process, when all is warm. A first run
that is not counted fills the caches of the disk, and compiles what is compiled once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.sides import Side, case, running

_ROOT = Path(__file__).parents[2]
_LOOK_S = 0.002
"""Between two looks for the first image: little beside what is timed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--model", default="icons", help="a ready model, or any other that dalle-sample takes")
    parser.add_argument("--caption", help="by default the example of the model's card")
    parser.add_argument("--n", type=int, default=8, help="candidates")
    parser.add_argument("--repeats", type=int, default=5, help="runs that are counted")


def run(options: argparse.Namespace) -> list[dict]:
    """Two cases."""
    from dalle.ready.facts import read_card
    from dalle.ready.files import CARD
    from dalle.ready.names import find_model

    model = str(find_model(options.model).absolute())
    caption = options.caption or read_card(Path(model) / CARD).example or "a red circle"
    first_s, whole_s, torch_s, draw_s, warm_s, peaks = [], [], [], [], [], [0]
    for number in range(options.repeats + 1):
        image, torch_alone_s = _first_image(model, caption, options.n), _python("import torch")
        with running({"ours": partial(Side, "ours", partial(_ours, model, caption, options.n), True)}) as sides:
            drawn = [sides["ours"].call("draw") for _ in range(2)]
            peaks.append(sides["ours"].peak_memory_bytes)
        if number:
            first_s.append(image[0])
            whole_s.append(image[1])
            torch_s.append(torch_alone_s)
            draw_s.append(drawn[0])
            warm_s.append(drawn[1])
    settings = {"model": options.model, "caption": caption, "n": options.n, "repeats": options.repeats}
    start = case(
        "ready first image",
        "1/s",
        {"ours": [1 / s for s in first_s]},
        1 / statistics.median(torch_s),
        {"ours": 0},
        settings,
    )
    start["seconds"] = {
        name: statistics.median(taken)
        for name, taken in (("first_image", first_s), ("all", whole_s), ("import_torch", torch_s))
    }
    del start["peak_memory_bytes"]  # not measured there
    rates = {"ours": [options.n / s for s in draw_s]}
    draw = case(
        "ready drawing", "candidates/s", rates, options.n / statistics.median(warm_s), {"ours": max(peaks)}, settings
    )
    draw["seconds"] = {"after_loading": statistics.median(draw_s), "warm": statistics.median(warm_s)}
    if not options.json:
        for result in (start, draw):
            said = ", ".join(f"{name.replace('_', ' ')} {taken:.3g} s" for name, taken in result["seconds"].items())
            print(f"{result['name']}: {said}")
    return [start, draw]


def _first_image(model: str, caption: str, n: int) -> tuple[float, float]:
    """Seconds from the start of `dalle-sample` to its first image, and to its end."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "samples/images"
        program = "from dalle.cli.sample import main; main()"
        options = [
            "--model",
            model,
            "--output",
            str(images.parent),
            "--n",
            str(n),
            "--keep",
            str(n),
            "--sampling.chunk",
            str(n),
        ]
        began_s = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", program, *options, f"--caption={caption}"],
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        seen_s = None
        while process.poll() is None:
            if seen_s is None and images.is_dir() and any(images.glob("*.png")):
                seen_s = time.perf_counter() - began_s
            time.sleep(_LOOK_S)
        ended_s = time.perf_counter() - began_s
        if process.returncode or not any(images.glob("*.png")):
            raise RuntimeError(f"dalle-sample drew nothing: {process.stderr.read().decode()[-1000:]}")
        process.stderr.close()
        return seen_s or ended_s, ended_s


def _python(program: str) -> float:
    """Seconds of a Python process."""
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, env=_environment())
    return time.perf_counter() - began_s


def _environment() -> dict[str, str]:
    """So that it runs without an installation."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}


def _ours(model: str, caption: str, n: int) -> dict:
    """Loads, and draws as the command would."""
    import dalle
    from dalle.config import Sampling

    pipeline = dalle.load(model)
    return {"draw": partial(pipeline.generate, caption, n=n, keep=n, sampling=Sampling(chunk=n))}
