"""The joint cross-entropy of text and image tokens (section 2.2): each kind averaged over its own tokens in the whole
batch, then weighted 1/8 and 7/8. Pad targets are left out."""

from __future__ import annotations

import torch
from torch import nn

from dalle.config import PriorObjective as PriorObjectiveConfig
from dalle.models.prior import Prior


class PriorObjective(nn.Module):
    """The weighted cross-entropy.

    Args:
        model: the prior
        config: the weights
    """

    def __init__(self, model: Prior, config: PriorObjectiveConfig):
        super().__init__()
        self.model, self.text_weight = model, config.text_weight

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss and its parts, in nats per token.

        Args:
            batch: `text_BU`, `codes_BI`, and `text_targets`, the mean over all ranks of the number of caption tokens
                in their part of the batch. Dividing by that mean, not by this rank's own number, makes the average
                over ranks the average over the whole batch.
        """
        text_nats, image_nats = self.model.nats(batch["text_BU"], batch["codes_BI"])
        text_nats = text_nats / batch["text_targets"]
        image_nats = image_nats / batch["codes_BI"].numel()
        loss = self.text_weight * text_nats + (1 - self.text_weight) * image_nats
        return loss, {"loss": loss.detach(), "text_nats": text_nats.detach(), "image_nats": image_nats.detach()}
