"""A GAN's or a text encoder's file that is not what its header says: refused in one line, before memory is asked for."""

import json
from dataclasses import asdict

import pytest
import torch

from dalle.config import CharCNNRNNModel, StackGANModel
from dalle.models.folder import load_generator, save_weights
from dalle.models.stackgan.generators import generator
from dalle.models.text_encoders.char_cnn_rnn import LetterEncoder, load_letter_encoder
from tests.models.test_strange_weights import _claim

FIRST = StackGANModel(text_width=6, image_size_px=8, channels=4, noise_width=5, condition_width=6)
SECOND = StackGANModel(stage=2, text_width=6, image_size_px=32, channels=4, condition_width=6, resblocks=1)
LETTERS = CharCNNRNNModel(channels=4, first_widths=(4, 4), embedding_width=6)
KINDS = {
    "first": ("stackgan", FIRST, generator, load_generator),
    "second": ("stackgan", SECOND, generator, load_generator),
    "letters": ("text-encoder", LETTERS, LetterEncoder, load_letter_encoder),
}


def _saved(folder, which):
    kind, config, make, _ = KINDS[which]
    save_weights(folder, kind, make(config).state_dict(), config, {})
    return asdict(config)


@pytest.mark.parametrize("which", KINDS)
def test_what_was_saved_is_loaded(tmp_path, which):
    kind, config, make, load = KINDS[which]
    model = make(config)
    save_weights(tmp_path, kind, model.state_dict(), config, {})
    loaded = load(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("which", "size", "value"),
    [
        ("first", "channels", 10**12),
        ("first", "channels", 8),
        ("first", "image_size_px", 2**40),
        ("first", "biases", 1),
        ("first", "biases", False),
        ("first", "stage", 2),
        ("first", "stage", 3),
        ("first", "dropout", "0"),
        ("second", "resblocks", 10**9),
        ("second", "resblocks", True),
        ("letters", "channels", 10**12),
        ("letters", "first_widths", [4, 10**12]),
        ("letters", "first_widths", [4]),
        ("letters", "recurrent", "lstm"),
        ("letters", "third_pool", None),
        ("letters", "image_width", 7),
    ],
)
def test_sizes_that_only_the_header_has_are_refused(tmp_path, which, size, value):
    config = _saved(tmp_path, which)
    _claim(tmp_path, config=json.dumps({**config, size: value}))
    with pytest.raises(ValueError) as raised:
        KINDS[which][3](tmp_path)
    assert type(raised.value) is ValueError and "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)
