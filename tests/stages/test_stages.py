"""What a stage brings to the loop: who looks at held-out data, what CLIP sees of a dVAE."""

import importlib

import pytest
import torch

from dalle.cli import arguments
from dalle.cluster.topology import World
from dalle.config import TrainCLIP, TrainDVAE, TrainPrior
from dalle.models.folder import load_dvae
from dalle.models.likelihood import to_uint8
from dalle.stages.dvae import _check_codebook
from tests.conftest import TINY_CLIP, TINY_DVAE, TINY_PRIOR

CPU = torch.device("cpu")


def _stage(kind: str, models, shapes_folder, world: World, *more: str):
    pairs = ["--data", f"{shapes_folder}/train-*.tar", "--valid_data", f"{shapes_folder}/valid-000.tar"]
    tokens = ["--data", f"{models}/tokens/train", "--valid_data", f"{models}/tokens/valid"]
    inputs = ["--dvae", f"{models}/dvae", "--tokenizer", f"{models}/prior/tokenizer.json"]
    cls, options = {
        "dvae": (TrainDVAE, [*TINY_DVAE, *pairs]),
        "prior": (TrainPrior, [*TINY_PRIOR, *tokens, *inputs]),
        "clip": (TrainCLIP, [*TINY_CLIP, *pairs, *inputs]),
    }[kind]
    config = arguments.parse(cls, "test", [*options, "--run.steps", "1", "--output", "x", *more])
    return importlib.import_module(f"dalle.stages.{kind}").stage(config, world)


@pytest.mark.parametrize("kind", ["dvae", "prior", "clip"])
def test_who_holds_validation_data(models, shapes_folder, kind):
    main, other = (_stage(kind, models, shapes_folder, World(rank, 2, CPU)) for rank in (0, 1))
    assert main.validate and (main.draw or kind == "clip")
    if kind == "prior":  # whose weights may be sharded: all processes validate, and the first alone is asked to draw
        assert other.validate
    else:
        assert other.validate is None and other.draw is None


def test_a_collapse_of_the_codebook_is_said_early_and_not_at_every_line():
    inputs = ["--data", "x", "--output", "x", "--run.steps", "20000", "--run.batch_size", "8"]
    steps = [
        "--optimizer.step_size.start",
        "1e-3",
        "--optimizer.step_size.end",
        "1e-3",
        "--model.codebook_size",
        "1000",
    ]
    check = _check_codebook(arguments.parse(TrainDVAE, "test", [*inputs, *steps]))
    said = {step: bool(check(step, {"perplexity": 1.5})) for step in (50, 100, 150, 200, 250, 300, 350)}
    assert [step for step, told in said.items() if told] == [150, 300]
    (line,) = check(600, {"perplexity": 1.5})
    assert "perplexity 1.5 of 1000 codes" in line and "optimizer.step_size" in line
    assert not check(1900, {"perplexity": 4.0})  # a small share, but early
    assert check(2100, {"perplexity": 4.0})
    assert not check(9000, {"perplexity": 6.0})


def test_held_out_figures_of_a_dvae(models, shapes_folder):
    found = _stage("dvae", models, shapes_folder, World(0, 1, CPU)).validate()
    assert found["elb_gap_nats"] == pytest.approx(found["relaxed_elb"] - found["elb"])
    assert found["elb_gap"] == pytest.approx(found["elb_gap_nats"] / abs(found["elb"]))
    assert {"psnr_db", "bicubic_8x_psnr_db", "codes_used", "perplexity", "kl_per_position_nats"} <= set(found)
    assert 1 <= found["perplexity"] <= found["codes_used"] <= 16


def test_clip_and_dvae_have_to_fit(models, shapes_folder):
    more = ["--model.image_size_px", "36", "--model.patch_px", "12"]
    with pytest.raises(ValueError, match=r"36 px, which is no multiple of 8, the downsampling of the dVAE .*/dvae"):
        _stage("clip", models, shapes_folder, World(0, 1, CPU), *more)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_clip_sees_half_of_its_images_through_the_dvae_in_the_precision_of_the_run(models, shapes_folder, precision):
    stage = _stage("clip", models, shapes_folder, World(0, 1, CPU), "--run.precision", precision)
    batch = next(iter(stage.loader))
    before = batch["images_BCYX"].clone()
    stage.prepare([batch], 0, World(0, 1, CPU))
    dvae = load_dvae(models / "dvae")
    seen = {}
    for name in ("fp32", "bf16"):
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
            seen[name] = to_uint8(dvae.decode(dvae.encode(before[:4])))
    assert not torch.equal(seen["fp32"], seen["bf16"])
    assert torch.equal(batch["images_BCYX"], torch.cat([seen[precision], before[4:]]))
