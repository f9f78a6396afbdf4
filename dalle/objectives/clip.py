"""The symmetric contrastive loss, open_clip's own."""

from __future__ import annotations

import torch
from torch import nn

from dalle.models.clip import CLIP


class CLIPObjective(nn.Module):
    """Cross-entropy of each image's caption among the batch's captions, and the other way round.

    Args:
        model: the reranker
        rank, world_size: of this process; features are gathered over all processes
    """

    def __init__(self, model: CLIP, rank: int = 0, world_size: int = 1):
        super().__init__()
        from open_clip import ClipLoss

        self.model = model
        self.contrast = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and the share of captions that find their image among the batch.

        Args:
            batch: `images_BCYX`, or `codes_BI` where the model reads codes, and `clip_tokens_BU`
        """
        images_BE = self.model.embed_batch(batch)
        texts_BE = self.model.embed_texts(batch["clip_tokens_BU"])
        # the paper of CLIP clips the scale at 100
        scale = self.model.logit_scale.clamp(max=100)
        loss = self.contrast(images_BE, texts_BE, scale)
        with torch.no_grad():
            found = (texts_BE @ images_BE.T).argmax(dim=1) == torch.arange(len(texts_BE), device=texts_BE.device)
        return loss, {"loss": loss.detach(), "caption_accuracy": found.float().mean(), "scale": scale.detach()}
