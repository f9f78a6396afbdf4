"""What a generator is asked at validation tells captions that do not matter from noise that does not."""

import numpy as np
import pytest
import torch
from torch import nn

from dalle.config import Images, Optimizer, Run, Schedule, StackGANModel, TrainStackGAN
from dalle.stages.adversarial.validation import Validation
from tests.stages.adversarial.text import HashEncoder

SIZES = StackGANModel(image_size_px=32, text_width=6, noise_width=5, condition_width=8)


class _Stub(nn.Module):
    """Draws flat images as bright as one number of what it is given."""

    def __init__(self, follows: str):
        super().__init__()
        self.config, self.follows, self.given = SIZES, follows, []

    def forward(self, text_BE, noise_BZ, epsilon_BC, low_BCYX=None):
        self.given.append((text_BE, noise_BZ, epsilon_BC, low_BCYX))
        number_B = {"text": text_BE, "noise": noise_BZ, "condition": epsilon_BC, "nothing": 0 * text_BE}[self.follows][
            :, 0
        ]
        return (number_B.tanh()[:, None, None, None].expand(-1, 3, 32, 32), None, None)


def _validation(shapes_folder, follows, low=lambda text, seeds: {}, features=lambda images: images):
    config = TrainStackGAN(
        data=f"{shapes_folder}/train-*.tar",
        output="x",
        text_encoder="a6",
        optimizer=Optimizer(Schedule(1e-3, 1e-3)),
        discriminator_optimizer=Optimizer(Schedule(1e-3, 1e-3)),
        run=Run(steps=1, batch_size=8, validation_batches=2),
        valid_data=f"{shapes_folder}/valid-*.tar",
        model=SIZES,
        images=Images(augmentation="none"),
    )
    kept = {}
    model = _Stub(follows)
    embed = lambda captions: HashEncoder().encode(captions)  # noqa: E731
    return Validation(config, model, embed, low, features, torch.device("cpu"), kept.update), model, kept


@pytest.mark.parametrize(
    ("follows", "by_caption", "by_noise"),
    [("text", True, False), ("noise", False, True), ("condition", False, True), ("nothing", False, False)],
)
def test_spreads_tell_what_an_image_follows(shapes_folder, follows, by_caption, by_noise):
    validation, _, kept = _validation(shapes_folder, follows)
    figures = validation.figures()
    assert figures == kept == validation.figures(), "the same noise each time"
    assert (figures["caption_spread"] > 0.1, figures["noise_spread"] > 0.1) == (by_caption, by_noise)
    assert by_caption or figures["caption_spread"] < 1e-6
    assert by_noise or figures["noise_spread"] < 1e-6


def test_a_spread_is_a_share_of_real_images(shapes_folder):
    validation, _, _ = _validation(shapes_folder, "text")
    assert len(set(validation.captions)) == len(validation.captions) == len(validation.images) == 16
    pixels = np.stack(validation.images).transpose(0, 3, 1, 2) / 127.5 - 1
    real = pixels.reshape(16, 3, 8, 4, 8, 4).mean(axis=(3, 5)).var(axis=0).mean()
    drawn = np.tanh(validation.text_BE[:, 0].numpy()).var()
    assert validation.figures()["caption_spread"] == pytest.approx(drawn / real, rel=1e-4)


def test_spreads_are_in_the_space_of_the_features(shapes_folder):
    """Drawn images and real ones alike, a few at a time; what features do not tell apart is the same."""
    seen = []

    def first_rows(images_BCYX):
        seen.append(len(images_BCYX))
        return images_BCYX[:, :1, :4, :4]

    validation, _, _ = _validation(shapes_folder, "text", features=first_rows)
    pixels = np.stack(validation.images).transpose(0, 3, 1, 2)[:, :1, :4, :4] / 127.5 - 1
    drawn = np.tanh(validation.text_BE[:, 0].numpy()).var()
    assert validation.figures()["caption_spread"] == pytest.approx(drawn / pixels.var(axis=0).mean(), rel=1e-4)
    assert seen == [8] * 12  # 16 real, 16 of captions, 8 of each of 8 captions
    blind, _, _ = _validation(shapes_folder, "text", features=lambda images: 0 * images)
    assert blind.figures()["caption_spread"] == 0


def test_pictures_are_real_ones_above_two_of_each_caption(shapes_folder):
    validation, _, _ = _validation(shapes_folder, "noise")
    picture = np.asarray(validation.pictures()["samples"])
    assert picture.shape == (3 * 32, 8 * 32, 3)
    assert np.array_equal(picture[:32, 32:64], validation.images[1])
    rows = picture[32:].reshape(2, 32, 8, 32, 3).transpose(0, 2, 1, 3, 4).reshape(2, 8, -1)
    assert (rows == rows[:, :1, :1]).all(), "one noise a row, which is all that it follows"
    assert rows[0, 0, 0] != rows[1, 0, 0]


def test_stage_two_is_given_stage_ones_images_of_the_same_seeds(shapes_folder):
    def low(text_BE, seeds):
        return {"low_BCYX": text_BE[:, :3, None, None] + torch.tensor(seeds)[:, None, None, None]}

    validation, model, _ = _validation(shapes_folder, "text", low)
    validation.pictures()
    for seed, (text_BE, _, _, low_BCYX) in enumerate(model.given):
        torch.testing.assert_close(low_BCYX[:, :, 0, 0], text_BE[:, :3] + seed)
