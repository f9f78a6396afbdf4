"""Small data and small models, made once a session."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.errors.recording import pytest_configure, pytest_sessionfinish, pytest_terminal_summary  # noqa: F401

os.environ.setdefault("WANDB_MODE", "offline")

ROOT = Path(__file__).parents[1]

TINY_DVAE = [
    *("--model.image_size_px", "32", "--model.codebook_size", "16", "--model.encoder_width", "8"),
    *("--model.width_multipliers", "[1,2,2,2]", "--model.blocks_per_group", "1", "--model.decoder_input_width", "8"),
    *("--model.init", "he", "--model.logit_norm_gain", "3", "--model.min_ln_b", "-1", "--model.post_gain", "0.5"),
    *("--optimizer.step_size.start", "1e-3", "--optimizer.step_size.end", "1e-3"),
    *("--run.batch_size", "8", "--run.precision", "fp32", "--run.loader_workers", "0", "--run.log_every_steps", "1"),
    *("--run.checkpoint_every_minutes", "0", "--images.augmentation", "none"),
]
TINY_PRIOR = [
    *("--model.text_slots", "24", "--model.grid", "4", "--model.text_vocabulary", "300", "--model.codebook_size", "16"),
    *("--model.width", "32", "--model.depth", "4", "--model.heads", "2", "--model.conv_kernel", "3"),
    *("--optimizer.step_size.start", "1e-3", "--optimizer.step_size.end", "1e-3", "--optimizer.clip_norm", "4"),
    *("--run.batch_size", "8", "--run.precision", "fp32", "--run.loader_workers", "0", "--run.log_every_steps", "1"),
    *("--run.checkpoint_every_minutes", "0"),
]
TINY_CLIP = [
    *(
        "--model.image_size_px",
        "32",
        "--model.patch_px",
        "8",
        "--model.vision_width",
        "64",
        "--model.vision_layers",
        "1",
    ),
    *(
        "--model.text_width",
        "64",
        "--model.text_layers",
        "1",
        "--model.text_slots",
        "24",
        "--model.embedding_width",
        "16",
    ),
    *("--optimizer.step_size.start", "1e-3", "--optimizer.step_size.end", "1e-3"),
    *("--run.batch_size", "8", "--run.precision", "fp32", "--run.loader_workers", "0", "--run.log_every_steps", "1"),
    *("--run.checkpoint_every_minutes", "0", "--images.augmentation", "none"),
]


def pytest_collection_modifyitems(items) -> None:
    """Tests marked `gpu` need one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def _pytorch_s_own_linear():
    """Where a model is sharded DeepSpeed puts another one in its place, for good: what runs after it would keep other tensors."""
    plain = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = plain


@pytest.fixture(scope="session", autouse=True)
def _one_process_group():
    """DeepSpeed remembers the first process group of a process, so all trainings of the session share one."""
    from dalle.cluster.topology import joined

    with joined():
        yield


@contextmanager
def threads(count: int):
    """Within the block PyTorch computes on so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def two_threads():
    """As commands run, where tests run on one: what several threads share shows."""
    with threads(2):
        yield


@pytest.fixture
def waited_for(monkeypatch) -> list[torch.Size]:
    """Becomes the shapes of tensors whose copies to "cuda" this process would wait for: those of memory that is not pinned. No GPU
    is needed, for the copies stay on the CPU."""
    to, pinned, shapes = torch.Tensor.to, [], []

    def pin_memory(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    def copied(tensor, *given, **more):
        if given[:1] != (torch.device("cuda"),):
            return to(tensor, *given, **more)
        if not more.get("non_blocking") or not any(tensor is each for each in pinned):
            shapes.append(tensor.shape)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", copied)
    return shapes


def clean_environment() -> dict[str, str]:
    """The environment without this process's place in its process group, for commands run as users run them."""
    taken = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in taken}


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory) -> Path:
    """Drawn shards: 64 for training in two tars, 24 for validation, 32 px."""
    from dalle.data.shapes import write_shards

    folder = tmp_path_factory.mktemp("shapes")
    write_shards(folder, num_train=64, num_valid=24, size_px=32, seed=0, num_workers=1, shard_size=32)
    return folder


@pytest.fixture(scope="session")
def tokenizer_file(shapes_folder, tmp_path_factory) -> Path:
    """A BPE vocabulary of the drawn captions, at most 300 tokens."""
    from dalle.cli.data.train_tokenizer import train_tokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["--data", f"{shapes_folder}/train-*.tar", "--output", str(path), "--vocabulary", "300"])
    return path


@pytest.fixture(scope="session")
def models(shapes_folder, tokenizer_file, tmp_path_factory) -> Path:
    """A folder with a dVAE, a prior and a CLIP, each trained for a few updates by its command; tokens beside them."""
    from dalle.cli.data.tokenize import tokenize
    from dalle.cli.train import train
    from dalle.config import TrainCLIP, TrainDVAE, TrainPrior

    folder = tmp_path_factory.mktemp("models")
    data, valid = f"{shapes_folder}/train-*.tar", f"{shapes_folder}/valid-000.tar"
    train("dvae", TrainDVAE, [*TINY_DVAE, "--run.steps", "6", "--data", data, "--output", f"{folder}/dvae"])
    for name, shards in (("train", data), ("valid", valid)):
        tokenize(["--data", shards, "--dvae", f"{folder}/dvae", "--output", f"{folder}/tokens/{name}"])
    inputs = ["--dvae", f"{folder}/dvae", "--tokenizer", str(tokenizer_file)]
    tokens = ["--data", f"{folder}/tokens/train"]
    tuned = ["--caption_dropout", "0.1", "--sampling_temperature", "0.9"]
    train(
        "prior", TrainPrior, [*TINY_PRIOR, *tuned, "--run.steps", "6", *tokens, *inputs, "--output", f"{folder}/prior"]
    )
    train("clip", TrainCLIP, [*TINY_CLIP, "--run.steps", "4", "--data", data, *inputs, "--output", f"{folder}/clip"])
    return folder


@pytest.fixture(scope="session")
def codes_clip(models, tmp_path_factory) -> Path:
    """A reader of the codes of `models`' dVAE, untrained."""
    from dalle.config import CLIPModel
    from dalle.models.clip import CLIP
    from dalle.models.folder import read_header, save_weights
    from dalle.text import Tokenizer

    folder = tmp_path_factory.mktemp("readers") / "codes-clip"
    tokenizer = Tokenizer.load(models / "prior/tokenizer.json")
    config = CLIPModel(
        reads="codes", image_size_px=4, patch_px=2, codebook_size=16, vision_width=64, vision_layers=1, text_width=64,
        text_layers=1, text_slots=24, embedding_width=16,
    )  # fmt: skip
    torch.manual_seed(7)
    links = {"dvae_hash": read_header(models / "dvae")["hash"], "tokenizer_hash": tokenizer.hash}
    save_weights(folder, "clip", CLIP(config, tokenizer).state_dict(), config, links)
    (folder / "tokenizer.json").write_bytes((models / "prior/tokenizer.json").read_bytes())
    return folder
