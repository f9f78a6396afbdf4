"""The relaxed evidence lower bound of stage one (appendix A.2), and its true counterpart for validation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dalle.models.dvae import DVAE
from dalle.models.likelihood import log_likelihood, map_pixels, reconstruction


class DVAEObjective(nn.Module):
    """Negative relaxed ELB per subpixel.

    Args:
        model: the dVAE
    """

    def __init__(self, model: DVAE):
        super().__init__()
        self.model = model

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss and its parts, each a scalar tensor.

        Args:
            batch: `images_BCYX` uint8; `temperature`, `kl_weight`, `noise_scale` as scalar tensors
        """
        images = batch["images_BCYX"]
        logits_BKYX = self.model.logits(images)
        z_BKYX = gumbel_softmax(logits_BKYX, batch["temperature"], batch["noise_scale"])
        mu, ln_b = self.model.likelihood_maps(z_BKYX)
        loss, metrics = negative_elb(images, logits_BKYX, self.model.log_code_prior_K(), mu, ln_b, batch["kl_weight"])
        with torch.no_grad():
            codes = logits_BKYX.argmax(dim=1).flatten()
            metrics["perplexity"] = perplexity(torch.bincount(codes, minlength=logits_BKYX.shape[1]))
        schedules = {name: batch[name] for name in ("temperature", "kl_weight", "noise_scale")}
        return loss, {**metrics, **schedules}


def gumbel_softmax(logits_BKYX: torch.Tensor, temperature: torch.Tensor, noise_scale: torch.Tensor) -> torch.Tensor:
    """softmax((logits + noise_scale · gumbel) / τ) over the codes (Jang et al., 2016)."""
    # uniform numbers and two logarithms: drawing exponentials costs five times as much on a CPU
    uniform = torch.rand_like(logits_BKYX).clamp_(min=torch.finfo(torch.float32).tiny)
    gumbel = -(-uniform.log()).log()
    return ((logits_BKYX + noise_scale * gumbel) / temperature).softmax(dim=1)


def negative_elb(
    images: torch.Tensor,
    logits_BKYX: torch.Tensor,
    log_prior_K: torch.Tensor,
    mu: torch.Tensor,
    ln_b: torch.Tensor,
    kl_weight: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(Reconstruction + β·KL) / subpixels, meaned over images, and its parts.

    The KL is that of the plain softmax of the logits against the prior (the paper's is uniform), summed over positions, even
    while τ > 0; dividing by the 3·Y·X subpixels turns its weight into β/192 per position for 8× downsampling.
    """
    x = map_pixels(images)
    num_subpixels = x[0].numel()
    reconstruction_nats = -log_likelihood(x, mu, ln_b).mean()
    log_q = logits_BKYX.float().log_softmax(dim=1)
    kl_BYX = (log_q.exp() * (log_q - log_prior_K[:, None, None])).sum(dim=1)
    kl_per_subpixel = kl_BYX.sum(dim=(1, 2)).mean() / num_subpixels
    loss = reconstruction_nats + kl_weight * kl_per_subpixel
    metrics = {
        "loss": loss.detach(),
        "reconstruction_nats": reconstruction_nats.detach(),
        "kl_per_position_nats": kl_BYX.detach().mean(),
        "elb": -(reconstruction_nats + kl_per_subpixel).detach(),
        "psnr_db": psnr_db(images, reconstruction(mu.detach())),
    }
    return loss, metrics


def psnr_db(images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of a batch, pixels in [0, 1] (uint8 is divided by 255), over the batch's mean
    squared error."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    return -10 * torch.log10(F.mse_loss(reconstructions, images))


@torch.no_grad()
def true_elb(
    model: DVAE, images: torch.Tensor, kl_weight: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Metrics with hard codes (the argmax), and how often each code was used: int64 [K]."""
    logits_BKYX = model.logits(images)
    codes_BYX = logits_BKYX.argmax(dim=1)
    mu, ln_b = model.likelihood_maps(model.one_hot(codes_BYX))
    _, metrics = negative_elb(images, logits_BKYX, model.log_code_prior_K(), mu, ln_b, kl_weight)
    return metrics, torch.bincount(codes_BYX.flatten(), minlength=model.config.codebook_size)


def perplexity(counts_K: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of code use: how many codes, used equally often, it amounts to. A scalar tensor."""
    p = counts_K.float() / counts_K.sum().clamp(min=1)
    return torch.exp(-torch.special.xlogy(p, p).sum())
