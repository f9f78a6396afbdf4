"""What the reranker minimises: the contrastive loss of its images and captions."""

from __future__ import annotations

import torch
from torch import nn

from dalle.models.clip import CLIP
from dalle.objectives.contrastive import ContrastiveLoss, alike


class CLIPObjective(nn.Module):
    """Cross-entropy of each image's caption among the batch's captions, and the other way round.

    Args:
        model: the reranker
        rank, world_size: of this process; features are gathered over all processes
    """

    def __init__(self, model: CLIP, rank: int = 0, world_size: int = 1):
        super().__init__()
        self.model = model
        self.contrast = ContrastiveLoss(rank, world_size)

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and the share of captions that find their image, or one that is right as well, among this process's part
        of the batch.

        Args:
            batch: `images_BCYX`, or `codes_BI` where the model reads codes, `clip_tokens_BU`, and `identities_BK`, int64: pairs
                that are equal in any of the K are not told apart
        """
        images_BE = self.model.embed_batch(batch)
        texts_BE = self.model.embed_texts(batch["clip_tokens_BU"])
        # the paper of CLIP clips the scale at 100
        scale = self.model.logit_scale.clamp(max=100)
        identities_BK = batch["identities_BK"]
        loss = self.contrast(images_BE, texts_BE, scale, identities_BK)
        with torch.no_grad():
            best_B = (texts_BE @ images_BE.T).argmax(dim=1, keepdim=True)
            found_B = alike(identities_BK, identities_BK).gather(1, best_B)
        return loss, {"loss": loss.detach(), "caption_accuracy": found_B.float().mean(), "scale": scale.detach()}
