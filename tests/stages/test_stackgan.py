"""A StackGAN through its command: resumed is uninterrupted, two processes are one, stage two on stage one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dalle.checkpoints.checkpoint import latest, open_checkpoint
from dalle.cli import arguments
from dalle.cli.export import export
from dalle.cli.train import train
from dalle.cluster.topology import World
from dalle.config import TrainStackGAN
from dalle.config.checks import Hopeless
from dalle.models.folder import load_generator, read_header
from dalle.models.stackgan.generators import generator
from dalle.sampling.adversarial.gan_set import find_gan
from dalle.stages import stackgan
from dalle.stages.adversarial import collapse
from tests.processes import ON_CPU, run_processes
from tests.stages.adversarial.text import HashCache, HashEncoder, embeddings_of

TINY = [
    *("--model.image_size_px", "16", "--model.text_width", "6", "--model.channels", "4", "--text_encoder", "a6"),
    *("--model.discriminator_channels", "4", "--model.noise_width", "5", "--model.condition_width", "8"),
    *("--optimizer.step_size.start", "1e-3", "--optimizer.step_size.end", "1e-3", "--optimizer.weight_decay", "0"),
    *("--discriminator_optimizer.step_size.start", "2e-3", "--discriminator_optimizer.step_size.end", "5e-4"),
    *("--discriminator_optimizer.step_size.end_step", "6", "--discriminator_optimizer.step_size.shape", "halving"),
    *(
        "--discriminator_optimizer.weight_decay",
        "0",
        "--optimizer.beta1",
        "0.5",
        "--discriminator_optimizer.beta1",
        "0.5",
    ),
    *("--objective.real_labels", "[0.9,0.95]", "--objective.fake_labels", "[0.1,0.15]", "--objective.flipped", "0.1"),
    *("--run.batch_size", "8", "--run.precision", "fp32", "--run.loader_workers", "0", "--run.log_every_steps", "1"),
    *("--run.checkpoint_every_minutes", "0", "--images.augmentation", "none", "--run.ema_decay", "0.9"),
    *("--class_key", "scene"),
]


@pytest.fixture(autouse=True)
def _tiny_encoder(monkeypatch):
    monkeypatch.setattr("dalle.stages.stackgan.embeddings_of", embeddings_of)


def _arguments(shapes_folder, output, *more) -> list[str]:
    return [*TINY, "--data", f"{shapes_folder}/train-*.tar", "--output", str(output), "--run.steps", "6", *more]


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _metrics(folder: Path, name: str = "loss") -> list[float]:
    return [line[name] for line in _lines(folder) if name in line]


@pytest.fixture(scope="module")
def whole(shapes_folder, tmp_path_factory):
    """A stage one of six updates."""
    folder = tmp_path_factory.mktemp("gan") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dalle.stages.stackgan.embeddings_of", embeddings_of)
        train("stackgan", TrainStackGAN, _arguments(shapes_folder, folder))
    return folder


def test_resumed_is_uninterrupted(shapes_folder, whole, tmp_path):
    parts = tmp_path / "parts"
    train("stackgan", TrainStackGAN, _arguments(shapes_folder, parts, "--run.steps", "3"))
    train("stackgan", TrainStackGAN, _arguments(shapes_folder, parts, "--resume"))
    for name in ("loss", "discriminator_loss", "discriminator_gradient_norm", "kl", "spread"):
        assert _metrics(parts, name) == _metrics(whole, name) and len(_metrics(whole, name)) == 6
    ours, theirs = (open_checkpoint(latest(folder)) for folder in (parts, whole))
    assert ours.shapes.keys() == theirs.shapes.keys()
    for begun in ("model/", "ema/", "exp_avg/", "exp_avg_sq/", "steps"):
        assert any(name.startswith(begun) for name in ours.shapes)
        assert begun == "ema/" or any(name.startswith(f"discriminator/{begun}") for name in ours.shapes)
    for name in ours.shapes:
        assert torch.equal(ours.read(name), theirs.read(name)), name
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_what_comes_out_is_the_averaged_generator(whole):
    header, checkpoint = read_header(whole), open_checkpoint(latest(whole))
    assert header["kind"] == "stackgan" and json.loads(header["config"])["image_size_px"] == 16
    assert (header["text_encoder"], header["text_encoder_hash"]) == ("hashes", 64 * "a")
    model = load_generator(whole)
    assert not model.training
    for name, value in model.state_dict().items():
        shape = checkpoint.shapes[f"ema/{name}"]
        assert torch.equal(value, checkpoint.read(f"ema/{name}").view(shape)), name
    trained = checkpoint.read("model/output.weight")
    assert not torch.equal(model.output.weight.flatten(), trained)
    assert model(torch.zeros(2, 6), torch.zeros(2, 5), torch.zeros(2, 8))[0].shape == (2, 3, 16, 16)
    assert list((whole / "pictures").glob("samples-*.png"))
    validated = [line for line in _lines(whole) if any("caption_spread" in name for name in line)]
    assert validated


def test_a_checkpoint_exports_as_the_model_that_the_run_wrote(whole, tmp_path):
    export([str(whole), "--output", str(tmp_path / "exported")])
    assert (tmp_path / "exported" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_both_players_learn(whole, shapes_folder):
    """Each by its own step size."""
    checkpoint = open_checkpoint(latest(whole))
    assert checkpoint.read("steps").item() == checkpoint.read("discriminator/steps").item() == 6
    for name in (
        "exp_avg/output.weight",
        "discriminator/exp_avg/conditional.weight",
        "discriminator/exp_avg/text.weight",
    ):
        assert checkpoint.read(name).abs().sum() > 0


def _prepared(parts: list[range], step=5, first_row=0, device="cpu"):
    """What an update's micro-batches are made ready to, of eight pairs of three classes: 0 0 0 0 0 0 1 2."""
    config = arguments.parse(TrainStackGAN, "test", [*TINY, "--data", "x", "--output", "x", "--run.steps", "9"])
    captions = [f"caption {n}" for n in range(8)]
    about = [(f"class {max(0, n - 5)}", f"caption {n}") for n in range(8)]
    batches = [{"captions": [captions[n] for n in part], "concepts": [about[n] for n in part]} for part in parts]
    torch.manual_seed(0)
    embeddings = HashCache(Path("x"), HashEncoder())
    model = generator(config.model)
    prepare = stackgan._prepare(config, model, embeddings, lambda text_BE, seeds: {"seeds": seeds}, first_row)
    prepare(batches, step, World(0, 1, torch.device(device)))
    return batches


def test_an_update_is_made_ready_row_by_row():
    (whole,) = _prepared([range(8)])
    encoded = HashEncoder().encode([f"caption {n}" for n in range(8)])
    assert torch.equal(whole["text_BE"], encoded)
    wrong = [encoded.eq(row).all(dim=1).nonzero().item() for row in whole["wrong_text_BE"]]
    assert all(max(0, a - 5) != max(0, b - 5) for a, b in enumerate(wrong))
    assert whole["has_wrong_B"].tolist() == 8 * [1.0]
    assert len(set(whole["seeds"])) == 8 and len(whole["noise_BZ"].unique(dim=0)) == 8
    images_BCYX, mean_BC, _ = whole["drawn"]
    assert images_BCYX.shape == (8, 3, 16, 16) and images_BCYX.requires_grad and mean_BC.requires_grad
    halves = _prepared([range(4), range(4, 8)])
    assert [half["seeds"] for half in halves] == [whole["seeds"][:4], whole["seeds"][4:]]
    for name in (
        "text_BE",
        "wrong_text_BE",
        "noise_BZ",
        "epsilon_BC",
        "real_labels_B",
        "wrong_labels_B",
        "fake_labels_B",
    ):
        assert torch.equal(torch.cat([half[name] for half in halves]), whole[name]), name
        if name != "text_BE":
            assert not torch.equal(_prepared([range(8)], step=6)[0][name], whole[name]), name


def test_an_update_is_made_ready_without_waiting_for_a_gpu(whole, waited_for):
    expected, found = (_prepared([range(4), range(4, 8)], device=device) for device in ("cpu", "cuda"))
    for name in ("text_BE", "has_wrong_B", "noise_BZ", "fake_labels_B"):
        assert torch.equal(found[1][name], expected[1][name]), name
    first = load_generator(whole)
    config = arguments.parse(TrainStackGAN, "test", [*TINY, "--data", "x", "--output", "x", "--run.steps", "9"])
    low = stackgan._low(first, config, torch.device("cuda"), found[1]["text_BE"], [1, 2, 3, 4])
    assert low["low_BCYX"].shape == (4, 3, 16, 16)
    assert waited_for == []


def test_a_row_without_a_wrong_caption_counts_for_nothing():
    (batch,) = _prepared([range(4)])  # all of one class
    assert batch["has_wrong_B"].tolist() == 4 * [0.0]
    assert torch.equal(batch["wrong_text_BE"], batch["text_BE"])


_TWO = """
import sys
from tests.stages.adversarial.text import embeddings_of
import dalle.stages.stackgan
dalle.stages.stackgan.embeddings_of = embeddings_of
sys.argv[0] = "dalle-train-stackgan"
from dalle.cli.train import train_stackgan
train_stackgan()
"""


def test_two_processes_are_one(shapes_folder, whole, tmp_path):
    """The same rows, noise, labels and wrong captions; batch normalisation over both."""
    folder = tmp_path / "two"
    run_processes(_TWO, 2, 2, arguments=_arguments(shapes_folder, folder), environment=ON_CPU)
    # the same sums in another order, then six updates
    for name in ("loss", "discriminator_loss", "kl", "discriminator_wrong", "gradient_norm"):
        assert _metrics(folder, name) == pytest.approx(_metrics(whole, name), rel=1e-5), name
    one, other = (load_file(run / "model.safetensors") for run in (whole, folder))
    for name, value in one.items():
        # a bias that batch normalisation takes away again has rounding errors for a gradient, which Adam makes as large as any
        if not name.startswith("upsample.") or not name.endswith((".0.bias", "running_mean")):
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=0, msg=name)


def test_accumulation_takes_micro_batches_for_both(shapes_folder, tmp_path):
    train("stackgan", TrainStackGAN, _arguments(shapes_folder, tmp_path / "a", "--run.accumulation_steps", "2"))
    assert len(_metrics(tmp_path / "a")) == 6
    checkpoint = open_checkpoint(latest(tmp_path / "a"))
    assert checkpoint.read("discriminator/steps").item() == 6


@pytest.mark.parametrize(
    "more",
    [
        ["--run.precision", "bf16"],
        ["--model.text", "shared-mean", "--model.unconditional", "true"],
        ["--model.upsample", "transposed", "--model.dropout", "0.2", "--optimizer.clip_norm", "0.1"],
        [
            *("--objective.loss", "hinge", "--objective.penalty_weight", "2", "--model.discriminator_norm", "none"),
            *("--objective.real_labels", "[1]", "--objective.fake_labels", "[0]", "--objective.flipped", "0"),
            *("--run.precision", "bf16"),
        ],
    ],
    ids=["bf16", "A and B", "G and E", "DF-GAN"],
)
def test_every_recipe_trains_and_resumes(shapes_folder, tmp_path, more):
    run, parts = tmp_path / "run", tmp_path / "parts"
    train("stackgan", TrainStackGAN, _arguments(shapes_folder, run, "--run.steps", "2", *more))
    train("stackgan", TrainStackGAN, _arguments(shapes_folder, parts, "--run.steps", "1", *more))
    train("stackgan", TrainStackGAN, _arguments(shapes_folder, parts, "--run.steps", "2", *more, "--resume"))
    assert _metrics(parts) == _metrics(run) and len(_metrics(run)) == 2
    assert all(value.isfinite().all() for value in load_file(run / "model.safetensors").values())


def test_stage_two_begins_with_stage_ones_images(shapes_folder, whole, tmp_path):
    sizes = ["--model.stage", "2", "--model.image_size_px", "64", "--run.steps", "2", "--run.batch_size", "4"]
    more = [*sizes, "--stage_one", str(whole)]
    train("stackgan", TrainStackGAN, _arguments(shapes_folder, tmp_path / "two", *more))
    header = read_header(tmp_path / "two")
    assert header["stage_one_hash"] == read_header(whole)["hash"]
    kept = tmp_path / "two" / "stage_one"
    assert read_header(kept)["hash"] == header["stage_one_hash"]
    second, low = load_generator(tmp_path / "two"), load_generator(kept)
    text, noise, epsilon = torch.randn(2, 6), torch.randn(2, 5), torch.randn(2, 8)
    small = low(text, noise, epsilon)[0]
    assert second(text, None, epsilon, small)[0].shape == (2, 3, 64, 64)
    # stage one itself is as it was
    a, b = load_file(whole / "model.safetensors"), load_file(kept / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(ValueError, match="stage_one_hash"):
        other = tmp_path / "other"
        train("stackgan", TrainStackGAN, _arguments(shapes_folder, other, "--run.seed", "3", "--run.steps", "1"))
        train(
            "stackgan",
            TrainStackGAN,
            _arguments(
                shapes_folder, tmp_path / "two", *sizes, "--run.steps", "3", "--stage_one", str(other), "--resume"
            ),
        )


def test_stage_one_goes_with_stage_two(shapes_folder, whole, tmp_path, monkeypatch):
    """From its first update on; and with all that is exported of it, in the precision that is asked for."""
    two, finished = tmp_path / "two", tmp_path / "finished"
    sizes = ["--model.stage", "2", "--model.image_size_px", "64", "--run.batch_size", "4", "--stage_one", str(whole)]
    kept = ["--run.steps", "2", "--run.checkpoint_every_minutes", "1e-9", "--run.keep_checkpoints", "2"]

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stackgan, "wrong_rows", stopped)  # of the first update
        with pytest.raises(KeyboardInterrupt):
            train("stackgan", TrainStackGAN, _arguments(shapes_folder, two, *sizes, *kept))
    for name in ("config.yaml", "model.safetensors"):
        assert (two / "stage_one" / name).read_bytes() == (whole / name).read_bytes()
    train("stackgan", TrainStackGAN, _arguments(shapes_folder, two, *sizes, *kept, "--resume"))
    shutil.copytree(two, finished, ignore=shutil.ignore_patterns("checkpoints"))
    first, last = sorted((two / "checkpoints").glob("step-*"))
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for number, (source, dtype) in enumerate(((first, "fp32"), (last, "bf16"), (finished, "bf16"))):
        exported = tmp_path / f"exported-{number}"
        shutil.copytree(whole, exported / "stage_one")  # of an export that was cut off
        (exported / ".dalle-export").touch()
        export([str(source), "--output", str(exported), "--dtype", dtype])
        assert find_gan(exported).image_size_px == 64  # which refuses a stage one that is another
        for folder in (exported, exported / "stage_one"):
            assert load_file(folder / "model.safetensors")["output.weight"].dtype == dtypes[dtype]
    shutil.rmtree(finished / "stage_one")
    with pytest.raises(
        ValueError, match="finished lacks stage_one/, with which its stage II draws: resume its training, or copy"
    ):
        export([str(finished), "--output", str(tmp_path / "none")])


def test_a_collapsed_run_ends_if_it_was_asked_to(shapes_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dalle.stages.adversarial.collapse._FIRST_STEPS", 1)
    monkeypatch.setitem(collapse._SPREADS, "spread", ("images", 1e9))
    arguments = _arguments(shapes_folder, tmp_path / "run", "--run.steps", "20", "--stop_on_collapse")
    with pytest.raises(Hopeless, match="stop_on_collapse: all images are alike since update 2"):
        train("stackgan", TrainStackGAN, arguments)
    assert len(_metrics(tmp_path / "run")) == 4
    assert latest(tmp_path / "run").name.endswith("4")
    assert list((tmp_path / "run" / "pictures").glob("samples-*4.png"))


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--model.stage", "2", "--model.image_size_px", "64"], "model.stage 2: begins with stage one's images"),
        (["--stage_one", "x"], "stage_one x: is for model.stage 2"),
        (["--model.text_width", "7"], "model.text_width 7: text_encoder a6 gives 6 numbers; set model.text_width to 6"),
        (["--class_key", "nothing"], "class_key nothing: .* has no such key in its json"),
        (["--run.zero_stage", "1"], "run.zero_stage 1: two players of a GAN are trained without it; set it to 0"),
        (["--run.wire", "bf16"], "run.wire bf16: two players of a GAN are trained without it; set it to fp32"),
        (["--run.precision", "fp16"], "run.precision fp16"),
        (["--run.recompute"], "run.recompute True"),
        (["--objective.penalty_weight", "2"], "set model.discriminator_norm to none"),
        (["--run.batch_size", "1"], "run.batch_size 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(shapes_folder, tmp_path, more, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        train("stackgan", TrainStackGAN, _arguments(shapes_folder, tmp_path / "out", *more))
    assert len(str(refusal.value).splitlines()) == 1
    assert not (tmp_path / "out").exists() or not (tmp_path / "out" / "model.safetensors").exists()


def test_a_stage_one_that_does_not_fit_is_refused(shapes_folder, whole, tmp_path):
    def refused(complaint, *more):
        with pytest.raises(ValueError, match=complaint) as refusal:
            sizes = ["--model.stage", "2", "--model.image_size_px", "64", *more]
            train("stackgan", TrainStackGAN, _arguments(shapes_folder, tmp_path / "out", *sizes))
        assert len(str(refusal.value).splitlines()) == 1

    refused("was trained with another text encoder", "--stage_one", str(whole), "--text_encoder", "b6")
    refused("takes a quarter of its own side; set it to 64", "--stage_one", str(whole), "--model.image_size_px", "128")
    refused("stage_one: .* holds no trained model", "--stage_one", str(tmp_path))
