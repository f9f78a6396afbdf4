"""configs/gpu: what their headers and docs/training.md say of memory, counted on tensors without any: forward and backward pass in
bf16, and 20 bytes a weight beside it."""

import json
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dalle.cli import arguments
from dalle.cli.planning.command import plan
from dalle.config import TrainCLIP, TrainDVAE
from dalle.models.clip import CLIP
from dalle.models.dvae import DVAE
from dalle.models.likelihood import to_uint8
from dalle.objectives.dvae import DVAEObjective
from dalle.planning.meter import Meter
from dalle.text import Tokenizer
from tests.conftest import ROOT

STATE_BYTES = 20
"""Of a weight: itself, its gradient, two moments, its average."""


def _settings(cls, name):
    return arguments.parse(cls, "test", ["--config", name, "--data", "x", "--output", "x"])


def _dvae_bytes(config, images):
    """Of a forward and backward pass."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective = DVAEObjective(DVAE(config))
        noise = torch.rand(images, config.grid, config.grid, config.codebook_size)
        batch = {"images_BCYX": _images(images, config.image_size_px), "uniform_BYXK": noise}
        batch |= {name: torch.tensor(1.0) for name in ("temperature", "kl_weight", "noise_scale")}
        del noise
        with Meter([*objective.parameters(), *objective.buffers(), *batch.values()]) as meter:
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = objective(batch)
            loss.backward()
    return meter.peak


def _images(count, size_px):
    return torch.zeros(count, 3, size_px, size_px, dtype=torch.uint8)


def _redrawn_bytes(config, images):
    """Of images that are seen through the dVAE."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        dvae, images_BCYX = DVAE(config).eval(), _images(images, config.image_size_px)
        known = [*dvae.parameters(), *dvae.buffers(), images_BCYX]
        with Meter(known) as meter, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            to_uint8(dvae.decode(dvae.encode(images_BCYX)))
    return meter.peak


def _clip_bytes(config, tokenizer, pairs):
    """Of a forward and backward pass with attention in plain products: a GPU's fused kernel keeps less."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = CLIP(config, tokenizer)
        images_BCYX, tokens_BU = (
            _images(pairs, config.image_size_px),
            torch.zeros(pairs, config.text_slots, dtype=torch.long),
        )
        with Meter([*model.parameters(), *model.buffers(), images_BCYX, tokens_BU]) as meter:
            with torch.autocast("cpu", torch.bfloat16):
                scores_BB = model.embed_images(images_BCYX) @ model.embed_texts(tokens_BU).T
            scores_BB.sum().backward()
    return meter.peak


def _told_gb(name):
    return float(re.search(r"By count ([\d.]+) GB", (ROOT / f"configs/{name}.yaml").read_text())[1])


def _grown(count, many, few=1):
    """Bytes of so many samples, on the line through a few and three times as many."""
    less, more = count(few), count(3 * few)
    return less + (more - less) / (2 * few) * (many - few)


@pytest.mark.parametrize("name", ["gpu/dvae-128", "gpu/dvae-256"])
def test_a_dvae_takes_what_its_header_says(name):
    config = _settings(TrainDVAE, name)
    with torch.device("meta"):
        weights = sum(p.numel() for p in DVAE(config.model).parameters())
    activations = _grown(lambda images: _dvae_bytes(config.model, images), config.run.micro_batch_size(1))
    found = (activations + STATE_BYTES * weights) / 1e9
    assert found == pytest.approx(_told_gb(name), abs=0.6)


def test_the_papers_dvae_takes_what_the_page_says():
    config = _settings(TrainDVAE, "paper/dvae").model
    one, three = _dvae_bytes(config, 1), _dvae_bytes(config, 3)
    assert (three - one) / 2e9 == pytest.approx(0.93, abs=0.01)


@pytest.mark.parametrize(
    ("name", "through", "redrawn"), [("gpu/clip-128", "gpu/dvae-128", 7), ("gpu/clip-256", "gpu/dvae-256", 14)]
)
def test_a_reranker_takes_what_its_header_says(name, through, redrawn):
    config, dvae = _settings(TrainCLIP, name), _settings(TrainDVAE, through).model
    tokenizer = Tokenizer.train(["a red circle on a blue square"], 300)
    with torch.device("meta"):
        weights = sum(p.numel() for p in CLIP(config.model, tokenizer).parameters()) + 16_384 * config.model.text_width
    found = (
        _grown(lambda pairs: _clip_bytes(config.model, tokenizer, pairs), config.run.batch_size, few=16)
        + STATE_BYTES * weights
    ) / 1e9
    half = _grown(lambda images: _redrawn_bytes(dvae, images), config.run.batch_size // 2) / 1e9
    assert found == pytest.approx(_told_gb(name), abs=0.6)
    assert half == pytest.approx(redrawn, abs=0.6)


def test_the_page_has_these_figures(capsys):
    """docs/training.md: of the priors by `dalle-plan`, of the others by their headers."""
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"`((?:gpu|prior)/[\w-]+)`: ([\d.]+)", page))
    assert len(told) == 6
    for name, figure in told.items():
        if "/clip" in name or "/dvae" in name:
            assert _told_gb(name) == float(figure)
        else:
            plan(["--config", name, "--memory", "24", "--json"])
            assert round(json.loads(capsys.readouterr().out)["peak_bytes"] / 1e9) == int(figure)
