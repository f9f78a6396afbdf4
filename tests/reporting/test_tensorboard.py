"""TensorBoard's files, read back; without the package, one line."""

import math
import sys

import numpy as np
import pytest
from PIL import Image

from dalle.config import Wandb
from dalle.reporting import elsewhere
from dalle.reporting.telemetry import Telemetry
from dalle.reporting.tensorboard import FOLDER


def _telemetry(folder, **options):
    return Telemetry(folder, "a run", 100, "tokens", show_progress=False, tensorboard=True, **options)


def _read(folder):
    loaded = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = loaded.EventAccumulator(str(folder / FOLDER), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_figures_and_pictures_come_back(tmp_path):
    telemetry = _telemetry(tmp_path)
    for step in (10, 20):
        telemetry.log(step, {"loss": 1 / step, "gradient_scales": [7.0, 13.0, 24.0]}, num_units=320)
        assert [each.step for each in _read(tmp_path).Scalars("loss")][-1] == step  # while the run goes on
    telemetry.log_validation(20, {"loss": 0.5})
    telemetry.log(30, {"loss": math.nan}, 1)
    picture = Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3))
    telemetry.pictures("samples", 20, picture)
    telemetry.close("finished")
    found = _read(tmp_path)
    losses = [(each.step, each.value) for each in found.Scalars("loss")]
    assert losses[:2] == [(10, pytest.approx(0.1)), (20, pytest.approx(0.05))] and math.isnan(losses[2][1])
    assert [(each.step, each.value) for each in found.Scalars("valid/loss")] == [(20, 0.5)]
    values = [found.Scalars(f"gradient_scales/{name}")[0].value for name in ("min", "median", "max")]
    assert values == [7.0, 13.0, 24.0] and "gradient_scales" not in found.Tags()["scalars"]
    (shown,) = found.Images("samples")
    (tmp_path / "it.png").write_bytes(shown.encoded_image_string)
    with Image.open(tmp_path / "it.png") as back:
        assert shown.step == 20 and np.array_equal(np.asarray(back), np.asarray(picture))


def test_a_resumed_run_takes_back_what_it_makes_again(tmp_path):
    telemetry = _telemetry(tmp_path)
    for step in (10, 20, 30):
        telemetry.log(step, {"loss": float(step)}, 1)
    telemetry.close("stopped")
    resumed = _telemetry(tmp_path, start_step=20)
    resumed.log(30, {"loss": 7.0}, 1)
    resumed.close("finished")
    assert [(each.step, each.value) for each in _read(tmp_path).Scalars("loss")] == [(10, 10), (20, 20), (30, 7)]


def test_a_new_run_does_not_mix_with_an_earlier_one(tmp_path):
    for value in (1.0, 2.0):
        telemetry = _telemetry(tmp_path)
        telemetry.log(10, {"loss": value}, 1)
        telemetry.close("stopped")
    assert [each.value for each in _read(tmp_path).Scalars("loss")] == [2.0]
    assert [each.value for each in _read(tmp_path / "previous-1").Scalars("loss")] == [1.0]


def test_it_is_off_unless_it_is_asked_for(tmp_path):
    telemetry = Telemetry(tmp_path, "a run", 100, "tokens", show_progress=False)
    telemetry.log(10, {"loss": 1.0}, 1)
    telemetry.close("finished")
    assert not (tmp_path / FOLDER).exists()


def test_without_the_package_it_is_one_line_and_nothing_is_begun(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(elsewhere.weights_and_biases, "start_run", lambda *_: pytest.fail("a run was begun there"))
    with pytest.raises(
        ValueError, match=r"run\.tensorboard true: .* not installed; `pip install 'dalle\[tensorboard\]'`"
    ) as told:
        _telemetry(tmp_path, wandb_settings=Wandb(enabled=True))
    assert (
        "\n" not in str(told.value) and not (tmp_path / FOLDER).exists() and not (tmp_path / "metrics.jsonl").exists()
    )


def test_a_full_disk_ends_no_training(tmp_path, capsys, monkeypatch):
    telemetry = _telemetry(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for name in ("add_scalar", "add_image", "close"):
        monkeypatch.setattr(telemetry._elsewhere.tensorboard._writer, name, full)
    telemetry.log(10, {"loss": 1.0}, 1)
    telemetry.pictures("samples", 10, Image.new("RGB", (8, 8)))
    telemetry.close("finished")
    assert capsys.readouterr().err.count("No space left on device") == 3
    assert (tmp_path / "pictures/samples-0000010.png").exists()
