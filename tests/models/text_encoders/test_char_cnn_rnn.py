"""The char-CNN-RNN against loops over the published formulas, its sizes against the published ones."""

import numpy as np
import pytest
import torch

from dalle.config import CharCNNRNNModel
from dalle.models.folder import save_weights
from dalle.models.text_encoders import open_text_encoder
from dalle.models.text_encoders.char_cnn_rnn import (
    ALPHABET,
    CharCNNRNN,
    LetterEncoder,
    letters,
    load_letter_encoder,
)

CVPR = CharCNNRNNModel()
FLOWERS = CharCNNRNNModel(channels=512)
BIRDS = CharCNNRNNModel(channels=512, third_pool=False, recurrent="gru")
SMALL = {"channels": 6, "first_widths": (5, 7), "embedding_width": 3, "caption_chars": 130}
CAPTIONS = ["A red-bellied bird; 3 (three) wings!", "é\nß b", "", "a" * 200]


@pytest.mark.parametrize(
    ("config", "parameters", "steps"), [(CVPR, 1_814_144, 8), (FLOWERS, 2_994_560, 8), (BIRDS, 4_045_184, 18)]
)
def test_published_sizes(config, parameters, steps):
    with torch.device("meta"):
        model = CharCNNRNN(config)
        inputs = torch.zeros(2, 201, dtype=torch.int64)
        states_BCS = model.convolutions(torch.nn.functional.one_hot(inputs, 70).float().mT)
        assert model(inputs).shape == (2, 1024)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert states_BCS.shape == (2, config.channels, steps) and config.steps == steps


def test_the_alphabet_has_seventy_entries_of_which_the_later_dash_counts():
    assert len(ALPHABET) == 70 and ALPHABET.count("-") == 2 and ALPHABET[-1] == " "
    assert ALPHABET.replace("-", "") == "abcdefghijklmnopqrstuvwxyz0123456789,;.!?:'\"/\\|_@#$%^&*~`+=<>()[]{} "
    found = letters(["aZ-", "é b", "", "0123"], 3)
    assert found.tolist() == [[0, 25, 59], [-1, 69, 1], [-1, -1, -1], [26, 27, 28]]
    assert ALPHABET.find("-") == 36 and ALPHABET[59] == "-"


def _reference(model: CharCNNRNN, caption: str) -> np.ndarray:
    """Reed et al., with one loop for each sum, in fp64."""
    config = model.config
    weights = {name: p.detach().numpy().astype(np.float64) for name, p in model.named_parameters()}
    columns = np.zeros((70, config.caption_chars))
    for place, letter in enumerate(caption.lower()):
        if place < config.caption_chars and letter in ALPHABET:
            columns[ALPHABET.rindex(letter), place] = 1
    for number, step in zip((0, 3, 6), (3, 3, 2 if config.third_pool else 0), strict=True):
        kernel, bias = weights[f"convolutions.{number}.weight"], weights[f"convolutions.{number}.bias"]
        made = np.zeros((len(bias), columns.shape[1] - 3))
        for place in range(made.shape[1]):
            for offset in range(4):
                made[:, place] += kernel[:, :, offset] @ columns[:, place + offset]
        made += bias[:, None]
        made[made <= 1e-6] = 0
        if step:
            starts = range(0, made.shape[1] - 2, step)
            made = np.stack([made[:, start : start + 3].max(axis=1) for start in starts], axis=1)
        columns = made

    def linear(name, x):
        return weights[f"recurrence.{name}.weight"] @ x + weights[f"recurrence.{name}.bias"]

    hidden = []
    for x in columns.T:
        if config.recurrent == "rnn":
            h = linear("i2h", x) + (linear("h2h", hidden[-1]) if hidden else 0)
            hidden.append(np.maximum(h, 0))
        elif not hidden:
            hidden.append(np.tanh(linear("i2h", x)))
        else:
            before = hidden[-1]
            update = 1 / (1 + np.exp(-linear("i2h_update", x) - linear("h2h_update", before)))
            reset = 1 / (1 + np.exp(-linear("i2h_reset", x) - linear("h2h_reset", before)))
            candidate = np.tanh(linear("i2h", x) + linear("h2h", reset * before))
            hidden.append(update * candidate + (1 - update) * before)
    return weights["output.weight"] @ (sum(hidden) / len(hidden)) + weights["output.bias"]


@pytest.mark.parametrize("kind", [{}, {"third_pool": False}, {"recurrent": "gru"}], ids=str)
def test_it_is_the_published_network(kind):
    torch.manual_seed(0)
    model = CharCNNRNN(CharCNNRNNModel(**SMALL, **kind))
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.6, 0.6)  # so that gates open and shut
    with torch.no_grad():
        found_BE = model(letters(CAPTIONS, 130)).numpy()
    expected_BE = np.stack([_reference(model, caption) for caption in CAPTIONS])
    # fp32 against fp64 over sums of some hundred terms, and captions differ by fifty times that
    np.testing.assert_allclose(found_BE, expected_BE, atol=2e-5)
    assert min(np.abs(a - b).max() for i, a in enumerate(expected_BE) for b in expected_BE[:i]) > 1e-3


def test_an_activation_is_zero_up_to_a_millionth():
    model = CharCNNRNN(CharCNNRNNModel(**SMALL))
    for least, expected in ((5e-7, 0.0), (2e-6, 2e-6)):
        for parameter in model.convolutions.parameters():
            torch.nn.init.constant_(parameter, least if parameter.ndim == 1 else 0.0)
        states = model.convolutions(torch.zeros(1, 70, 130))
        torch.testing.assert_close(states, torch.full_like(states, expected), rtol=0, atol=0)


def test_it_begins_as_published():
    torch.manual_seed(0)
    model = LetterEncoder(CharCNNRNNModel(image_width=1280))
    for name, parameter in model.named_parameters():
        extreme = parameter.detach().abs().max()
        # of so many uniform numbers the largest is near the end
        assert 0.07 < extreme <= 0.08, name
        assert abs(parameter.detach().mean()) < 0.02, name


def test_a_folder_is_the_encoder_that_was_saved(tmp_path):
    torch.manual_seed(0)
    config = CharCNNRNNModel(**SMALL, image_width=4)
    model = LetterEncoder(config)
    save_weights(tmp_path / "chars", "text-encoder", model.state_dict(), config, {})
    encoder = open_text_encoder(f"chars:{tmp_path}/chars")
    with torch.no_grad():
        expected_BE = model.text(letters(CAPTIONS, 130))
    torch.testing.assert_close(encoder.encode(CAPTIONS), expected_BE, rtol=0, atol=1e-6)
    assert encoder.width == 3 and encoder.name == f"chars:{tmp_path}/chars"
    loaded = load_letter_encoder(str(tmp_path / "chars"))
    assert loaded.embed_images(torch.ones(1, 4)).shape == (1, 3) and loaded.config == config

    # what an image's features are multiplied with is not the encoder's
    model.images.weight.data += 1
    save_weights(tmp_path / "same", "text-encoder", model.state_dict(), config, {})
    assert open_text_encoder(f"chars:{tmp_path}/same").hash == encoder.hash
    model.text.output.bias.data[0] += 1
    save_weights(tmp_path / "other", "text-encoder", model.state_dict(), config, {})
    assert open_text_encoder(f"chars:{tmp_path}/other").hash != encoder.hash


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"caption_chars": 60}, "caption_chars 60: too few"),
        ({"channels": 0}, "channels 0: must be at least 1"),
        ({"first_widths": (0, 5)}, "first_widths"),
        ({"image_width": 0}, "image_width 0"),
    ],
)
def test_sizes_that_make_no_network_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CharCNNRNNModel(**settings)
