"""A hub, ready models and tiny models of the kind that are given away."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dalle.config import CLIPModel, DVAEModel, PriorModel
from dalle.models.clip import CLIP
from dalle.models.dvae import DVAE
from dalle.models.folder import save_weights
from dalle.models.prior import Prior
from dalle.text import Tokenizer
from tests.ready import stand_in_hub

CONFIG = """\
data: /home/secret/shards/icons/train-{000..006}.tar /home/secret/more/train-000.tar
output: /home/secret/runs/mine
valid_data: https://user:secret@host.org/valid-000.tar?key=secret
tokenizer: relative/tokenizer.json
optimizer: {step_size: {start: 0.001}}
run: {steps: 600, batch_size: 128, wandb: {enabled: false, project: dalle}}
caption_dropout: 0.1
"""
METRICS = """\
{"step": 300, "time_s": 1800.0, "loss": 2.5}
{"step": 300, "time_s": 1801.0, "valid/loss": 2.25}
{"step": 600, "warning": "a caption was cut"}
{"step": 600, "time_s": 3600.0, "valid/loss": 1.125}
{"step": 601, "time_s":"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in that the Hub's library takes for the Hub, with a cache of its own, for somebody who is logged in."""
    from huggingface_hub import constants

    with stand_in_hub.running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", stand_in_hub.TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield running


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A whole model without any training, and what trainings leave beside one."""
    folder = tmp_path_factory.mktemp("made")
    captions = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "square", "cross")]
    tokenizer = Tokenizer.train(captions, 270)
    torch.manual_seed(3)
    sizes = {
        "dvae": DVAEModel(
            image_size_px=32, codebook_size=16, encoder_width=8, width_multipliers=(1, 2, 2, 2), blocks_per_group=1,
            decoder_input_width=8,
        ),
        "prior": PriorModel(
            text_slots=24, grid=4, text_vocabulary=300, codebook_size=16, width=32, depth=2, heads=2, conv_kernel=3
        ),
        "clip": CLIPModel(
            image_size_px=32, patch_px=8, vision_width=64, vision_layers=1, text_width=64, text_layers=1, text_slots=24,
            embedding_width=16,
        ),
    }  # fmt: skip
    nets = {"dvae": DVAE(sizes["dvae"]), "prior": Prior(sizes["prior"]), "clip": CLIP(sizes["clip"], tokenizer)}
    with torch.no_grad():
        for parameter in nets["prior"].parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # so that it is not indifferent to what it draws
    links: dict[str, str] = {}
    for part, net in nets.items():
        facts = {"caption_dropout": "0.1", "sampling_temperature": "0.9"} if part == "prior" else {}
        digest = save_weights(folder / part, part, net.state_dict(), sizes[part], {**links, **facts})
        links = links or {"dvae_hash": digest, "tokenizer_hash": tokenizer.hash}
        if part != "dvae":
            tokenizer.save(folder / part / "tokenizer.json")
        (folder / part / "config.yaml").write_text(CONFIG)
        (folder / part / "metrics.jsonl").write_text(METRICS)
        (folder / part / "run.json").write_text('{"status": "finished", "wandb_id": "secret"}')
        (folder / part / "report.html").write_text("a report")
    return folder


@pytest.fixture
def whole(made, tmp_path) -> Path:
    """A copy of it, with checkpoints and whence its images are."""
    folder = tmp_path / "mine"
    shutil.copytree(made, folder)
    (folder / "prior/checkpoints").mkdir()
    (folder / "prior/checkpoints/optimizer.bin").write_bytes(b"much")
    (folder / "ATTRIBUTION.md").write_text(
        "# Images that the weights were trained on\n\n- Drawn scenes: 64 images, MIT\n"
    )
    return folder


@pytest.fixture
def ready(whole, tmp_path, monkeypatch) -> Path:
    """A folder of ready models in place of the package's, with one of the name `tiny`."""
    folder = tmp_path / "weights"
    shutil.copytree(whole, folder / "tiny", ignore=shutil.ignore_patterns("checkpoints", "ATTRIBUTION.md"))
    (folder / "tiny/README.md").write_text(
        "---\nlicense: mit\nwidget:\n- text: a red circle\n---\n# tiny\n\nCircles, mostly\nred ones.\n\nMore of it.\n"
    )
    (folder / "no model").mkdir()
    monkeypatch.setattr("dalle.ready.names.weights_folder", lambda: folder)
    monkeypatch.setattr("dalle.ready.facts.weights_folder", lambda: folder)
    return folder
