"""The char-CNN-RNN: convolutions over the letters of a caption, and a recurrence over what is left of them.

Reed et al. 2016, "Learning Deep Representations of Fine-Grained Visual Descriptions" (cvpr2016), and "Generative Adversarial Text
to Image Synthesis" (icml2016), as their Lua code has it:

- the alphabet has 70 entries, in which `-` stands twice; the later index counts. Other characters, and the places behind the
  end, are columns of zeros;
- an activation is 0 unless it is above 1e-6;
- at the first step there is no hidden state, not even its bias or gates;
- the GRU multiplies the hidden state by the reset gate before the matrix, where `torch.nn.GRU` multiplies behind it, and its
  update gate is the share of what is new.

Parameters of the three published variants: 1,814,144, 2,994,560 and 4,045,184.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from dalle.config.stackgan import CharCNNRNNModel
from dalle.models import folder as model_folder
from dalle.models.text_encoders.contract import TextEncoder, encoder_hash

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+-=<>()[]{} "
_INDEX = {letter: index for index, letter in enumerate(ALPHABET)}  # of a letter that is there twice the later one
_LEAST = 1e-6
_INIT = 0.08


def letters(captions: Sequence[str], length: int) -> torch.Tensor:
    """Indices of the alphabet, int64 [B, length]; −1 where a column is zero. What is longer is cut."""
    rows = torch.full((len(captions), length), -1)
    for row, caption in zip(rows, captions, strict=True):
        found = [_INDEX.get(letter, -1) for letter in caption.lower()[:length]]
        row[: len(found)] = torch.tensor(found, dtype=torch.int64)
    return rows


class CharCNNRNN(nn.Module):
    """Captions as letters to vectors.

    Args:
        config: sizes
    """

    def __init__(self, config: CharCNNRNNModel):
        super().__init__()
        self.config = config
        widths = (len(ALPHABET), *config.first_widths, config.channels)
        pools = (nn.MaxPool1d(3, 3), nn.MaxPool1d(3, 3), nn.MaxPool1d(3, 2) if config.third_pool else nn.Identity())
        layers: list[nn.Module] = []
        for number, pool in enumerate(pools):
            layers += [nn.Conv1d(widths[number], widths[number + 1], 4), nn.Threshold(_LEAST, 0.0), pool]
        self.convolutions = nn.Sequential(*layers)
        self.recurrence = (FirstStepRNN if config.recurrent == "rnn" else FirstStepGRU)(config.channels)
        self.output = nn.Linear(config.channels, config.embedding_width)

    def forward(self, letters_BU: torch.Tensor) -> torch.Tensor:
        """Vectors [B, E] of indices int64 [B, U] from `letters`."""
        # −1 is the first of one column more, which goes again
        columns_BCU = F.one_hot(letters_BU + 1, 1 + len(ALPHABET))[:, :, 1:].mT.to(self.output.weight.dtype)
        states_BCS = self.convolutions(columns_BCU)
        return self.output(self.recurrence(states_BCS.mT))


class FirstStepRNN(nn.Module):
    """h₁ = relu(W x₁ + b), hₜ = relu(W xₜ + b + V hₜ₋₁ + c); the mean of all h.

    Args:
        width: C, of inputs and hidden states
    """

    def __init__(self, width: int):
        super().__init__()
        self.i2h, self.h2h = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, inputs_BSC: torch.Tensor) -> torch.Tensor:
        """[B, S, C] to [B, C]."""
        inputs_BSC = self.i2h(inputs_BSC)
        hidden = [inputs_BSC[:, 0].relu()]
        for step in range(1, inputs_BSC.shape[1]):
            hidden.append((inputs_BSC[:, step] + self.h2h(hidden[-1])).relu())
        return torch.stack(hidden).mean(dim=0)


class FirstStepGRU(nn.Module):
    """h₁ = tanh(W x₁ + b), then a GRU whose reset gate comes before the matrix; the mean of all h.

    Args:
        width: C, of inputs and hidden states
    """

    def __init__(self, width: int):
        super().__init__()
        self.i2h, self.h2h = nn.Linear(width, width), nn.Linear(width, width)
        self.i2h_update, self.h2h_update = nn.Linear(width, width), nn.Linear(width, width)
        self.i2h_reset, self.h2h_reset = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, inputs_BSC: torch.Tensor) -> torch.Tensor:
        """[B, S, C] to [B, C]."""
        candidates_BSC = self.i2h(inputs_BSC)
        updates_BSC, resets_BSC = self.i2h_update(inputs_BSC), self.i2h_reset(inputs_BSC)
        hidden = [candidates_BSC[:, 0].tanh()]
        for step in range(1, inputs_BSC.shape[1]):
            before = hidden[-1]
            update = (updates_BSC[:, step] + self.h2h_update(before)).sigmoid()
            reset = (resets_BSC[:, step] + self.h2h_reset(before)).sigmoid()
            candidate = (candidates_BSC[:, step] + self.h2h(reset * before)).tanh()
            hidden.append(torch.lerp(before, candidate, update))
        return torch.stack(hidden).mean(dim=0)


class LetterEncoder(nn.Module):
    """A char-CNN-RNN and what it is trained with: the linear layer that brings image features to the same width, where they
    have another one. All parameters begin uniform in ±0.08, as published.

    Args:
        config: sizes
    """

    def __init__(self, config: CharCNNRNNModel):
        super().__init__()
        self.config = config
        self.text = CharCNNRNN(config)
        self.images = nn.Linear(config.image_width, config.embedding_width) if config.image_width else nn.Identity()
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -_INIT, _INIT)

    def recomputable(self) -> list[nn.Module]:
        """What may be computed again in the backward pass in place of being remembered."""
        return [self.text.convolutions]

    def embed_texts(self, letters_BU: torch.Tensor) -> torch.Tensor:
        """Vectors [B, E] of indices from `letters`."""
        return self.text(letters_BU)

    def embed_images(self, features_BE: torch.Tensor) -> torch.Tensor:
        """Vectors [B, E] of image features [B, `image_width`]."""
        return self.images(features_BE)


def load_letter_encoder(folder: str, device: torch.device | str = "cpu") -> LetterEncoder:
    """The encoder of a folder of `dalle-train-text-encoder`, in evaluation mode. Raises ValueError when it holds none, is
    damaged or not finite."""
    config = model_folder.read_config(folder, "text-encoder")
    model = model_folder.weightless(lambda: LetterEncoder(config), folder)
    return model_folder.load_into(model, folder, device)


def trained_letters(folder: str, device: torch.device) -> TextEncoder:
    """The char-CNN-RNN of a folder of `dalle-train-text-encoder`. Raises ValueError when it holds none."""
    text = load_letter_encoder(folder, device).text
    length = text.config.caption_chars

    def read(captions: Sequence[str]) -> torch.Tensor:
        return text(letters(captions, length).to(device))

    hashed = encoder_hash("chars", text.state_dict(), [ALPHABET, length])
    return TextEncoder(f"chars:{folder}", text.config.embedding_width, hashed, device, read)
