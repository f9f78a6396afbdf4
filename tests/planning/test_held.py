"""What stays in memory, beside trainings whose tensors are counted."""

import json
from pathlib import Path

import pytest

from dalle.config import Compression, Optimizer, PriorModel, Run, Schedule
from dalle.planning.exchanged import exchanged
from dalle.planning.gathered import at_the_turn, gradients_at_work
from dalle.planning.held import stays
from dalle.planning.layout import Layout, Sizes
from tests.processes import ON_CPU, run_processes

SIZES = [
    {"text_slots": 6, "grid": 2, "text_vocabulary": 40, "codebook_size": 24, "width": width, "depth": depth, "heads": 2}
    for width, depth in ((48, 2), (64, 4), (96, 3))
]
PAPERS = {"moments": "16-bit", "beta2": 0.96}


def _case(model, stage, compression=None, optimizer=None, **run):
    run = {"batch_size": 2, "zero_stage": stage, "compression": compression, **run}
    return {"model": model, "run": run, "optimizer": optimizer or {}}


CASES = [
    *(_case(model, 3, {"rank": 8, "format": "1-6-9"}, PAPERS) for model in SIZES),
    _case(SIZES[0], 3, precision="fp32", ema_decay=None),
    _case(SIZES[1], 2),
    _case(SIZES[2], 1, optimizer=PAPERS),
    _case(SIZES[1], 0, {"rank": 4, "format": "fp32"}),
    _case(SIZES[0], 0, optimizer={"muon_step_size_factor": 10.0}),
    _case(SIZES[0], 3, {"rank": 8, "format": "1-6-9"}, PAPERS, weights="16-bit"),
    _case(SIZES[2], 3, precision="fp16-per-block", weights="16-bit"),
    _case(SIZES[0], 2, weights="16-bit"),
    _case(SIZES[1], 1, optimizer=PAPERS, weights="16-bit"),
    _case(SIZES[1], 0, optimizer=PAPERS, weights="16-bit"),
]


def layout_of(case, machines, gpus) -> Layout:
    run = dict(case["run"])
    compression = run.pop("compression")
    run = Run(steps=3, compression=compression and Compression(**compression), **run)
    optimizer = Optimizer(Schedule(1e-3, 1e-3), **case["optimizer"])
    return Layout(Sizes(PriorModel(**case["model"])), run, optimizer, machines, gpus)


@pytest.mark.parametrize(
    ("processes", "cases"), [(2, [*CASES[:3], CASES[4], *CASES[8:12]]), (1, [CASES[3], *CASES[5:8], CASES[12]])]
)
def test_bytes_that_stay_are_those_that_a_training_holds(processes, cases):
    """Of each kind, to 5%: shards are rounded up to whole numbers of elements, and below stage 3 to DeepSpeed's alignment."""
    script = Path(__file__).with_name("measured.py").read_text()
    told = run_processes(script, processes, processes, arguments=[json.dumps(cases)], environment=ON_CPU)
    for case, found in zip(cases, json.loads(told.strip().splitlines()[-1]), strict=True):
        layout = layout_of(case, 1, processes)
        planned = stays(layout, exchanged(layout)) | {"gathered": at_the_turn(layout) if processes > 1 else 0}
        if layout.run.zero_stage == 3:
            planned["whole gradients"] = gradients_at_work(layout)
        assert planned == pytest.approx(found, rel=0.05), case
