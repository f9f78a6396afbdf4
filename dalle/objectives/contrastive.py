"""The symmetric contrastive loss of CLIP (arXiv 2103.00020, figure 3), without false negatives.

Two pairs of a batch that have the same caption, or the same image, are right answers to one another. open_clip's loss, and
the paper's, count them as wrong: a batch of 128 then pushes apart what belongs together. Here such a pair is no candidate at
all: it is left out of the denominator. Without any in the batch this is open_clip's loss with features gathered over all
processes (`local_loss`, `gather_with_grad`), and its gradients.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dalle.cluster.gathering import gathered


class ContrastiveLoss(nn.Module):
    """Cross-entropy of each image's caption among the captions of all processes, and of each caption's image likewise.

    Args:
        rank: of this process
        world_size: the processes whose pairs are told apart, each with as many
    """

    def __init__(self, rank: int = 0, world_size: int = 1):
        super().__init__()
        self.rank, self.world_size = rank, world_size

    def forward(
        self,
        images_BE: torch.Tensor,
        texts_BE: torch.Tensor,
        scale: torch.Tensor,
        identities: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The mean over this process's pairs and both directions, nats; the mean of that over the processes is the loss.
        Products and softmax are fp32, under autocast too.

        Args:
            images_BE, texts_BE: unit vectors of this process's pairs
            scale: the inverse temperature, a scalar
            identities: int64 [B], or [B, K] of K kinds: two pairs that are equal in any kind are not told apart. None
                tells all apart
        """
        with torch.autocast(images_BE.device.type, enabled=False):
            # 16-bit products would round a cosine to three digits, and a scale of 100 makes that half a nat
            images_BE, texts_BE, scale = images_BE.float(), texts_BE.float(), scale.float()
            images_ME, texts_ME = gathered(images_BE, self.world_size), gathered(texts_BE, self.world_size)
            own_B = self.rank * len(images_BE) + torch.arange(len(images_BE), device=images_BE.device)
            false_BM = None
            if identities is not None:
                false_BM = alike(identities, gathered(identities, self.world_size))
                false_BM.scatter_(1, own_B[:, None], False)  # an assignment by index would wait for a GPU
            first, second = (
                _nats(scale * a @ b.T, own_B, false_BM) for a, b in ((images_BE, texts_ME), (texts_BE, images_ME))
            )
            return (first + second) / 2


def alike(identities: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Which pairs are not told apart, bool [B, M].

    Args:
        identities: int64 [B], or [B, K]
        others: int64 [M], or [M, K]
    """
    a_BK, b_MK = identities.reshape(len(identities), -1), others.reshape(len(others), -1)
    return (a_BK[:, None] == b_MK[None]).any(dim=-1)


def _nats(logits_BM: torch.Tensor, own_B: torch.Tensor, false_BM: torch.Tensor | None) -> torch.Tensor:
    if false_BM is not None:
        logits_BM = logits_BM.masked_fill(false_BM, -torch.inf)
    return F.cross_entropy(logits_BM, own_B)
