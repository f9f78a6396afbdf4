"""`dalle-plan` and `--dry-run`: what is told, drawn, refused, and what is not written."""

import json
import re
from dataclasses import fields

import pytest
from PIL import Image

from dalle.cli import arguments
from dalle.cli.planning.command import plan
from dalle.cli.train import train
from dalle.config import Plan, TrainDVAE, TrainPrior, TrainTextEncoder
from dalle.planning.plan import Machines
from dalle.planning.timing import Rates
from tests.conftest import ROOT
from tests.errors.refused import refused

SIZES = {"text_slots": 8, "grid": 4, "text_vocabulary": 40, "codebook_size": 24, "width": 64, "depth": 2, "heads": 2}
SMALL = [
    *(f"--model.{name}={value}" for name, value in SIZES.items()),
    *(
        "--run.steps=1000",
        "--run.batch_size=8",
        "--optimizer.step_size.start=1e-3",
        "--optimizer.step_size.end=1e-3",
    ),
]
SHARDED = ["--machines", "2", "--gpus", "2", "--run.zero_stage", "3", "--run.compression.rank", "8"]


def test_what_a_plan_that_was_killed_left_of_its_picture_goes(tmp_path):
    (tmp_path / ".update.png.0123abcd.partial").write_bytes(b"half")
    plan([*SMALL, "--timeline", str(tmp_path / "update.png")])
    assert [path.name for path in tmp_path.iterdir()] == ["update.png"]


def test_a_plan_that_fits_is_told_drawn_and_as_json(tmp_path, capsys):
    picture = tmp_path / "update.png"
    plan([*SMALL, *SHARDED, "--price", "2", "--timeline", str(picture), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] and told["search"] is None
    assert (
        told["stay_bytes"]
        == sum(told["stays_bytes"].values())
        < told["peak_bytes"]
        < told["memory_bytes"]
        == 16 * 2**30
    )
    assert told["gpu_hours"] == pytest.approx(told["seconds"]["update"] * 1000 * 4 / 3600)
    assert told["days"] == pytest.approx(told["gpu_hours"] / 24 / 4) and told["cost"] == 2 * told["gpu_hours"]
    assert told["checkpoint_seconds"] == pytest.approx(told["checkpoint_bytes"] / 2e9)
    weights, matrices = told["parameters"], 2 * 12 * 64**2
    assert told["checkpoint_bytes"] == 16 * weights + 4 * matrices
    assert Image.open(picture).size == (1350, 435)
    plan([*SMALL, *SHARDED])
    lines = capsys.readouterr().out
    room = f"{weights:,} parameters; fits: 0.00 GB of 17.18 at the peak, 17.18 left for libraries and the allocator"
    assert lines.splitlines()[0] == room and "cost" not in lines
    rows = dict(
        line.strip().rsplit(maxsplit=1) for line in lines.splitlines() if line.startswith("  ") and "--" not in line
    )
    assert float(rows["while it is set up, GB"]) == round(told["while_made_bytes"] / 1e9, 2)
    assert float(rows["whole gradients, and sent"]) == round(
        told["comes_and_goes_bytes"]["whole gradients, and sent"] / 1e9, 2
    )
    assert "activations" in rows and "activations, if recomputed" in rows
    plan([*SMALL, *SHARDED, "--run.recompute", "true"])
    recomputed = capsys.readouterr().out
    assert "  activations, recomputed " in recomputed and "  activations, if kept " in recomputed
    refused(
        f"timeline {picture}: is there already; give --overwrite, or another name",
        plan,
        [*SMALL, "--timeline", str(picture)],
    )
    nowhere = tmp_path / "nowhere" / "update.png"
    said = f"timeline {nowhere}: there is no folder {nowhere.parent}; make it first"
    refused(said, plan, [*SMALL, "--timeline", str(nowhere)])


def test_16_bit_weights_are_2_bytes_fewer_wherever_they_are(capsys):
    matrices, told = 2 * 12 * 64**2, []
    for weights in ("fp32", "16-bit"):
        plan([*SMALL, *SHARDED, "--run.ema_every_steps", "25", "--run.weights", weights, "--json"])
        told.append(json.loads(capsys.readouterr().out))
    fp32, short = told
    assert fp32["checkpoint_bytes"] - short["checkpoint_bytes"] == 2 * matrices
    assert fp32["stay_bytes"] - short["stay_bytes"] == 2 * matrices / 2  # of two that shard
    # beside the averages, which are fp32, the weights that they are made from
    assert fp32["main_memory_bytes"] - short["main_memory_bytes"] == 2 * matrices / 2
    copies = [each["comes_and_goes_bytes"]["16-bit copies of weights"] for each in told]
    assert copies == [0, 0]  # of gathered weights none is kept
    assert short["peak_bytes"] < fp32["peak_bytes"] - matrices


def test_a_wire_of_16_bits_halves_the_traffic_between_machines_alone(capsys):
    told = {}
    for wire in ("fp32", "bf16"):
        plan([*SMALL, *SHARDED[:-2], "--run.wire", wire, "--json"])
        told[wire] = json.loads(capsys.readouterr().out)
    whole, half = told["fp32"], told["bf16"]
    assert half["settings"] == {**whole["settings"], "run.wire": "bf16"}
    between = "between replicas"
    assert half["traffic_bytes"][between] == pytest.approx(whole["traffic_bytes"][between] / 2, rel=1e-3)
    for name in ("stays_bytes", "checkpoint_bytes"):
        assert half[name] == whole[name]


def test_what_does_not_fit_ends_with_one_and_what_would(capsys):
    with pytest.raises(SystemExit) as ended:
        plan([*SMALL, *SHARDED, "--memory", "0.0017"])
    assert ended.value.code == 1
    lines = capsys.readouterr().out
    assert "does not fit" in lines and "the fastest that fits, of" in lines and "--run.zero_stage" in lines
    with pytest.raises(SystemExit):
        plan([*SMALL, *SHARDED, "--memory", "0.000001"])
    assert "nothing fits, of" in capsys.readouterr().out


def test_rates_are_those_that_were_given():
    """Of passes and of Muon the share that is reached of the GPU's; a link's bits are bytes; GiB are 2³⁰ bytes."""
    given = ["--tflops", "100", "--achieved", "0.5", "--link", "80", "--inside", "300", "--bandwidth", "2000"]
    found = Machines.of(
        arguments.parse(Plan, "dalle-plan", [*SMALL, *given, "--memory", "24", "--disk", "3", "--price", "2"])
    )
    assert found == Machines(24 * 2**30, Rates(5e13, 5e13, 1e10, 3e11, 2e12), 3e9, 2.0)


def test_a_search_tells_the_plan_that_it_found(capsys):
    plan([*SMALL, *SHARDED, "--search", "--json"])
    told = json.loads(capsys.readouterr().out)
    fastest = told["search"]["fastest"]
    assert told["settings"] == fastest["settings"] and told["search"]["layouts"] > 60
    assert told["seconds"] == fastest["seconds"]
    plan([*SMALL, *SHARDED, "--search"])
    _, fastest_settings, *_, best, asked, settings = capsys.readouterr().out.splitlines()
    assert best.startswith("the fastest that fits, of ") and best.endswith("s an update, as above")
    assert asked.startswith("as asked for: ") and "--run.zero_stage" in settings
    assert "--machines 2 --gpus 2 --run.zero_stage 3 " in settings != fastest_settings
    assert "does not fit" not in asked
    plan([*SMALL, *SHARDED, "--search", "--memory", "0.0017"])
    told = capsys.readouterr().out.splitlines()
    assert told[-2].startswith("as asked for: ") and ", which does not fit, " in told[-2]
    assert told[-1].startswith("  --machines 2 --gpus 2 --run.zero_stage 3 ") and told[0].count("; fits: ") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--gpus 0", "gpus 0: must be at least 1"),
        ("--gpus 70000", "gpus 70000: must be at most 65,536"),
        ("--machines 0", "machines 0: must be at least 1"),
        ("--machines 70000", "machines 70000: must be at most 65,536"),
        ("--memory 0", "memory 0.0: must be positive and finite"),
        ("--achieved 1.5", "achieved 1.5: must lie in (0, 1]"),
        ("--price -1", "price -1.0: must be finite, and not negative"),
        ("--timeline update.svg", "timeline update.svg: must end in .png; the picture is a PNG"),
        ("--run.wire fp8", "run.wire"),
        (
            "--machines 2 --gpus 2 --run.wire bf16",
            "run.wire bf16 with run.zero_stage 0 and 2 processes a machine: each would",
        ),
        ("--machines 3", "run.batch_size 8: must be a multiple of 3 processes × 1 accumulation steps"),
        (
            "--gpus 4 --run.zero_stage 1 --run.ranks_per_machine 3",
            "run.ranks_per_machine 3: does not divide the 4 processes; start as many on every machine",
        ),
        (
            "--gpus 8 --run.zero_stage 3 --run.compression.rank 4",
            "run.compression.rank 4: must be a multiple of the 8 processes of a machine, such as 8",
        ),
        ("--run.compression.rank 0", "run.compression.rank 0: must be at least 1"),
        (
            "--run.compression.rank 1000",
            "run.compression.rank 1000: is more than model.width 64, the shorter side of the matrices, so that nothing would be "
            "compressed; take about a quarter of it, as the paper does, here 16",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(options, said):
    refused(said, plan, [*SMALL, *options.split()])


def test_the_paper_s_figures_are_those_of_the_page(capsys):
    """12 B weights on 8 GPUs a machine, in GB of a GPU, beside docs/scaling-details.md's table made by hand."""
    config = arguments.parse(
        Plan, "dalle-plan", ["--config", "cluster/12b-hybrid", "--machines", "128", "--gpus", "8", "--memory", "16"]
    )
    from dalle.planning.layout import Layout, Sizes
    from dalle.planning.plan import Machines, Planned

    found = Planned(Layout(Sizes(config.model), config.run, config.optimizer, 128, 8), Machines.of(config)).figures()
    stays, comes = found["stays_bytes"], found["comes_and_goes_bytes"]
    assert sum(stays.values()) - stays["buckets"] == pytest.approx(12.6e9, rel=0.01)
    assert stays["gradients"] == pytest.approx(0.1e9, rel=0.02)
    assert stays["buckets"] == pytest.approx(0.76e9, rel=0.01)
    assert comes["activations"] == pytest.approx(13.2e9, rel=0.02)
    assert comes["activations, recomputed"] == pytest.approx(1.5e9 - 36 * 1280 * 3968, rel=0.04)
    assert found["checkpoint_bytes"] == pytest.approx(172.5e9, rel=0.005)
    # the average in fp32, and the weights it is made from in 16 bits
    assert found["main_memory_bytes"] == pytest.approx((4 + 2) / 8 * 12.3e9, rel=0.01)
    assert found["traffic_bytes"]["between replicas"] == pytest.approx(2 * 127 / 128 * 527e6, rel=0.01)
    assert found["fits"] and 16e9 < found["peak_bytes"] < 16.9e9


def test_sixteen_machines_take_what_the_walkthrough_says(capsys):
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ +dalle-plan (--config cluster/12b-hybrid --machines 16 .*)$", page, flags=re.MULTILINE)
    plan([*line.split(), "--json"])
    told = json.loads(capsys.readouterr().out)
    said = f"It fits: {told['peak_bytes'] / 1e9:.1f} GB of each GPU at the peak, {told['settings']['micro_batch']} samples of a GPU at"
    said += (
        f" a time, {told['seconds']['update']:.1f} s an update and {told['days']:.0f} days for all {told['updates']:,}"
    )
    assert told["fits"] and said in " ".join(page.split())


PRIOR = ["--data", "tokens", "--dvae", "dvae", "--tokenizer", "tokenizer.json"]


def test_a_dry_run_tells_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dalle.planning.reached.flops_per_s", lambda *_: 1e10)
    assert train("prior", TrainPrior, [*PRIOR, *SMALL, "--output", "out", "--dry-run"])
    lines = capsys.readouterr().out
    assert " parameters; fits: " in lines and "at 0.01 TFLOP/s" in lines and "all 1,000 updates" in lines
    assert lines.splitlines()[-1] == "dry run: nothing was trained, and nothing written"
    dvae = ["--config", "demo/dvae", "--data", "shards/000.tar", "--output", "out", "--dry-run"]
    assert train("dvae", TrainDVAE, dvae)
    lines = capsys.readouterr().out
    assert "parameters, of which each takes 20 bytes" in lines and "PFLOP an update" in lines
    encoder = [
        "--config",
        "text-encoder/small",
        "--data",
        "shards/000.tar",
        "--class_key",
        "name",
        "--output",
        "out",
        "--dry-run",
    ]
    assert train("text-encoder", TrainTextEncoder, encoder)
    assert "updates of" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_plan_takes_whatever_stands_in_the_file_of_a_training():
    assert {each.name for each in fields(TrainPrior)} <= {each.name for each in fields(Plan)}
