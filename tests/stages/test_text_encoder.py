"""The training of a char-CNN-RNN: batches of different classes, features of the right images, a folder that others open."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dalle.cli import arguments
from dalle.cli.export import export
from dalle.cli.train import train
from dalle.cluster.topology import World
from dalle.config import CharCNNRNNModel, CLIPModel, TrainTextEncoder
from dalle.data.counts import Counts
from dalle.models.clip import CLIP
from dalle.models.folder import read_header, save_weights
from dalle.models.text_encoders import open_text_encoder
from dalle.models.text_encoders.char_cnn_rnn import ALPHABET
from dalle.stages import text_encoder as stages
from dalle.stages.text_encoder import ClassBatches, Classes, held_out_retrieval, read_classes, stage
from dalle.text import Tokenizer
from tests.data.pictures import encoded, flat, write_shard
from tests.evaluation.tiny_features import TinyFeatures

CPU = torch.device("cpu")
COLOURS = {
    "red": (220, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 220), "yellow": (220, 220, 0), "cyan": (0, 220, 220),
    "magenta": (220, 0, 220), "black": (0, 0, 0), "white": (255, 255, 255),
}  # fmt: skip
TINY = [
    *(
        "--model.channels",
        "16",
        "--model.first_widths",
        "[16,16]",
        "--model.embedding_width",
        "8",
        "--class_key",
        "name",
    ),
    *(
        "--model.caption_chars",
        "100",
        "--optimizer.method",
        "rmsprop",
        "--optimizer.beta1",
        "0",
        "--optimizer.beta2",
        "0.99",
    ),
    *("--optimizer.weight_decay", "0", "--optimizer.step_size.start", "3e-3", "--optimizer.step_size.end", "3e-4"),
    *("--optimizer.step_size.end_step", "100%", "--optimizer.step_size.shape", "exponential"),
    *("--run.batch_size", "8", "--run.precision", "fp32", "--run.ema_decay", "null", "--run.log_every_steps", "1"),
    *("--run.validate_every_steps", "0", "--run.checkpoint_every_minutes", "0", "--run.loader_workers", "0"),
]


def _shard(path: Path, shades: range) -> Path:
    """Of each colour a picture in each shade, with two captions that tell it."""
    samples = []
    for shade, (name, colour) in itertools.product(shades, COLOURS.items()):
        picture = flat(tuple(max(0, c - 4 * shade) for c in colour))
        about = {"name": name, "captions": [f"a {name} picture, shade {shade}", f"all of it is {name} as {shade}"]}
        samples.append({"png": encoded(picture), "json": json.dumps(about).encode()})
    write_shard(path, samples)
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    _shard(folder / "train.tar", range(3))
    _shard(folder / "valid.tar", range(3, 4))
    return folder


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(stages, "features", lambda spec, device: TinyFeatures())


def _config(shards: Path, *more: str) -> TrainTextEncoder:
    options = [*TINY, "--data", f"{shards}/train.tar", "--output", "x", "--run.steps", "4", *more]
    return arguments.parse(TrainTextEncoder, "test", options)


def _world(rank: int = 0, size: int = 1) -> World:
    return World(rank, size, CPU)


def _metrics(folder: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_features_captions_and_classes_are_those_of_one_sample(shards):
    network, counts = TinyFeatures(), Counts()
    found = read_classes(_config(shards), f"{shards}/train.tar", network, counts)
    assert found.names == sorted(COLOURS) and counts.read == 24 == len(found.captions) and counts.num_broken == 0
    for number, captions in enumerate(found.captions):
        name, shade = found.names[found.classes_N[number]], number // 8
        assert captions == [f"a {name} picture, shade {shade}", f"all of it is {name} as {shade}"]
        colour = np.uint8([max(0, c - 4 * shade) for c in COLOURS[name]])
        expected = network(np.broadcast_to(colour, (1, 224, 224, 3))).features_BE[0]
        np.testing.assert_allclose(found.features_NE[number], expected, rtol=1e-5)


def test_many_images_are_seen_a_few_at_a_time(shards, monkeypatch):
    network, sizes = TinyFeatures(), []
    whole = read_classes(_config(shards), f"{shards}/train.tar", network, Counts())
    monkeypatch.setattr(stages, "_TOGETHER", 7)

    def counted(images):
        sizes.append(len(images))
        return network(images)

    counted.width = network.width
    parts = read_classes(_config(shards), f"{shards}/train.tar", counted, Counts())
    assert sizes == [7, 7, 7, 3] and np.array_equal(parts.features_NE, whole.features_NE)


def test_a_batch_is_of_different_classes_with_an_image_and_a_caption_of_each(shards):
    config = _config(shards, "--run.batch_size", "5")
    data = read_classes(config, f"{shards}/train.tar", TinyFeatures(), Counts())
    batches = ClassBatches(data, config, _world())
    times, images, orders = np.zeros(8), set(), set()
    for number in range(300):
        images_B, captions = batches.draw(number)
        classes = [data.names[data.classes_N[image]] for image in images_B]
        assert len(set(classes)) == 5
        for image, caption, name in zip(images_B, captions, classes, strict=True):
            assert caption in data.captions[image] and name in caption
            images.add((int(image), caption))
        times[data.classes_N[images_B]] += 1
        orders.add(tuple(classes))
    assert len(images) == 48 and len(orders) > 250
    # 5 of 8 in each: 187.5 of 300, with a standard deviation of 8.4; of 8 classes one is beyond 4.5 of them once in 18,000
    assert abs(times - 187.5).max() < 38
    found = next(iter(batches))
    assert found["letters_BU"].shape == (5, 100) and found["image_features_BE"].shape == (5, 6)
    images_B, captions = batches.draw(0)
    assert np.array_equal(found["image_features_BE"].numpy(), data.features_NE[images_B])
    assert "".join(ALPHABET[i] for i in found["letters_BU"][0] if i >= 0) == captions[0]


def test_processes_share_a_batch_and_a_resumed_run_goes_on(shards):
    config = _config(shards)
    data = read_classes(config, f"{shards}/train.tar", TinyFeatures(), Counts())

    def taken(rank, size, count, state=None):
        batches = ClassBatches(data, config, _world(rank, size))
        if state:
            batches.load_state_dict(state)
        found = [batch["image_features_BE"] for batch in itertools.islice(batches, count)]
        return found, batches.state_dict()

    whole, _ = taken(0, 1, 6)
    assert not torch.equal(whole[0], whole[1])
    (first, state), (second, _) = taken(0, 2, 6), taken(1, 2, 6)
    assert all(
        torch.equal(torch.cat(pair), one) for pair, one in zip(zip(first, second, strict=True), whole, strict=True)
    )
    _, state = taken(0, 1, 2)
    after, _ = taken(0, 1, 4, json.loads(json.dumps(state)))
    assert all(torch.equal(a, b) for a, b in zip(after, whole[2:], strict=True))
    with pytest.raises(ValueError, match="number of images 24: the checkpoint was written with 23"):
        taken(0, 1, 1, state | {"number of images": 23})
    other = ClassBatches(data, _config(shards, "--run.seed", "1"), _world())
    assert not torch.equal(next(iter(other))["image_features_BE"], whole[0])


def _train(shards: Path, output: Path, *more: str) -> None:
    data = ["--data", f"{shards}/train.tar", "--valid_data", f"{shards}/valid.tar", "--output", str(output)]
    train("text-encoder", TrainTextEncoder, [*TINY, *data, *more])


def test_it_learns_which_caption_is_of_which_class(shards, tiny, tmp_path, capfd):
    faster = ["--optimizer.step_size.start", "5e-3", "--optimizer.step_size.end", "1e-3"]
    wider = ["--model.channels", "32", "--model.embedding_width", "32"]
    _train(shards, tmp_path / "chars", "--run.steps", "150", "--run.log_every_steps", "10", *faster, *wider)
    losses = _metrics(tmp_path / "chars")
    assert losses[0] > 1.5  # both ways about 7/8 of the pairs lack a margin of 1
    assert losses[-1] < 0.2
    # held-out shades: by chance 1 in 8
    assert _metrics(tmp_path / "chars", "valid/caption_to_image_r1")[-1] >= 0.75
    assert "24 images of 8 classes, as tiny sees them" in capfd.readouterr().err
    header = read_header(tmp_path / "chars")
    assert header["kind"] == "text-encoder" and header["image_features_hash"] == "0" * 64
    assert (header["image_features"], header["class_key"]) == ("tiny", "name")
    assert json.loads(header["config"])["image_width"] == 6
    encoder = open_text_encoder(f"chars:{tmp_path}/chars")
    texts_BE = encoder.encode([f"a {name} picture, shade 3" for name in COLOURS])
    assert encoder.width == 32 and texts_BE.shape == (8, 32)
    # what is exported of its checkpoint is the same encoder
    export([str(tmp_path / "chars"), "--output", str(tmp_path / "exported")])
    assert open_text_encoder(f"chars:{tmp_path}/exported").hash == encoder.hash


def test_resumed_is_uninterrupted(shards, tiny, tmp_path):
    _train(shards, tmp_path / "whole", "--run.steps", "6", "--optimizer.step_size.end_step", "6")
    _train(shards, tmp_path / "parts", "--run.steps", "2", "--optimizer.step_size.end_step", "6")
    (tmp_path / "parts/model.safetensors").unlink()
    _train(shards, tmp_path / "parts", "--run.steps", "6", "--resume")
    assert _metrics(tmp_path / "parts") == _metrics(tmp_path / "whole") and len(_metrics(tmp_path / "whole")) == 6
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    adam = ["--optimizer.method", "adamw", "--run.steps", "8", "--resume"]
    with pytest.raises(ValueError, match='was made with optimizer "RMSprop", not "AdamW"'):
        _train(shards, tmp_path / "parts", *adam)


def test_the_features_of_a_clip_of_as_many_numbers_are_taken_as_they_are(shards, tmp_path):
    torch.manual_seed(0)
    sizes = CLIPModel(
        image_size_px=16, patch_px=8, vision_width=64, vision_layers=1, text_width=64, text_layers=1, text_slots=8,
        embedding_width=8,
    )  # fmt: skip
    tokenizer = Tokenizer.train(["a red circle"], vocabulary=260)
    clip = CLIP(sizes, tokenizer).eval()
    save_weights(tmp_path / "clip", "clip", clip.state_dict(), sizes, {"tokenizer_hash": tokenizer.hash})
    tokenizer.save(tmp_path / "clip/tokenizer.json")
    made = stage(_config(shards, "--features", f"clip:{tmp_path}/clip"), _world())
    assert made.model_config.image_width is None
    batch = next(iter(made.loader))
    assert made.objective.model.embed_images(batch["image_features_BE"]) is batch["image_features_BE"]
    assert batch["image_features_BE"].norm(dim=1) == pytest.approx(torch.ones(8).numpy(), abs=1e-5)
    assert made.links["image_features_hash"] == read_header(tmp_path / "clip")["hash"]


class _Known:
    """Whose vectors are told by the class of a picture, and the number in a caption."""

    config = CharCNNRNNModel(caption_chars=100)

    def embed_images(self, features_BE):
        return features_BE

    def embed_texts(self, letters_BU):
        return torch.eye(3)[letters_BU[:, 0]]


def test_an_image_of_the_same_class_is_right_as_well(monkeypatch):
    monkeypatch.setattr(stages, "_READ_TOGETHER", 4)
    classes = np.array([0, 1, 2, 0, 1, 0, 2])
    data = Classes(
        np.eye(3, dtype=np.float32)[classes], [["abc"[n], "unread"] for n in classes], classes, ["x", "y", "z"]
    )
    found = held_out_retrieval(_Known(), data, _world())
    assert found["image_to_caption_r1"] == found["caption_to_image_r1"] == 1 and found["candidates"] == 7
    # a caption that tells another class finds no image of its own
    wrong = Classes(data.features_NE, [["b"], *data.captions[1:]], classes, data.names)
    assert held_out_retrieval(_Known(), wrong, _world())["caption_to_image_r1"] == pytest.approx(6 / 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run.batch_size", "9"], r"run\.batch_size 9: .* the data has 8 by class_key name; set it to 8 or less"),
        (["--class_key", "species"], r"20 of 20 .*no class: its json has nothing under class_key species"),
        (["--model.image_width", "5"], r"model\.image_width 5: tiny has 6 numbers"),
    ],
)
def test_data_that_make_no_batch_are_refused(shards, tiny, options, message):
    with pytest.raises(ValueError, match=message) as refused:
        stage(_config(shards, *options), _world())
    assert "\n" not in str(refused.value)


def _coloured(folder: Path, colours: list[str]) -> Path:
    picture = encoded(flat(COLOURS["red"]))
    named = [{"name": name, "captions": [f"a {name} picture"]} for name in colours]
    write_shard(folder / "train.tar", [{"png": picture, "json": json.dumps(about).encode()} for about in named])
    return folder


def test_data_of_one_class_are_refused(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"class_key name: all of .*train\.tar is of one class, .* name another key$"):
        stage(_config(_coloured(tmp_path, ["red", "red"])), _world())


def test_a_class_with_one_image_is_told(tmp_path, tiny):
    folder = _coloured(tmp_path, ["red", "red", "blue", "blue", "green"])
    told = r"class_key name: 1 of 3 classes have one image, such as 'green'"
    with pytest.warns(UserWarning, match=told):
        stage(_config(folder, "--run.batch_size", "3"), _world())


def test_classes_of_two_images_are_as_good_as_any(tmp_path, tiny, recwarn):
    stage(_config(_coloured(tmp_path, ["red", "red", "blue", "blue"]), "--run.batch_size", "2"), _world())
    assert not [each for each in recwarn if "one image" in str(each.message)]


def test_features_that_are_not_there_are_refused(shards):
    with pytest.raises(ValueError, match=r"^features 'vgg': no such network"):
        stage(_config(shards, "--features", "vgg"), _world())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run.accumulation_steps", "2"], r"run\.accumulation_steps 2: .*set it to 1"),
        (["--run.batch_size", "1"], r"run\.batch_size 1"),
        (["--run.zero_stage", "3"], r"run\.zero_stage 3: is for the prior alone"),
        (["--run.precision", "fp16"], r"run\.precision fp16"),
        (["--images.augmentation", "dvae"], r"images\.augmentation dvae"),
        (["--optimizer.method", "adamw", "--optimizer.muon_step_size_factor", "10"], "Muon is for the matrices"),
        (["--optimizer.weight_decay", "0.1"], r"weight_decay 0\.1 with method rmsprop, which has none: set it to 0"),
        (["--optimizer.beta1", "0.9"], r"beta1 0\.9 with method rmsprop"),
        (["--optimizer.variance_limit", "5"], r"variance_limit 5\.0 with method rmsprop.* to null"),
    ],
)
def test_settings_that_make_no_training_are_refused(shards, options, message):
    with pytest.raises(ValueError, match=message):
        _config(shards, *options)
