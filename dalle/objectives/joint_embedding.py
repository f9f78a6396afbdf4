"""The structured joint embedding loss of a text encoder (Reed et al. 2016, equations 2 to 4, as their code has it).

With s_ij the product of image i's vector and caption j's, each image wants its caption to be nearer than every other of the batch
by a margin of 1, and each caption its image: Σ_{j≠i} max(0, 1 + s_ij − s_ii), both ways, over the square of the batch. All others
of a batch are wrong, so it has to be of different classes.
"""

from __future__ import annotations

import torch
from torch import nn

from dalle.cluster.gathering import gathered
from dalle.models.text_encoders.char_cnn_rnn import LetterEncoder

_MARGIN = 1.0


class JointEmbeddingObjective(nn.Module):
    """The loss of image features and captions of different classes.

    Args:
        model: the text encoder, and what brings image features to its width
        rank, world_size: of this process; vectors are gathered over all processes
    """

    def __init__(self, model: LetterEncoder, rank: int = 0, world_size: int = 1):
        super().__init__()
        self.model, self.rank, self.world_size = model, rank, world_size

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and the share of captions whose own image is the nearest.

        Args:
            batch: `letters_BU`, int64, and `image_features_BE`, of one class each
        """
        texts_BE = self.model.embed_texts(batch["letters_BU"])
        images_BE = self.model.embed_images(batch["image_features_BE"])
        with torch.autocast(texts_BE.device.type, enabled=False):  # 16-bit products would round away the margin
            texts_BE, images_BE = texts_BE.float(), images_BE.float()
            texts_ME, images_ME = gathered(texts_BE, self.world_size), gathered(images_BE, self.world_size)
            own_B = self.rank * len(texts_BE) + torch.arange(len(texts_BE), device=texts_BE.device)
            scores_BM = texts_BE @ images_ME.T
            loss = hinge(scores_BM, own_B) + hinge(images_BE @ texts_ME.T, own_B)
        accuracy = (scores_BM.argmax(dim=1) == own_B).float().mean()
        return loss, {"loss": loss.detach(), "caption_accuracy": accuracy}


def hinge(scores_BM: torch.Tensor, own_B: torch.Tensor) -> torch.Tensor:
    """The mean over all pairs of what a wrong one lacks of being `_MARGIN` below the right one of its row.

    Args:
        scores_BM: of this process's rows with the columns of all
        own_B: the right column of each row
    """
    right_B1 = scores_BM.gather(1, own_B[:, None])
    lacking_BM = (_MARGIN + scores_BM - right_B1).clamp(min=0)
    return lacking_BM.scatter(1, own_B[:, None], 0.0).mean()
