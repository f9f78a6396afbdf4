"""What a person sees of a run: valid JSON whatever the numbers, a report from whatever there is, resuming, pruning."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from dalle.config import Wandb
from dalle.reporting.explanations import FIGURES
from dalle.reporting.report import SCALE_COLOURS, write_report
from dalle.reporting.telemetry import MAX_PICTURES_PER_NAME, Telemetry


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _telemetry(folder, **options):
    return Telemetry(folder, "a run", 100, "images", show_progress=False, **options)


def test_a_run_leaves_metrics_pictures_and_a_report(tmp_path):
    telemetry = _telemetry(tmp_path)
    for step in (10, 20):
        telemetry.log(step, {"loss": 1 / step, "step_size": 1e-3}, num_units=320)
    telemetry.log_validation(20, {"loss": 0.5})
    telemetry.warn("the codebook\nhas collapsed <b>")
    telemetry.pictures("samples", 20, Image.new("RGB", (8, 8)))
    telemetry.close("finished")
    lines = _lines(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 20, 20]
    assert lines[0]["loss"] == 0.1 and lines[0]["images_per_s"] > 0
    assert lines[2]["valid/loss"] == 0.5
    assert lines[3]["warning"] == "the codebook has collapsed <b>"
    page = (tmp_path / "report.html").read_text()
    for word in ("a run", "finished", "<svg", "pictures/samples-0000020.png", "has collapsed &lt;b&gt;"):
        assert word in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_what_a_stage_highlights_is_on_the_progress_line(tmp_path, capsys):
    telemetry = Telemetry(tmp_path, "a run", 100, "images", show_progress=True, highlights=("perplexity",))
    telemetry.log(10, {"loss": 0.5, "step_size": 1e-3, "perplexity": 37.25, "other": 9.75}, num_units=320)
    telemetry.close("finished")
    line = next(line for line in capsys.readouterr().err.splitlines() if "step 10/100" in line)
    assert "loss 0.5  perplexity 37.25  step size 0.001" in line
    assert "other" not in line


def test_speed_is_counted_from_time_not_paused(tmp_path, monkeypatch, capsys):
    now_s = 100.0
    monkeypatch.setattr("dalle.reporting.telemetry.time.monotonic", lambda: now_s)
    telemetry = Telemetry(tmp_path, "a run", 100, "tokens", flops_per_unit=3e9, limit_flops_per_s=1e12)
    now_s += 4
    with telemetry.paused():
        now_s += 60
    telemetry.log(10, {"loss": 0.5, "memory_gb": 2.13}, num_units=400, waited_s=0.2)
    telemetry.close("finished")
    (line,) = _lines(tmp_path)
    assert line["tokens_per_s"] == 100
    assert line["mfu"] == pytest.approx(3e9 * 100 / 1e12)
    assert line["data_wait"] == pytest.approx(0.2 / 4)
    assert "100 tokens/s  loss 0.5  mfu 30%  data 5%  2.1 GB" in capsys.readouterr().err
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["flops_per_unit"], run["limit_flops_per_s"]) == (3e9, 1e12)
    page = (tmp_path / "report.html").read_text()
    assert "30% of 1 TFLOP/s" in page
    health, speed = page.split("<h2>Speed and memory</h2>")
    assert "<b>loss</b>" in health
    for name in ("tokens_per_s", "mfu", "data_wait", "memory_gb"):
        assert f"<b>{name}</b>" in speed and f"<b>{name}</b>" not in health


def test_what_is_not_counted_is_not_shown(tmp_path):
    telemetry = _telemetry(tmp_path)
    telemetry.log(10, {"loss": 0.5}, 1)
    telemetry.close("finished")
    assert "mfu" not in _lines(tmp_path)[0]
    assert "utilisation" not in (tmp_path / "report.html").read_text()


def test_numbers_that_json_lacks_become_null(tmp_path):
    telemetry = _telemetry(tmp_path)
    telemetry.log(1, {"loss": math.nan, "scale": math.inf}, 1)
    telemetry.close("failed")
    assert _lines(tmp_path)[0]["loss"] is None and _lines(tmp_path)[0]["scale"] is None


def test_lists_are_for_the_file_and_the_plot_of_the_gradient_scales(tmp_path, capsys):
    telemetry = Telemetry(tmp_path, "a run", 100, "tokens")
    for step in (1, 2):
        telemetry.log(step, {"loss": 1.0, "gradient_scales": [13 + step / 3, 20.0, math.inf]}, 1)
    telemetry.close("finished")
    assert [line["gradient_scales"] for line in _lines(tmp_path)] == [[13.3333, 20, None], [13.6667, 20, None]]
    assert "gradient" not in capsys.readouterr().err
    plot = (tmp_path / "report.html").read_text().split("<h2>Gradient scales</h2>")[1]
    assert "last of 3" in plot and "now 13.67 to 20" in plot
    first, _, last = SCALE_COLOURS
    assert f"stroke: {first}" in plot and f"stroke: {last}" not in plot  # the last has nothing to draw


def test_the_plot_of_the_gradient_scales_follows_the_run_as_it_is_now(tmp_path):
    lines = [{"step": 1, "gradient_scales": [13.0]}, *({"step": s, "gradient_scales": [9.0] * 128} for s in (2, 3))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(tmp_path)
    plot = (tmp_path / "report.html").read_text().split("<h2>Gradient scales</h2>")[1]
    assert "last of 128" in plot and "now 9 to 9" in plot
    # a colour for each, some alike
    assert len(set(re.findall("stroke: (#[0-9a-f]{6}); stroke-width: 0.7", plot))) > 100


def test_resuming_drops_what_will_be_measured_again(tmp_path):
    telemetry = _telemetry(tmp_path)
    for step in (10, 20, 30):
        telemetry.log(step, {"loss": step}, 1)
        telemetry.pictures("samples", step, Image.new("RGB", (4, 4)))
    telemetry.close("stopped")
    resumed = _telemetry(tmp_path, start_step=20)
    resumed.log(30, {"loss": 7.0}, 1)
    resumed.close("finished")
    assert [(line["step"], line["loss"]) for line in _lines(tmp_path)] == [(10, 10), (20, 20), (30, 7)]
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["samples-0000010.png", "samples-0000020.png"]


def test_few_pictures_are_kept_among_them_the_first_and_the_last(tmp_path):
    telemetry = _telemetry(tmp_path)
    for step in range(1, 41):
        telemetry.pictures("samples", step, Image.new("RGB", (4, 4)))
    telemetry.close("finished")
    kept = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert len(kept) == MAX_PICTURES_PER_NAME
    assert (kept[0], kept[-1]) == ("samples-0000001.png", "samples-0000040.png")


@pytest.mark.parametrize(
    "content", [None, "", '{"step": 1, "loss": 2.0}\n{"step": 2, "lo', '{"step": 1, "loss": null}\n']
)
def test_a_report_can_be_made_of_anything(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    write_report(tmp_path)
    assert "</html>" in (tmp_path / "report.html").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_said_and_survived(tmp_path, capsys):
    telemetry = _telemetry(tmp_path)
    telemetry._file = open("/dev/full", "w")  # noqa: SIM115
    (tmp_path / "pictures").write_text("in the way")
    telemetry.log(10, {"loss": 1.0, "step_size": 1e-3}, num_units=320)
    telemetry.warn("the checkpoint was not saved")
    telemetry.pictures("samples", 10, Image.new("RGB", (8, 8)))
    telemetry.close("finished")
    said = capsys.readouterr().err
    assert said.count("No space left on device") >= 2 and "the picture samples was not written" in said
    assert "the checkpoint was not saved" in said


def test_other_ranks_leave_nothing(tmp_path):
    telemetry = _telemetry(tmp_path / "none", is_main=False)
    telemetry.log(1, {"loss": 1.0}, 1)
    with telemetry.paused():
        telemetry.close("finished")
    assert not (tmp_path / "none").exists()


def test_wandb_logs_offline_when_switched_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    telemetry = _telemetry(tmp_path, wandb_settings=Wandb(enabled=True, mode="offline"))
    logged = []
    monkeypatch.setattr(telemetry._elsewhere.wandb_run, "log", logged.append)
    telemetry.log(1, {"loss": 1.0, "gradient_scales": [7.0, 13.0, 24.0]}, 1)
    telemetry.close("finished")
    assert list(tmp_path.rglob("*.wandb"))
    (values,) = logged
    assert (values["step"], values["loss"]) == (1, 1.0) and "gradient_scales" not in values
    names = [f"gradient_scales/{name}" for name in ("min", "median", "max")]
    assert [values[name] for name in names] == [7.0, 13.0, 24.0]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_narrow_terminal_shows_speed_and_time_left(tmp_path, monkeypatch, capsys, terminal):
    """At 80 columns what is cut off is figures, of which there may be many."""
    now_s = 100.0
    monkeypatch.setattr("dalle.reporting.telemetry.time.monotonic", lambda: now_s)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    telemetry = Telemetry(tmp_path, "dvae", 2000, "images", highlights=("psnr_db", "perplexity", "codes_used"))
    telemetry.tell("trains on much")
    telemetry.begin(20)
    now_s += 1000  # to compile
    telemetry.warmed_up(1)
    for step in (20, 40):
        now_s += 10
        values = {"loss": -0.4567, "psnr_db": 9.236, "perplexity": 11.94, "codes_used": 16, "step_size": 1e-3}
        telemetry.log(step, values, num_units=12_345)
    telemetry.close("finished")
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    assert "dvae: trains on much" in lines
    if terminal:
        assert any("first figures after update 20" in line for line in lines)
    assert any("17 min 22 s left  12.22 images/s  loss" in line[:80] for line in lines)
    assert any("16 min 45 s left  1,234 images/s  loss" in line[:80] for line in lines)


def test_the_page_shows_pictures_first_and_folds_what_says_nothing(tmp_path):
    """Curves that move and are explained are open, each with its sentence; small pictures are enlarged sharply."""
    telemetry = _telemetry(tmp_path)
    for step in (1, 2):
        telemetry.log(step, {"loss": 1.0 / step, "kl_weight": 0.5, "mystery": step}, 1)
    telemetry.pictures("samples", 2, Image.new("RGB", (32, 8)))
    telemetry.pictures("grid", 2, Image.new("RGB", (900, 300)))
    telemetry.close("finished")
    page = (tmp_path / "report.html").read_text()
    assert page.index("<h2>Pictures") < page.index("<h2>Curves") < page.index("<details>")
    opened, folded = page.split("<details>")
    assert "<b>loss</b>" in opened and FIGURES["loss"] in opened
    for name in ("kl_weight", "mystery"):
        assert f"<b>{name}</b>" in folded and f"<b>{name}</b>" not in opened
    assert re.search(r'<img class="sharp" src="pictures/samples-0000002.png" [^>]*width="640"', page)
    assert re.search(r'<img src="pictures/grid-0000002.png" [^>]*width="600"', page)
