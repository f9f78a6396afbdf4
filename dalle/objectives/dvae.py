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
        images_BCYX = batch["images_BCYX"]
        logits_BKYX = self.model.logits(images_BCYX)
        z_BKYX = gumbel_softmax(logits_BKYX, batch["temperature"], batch["noise_scale"])
        mu_BCYX, ln_b_BCYX = self.model.likelihood_maps(z_BKYX)
        log_prior_K = self.model.log_code_prior_K()
        loss, metrics = negative_elb(images_BCYX, logits_BKYX, log_prior_K, mu_BCYX, ln_b_BCYX, batch["kl_weight"])
        with torch.no_grad():
            codes_BYX = logits_BKYX.argmax(dim=1)
            metrics["perplexity"] = perplexity(torch.bincount(codes_BYX.flatten(), minlength=logits_BKYX.shape[1]))
        schedules = {name: batch[name] for name in ("temperature", "kl_weight", "noise_scale")}
        return loss, {**metrics, **schedules}


def gumbel_softmax(logits_BKYX: torch.Tensor, temperature: torch.Tensor, noise_scale: torch.Tensor) -> torch.Tensor:
    """softmax((logits + noise_scale · gumbel) / τ) over the codes (Jang et al., 2016)."""
    # uniform numbers and two logarithms: drawing exponentials costs five times as much on a CPU
    uniform_BKYX = torch.rand_like(logits_BKYX).clamp_(min=torch.finfo(torch.float32).tiny)
    gumbel_BKYX = -(-uniform_BKYX.log()).log()
    return ((logits_BKYX + noise_scale * gumbel_BKYX) / temperature).softmax(dim=1)


def negative_elb(
    images_BCYX: torch.Tensor,
    logits_BKYX: torch.Tensor,
    log_prior_K: torch.Tensor,
    mu_BCYX: torch.Tensor,
    ln_b_BCYX: torch.Tensor,
    kl_weight: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(Reconstruction + β·KL) / subpixels, meaned over images, and its parts.

    The KL is that of the plain softmax of the logits against the prior (the paper's is uniform), summed over positions, even
    while τ > 0; dividing by the 3·Y·X subpixels turns its weight into β/192 per position for 8× downsampling.
    """
    x_BCYX = map_pixels(images_BCYX)
    num_subpixels = x_BCYX[0].numel()
    reconstruction_nats = -log_likelihood(x_BCYX, mu_BCYX, ln_b_BCYX).mean()
    log_q_BKYX = logits_BKYX.float().log_softmax(dim=1)
    kl_BYX = (log_q_BKYX.exp() * (log_q_BKYX - log_prior_K[:, None, None])).sum(dim=1)
    kl_per_subpixel = kl_BYX.sum(dim=(1, 2)).mean() / num_subpixels
    loss = reconstruction_nats + kl_weight * kl_per_subpixel
    metrics = {
        "loss": loss.detach(),
        "reconstruction_nats": reconstruction_nats.detach(),
        "kl_per_position_nats": kl_BYX.detach().mean(),
        "elb": -(reconstruction_nats + kl_per_subpixel).detach(),
        "psnr_db": psnr_db(images_BCYX, reconstruction(mu_BCYX.detach())),
    }
    return loss, metrics


def psnr_db(images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of a batch, pixels in [0, 1] (uint8 is divided by 255), over the batch's mean
    squared error."""
    if images_BCYX.dtype == torch.uint8:
        images_BCYX = images_BCYX.float() / 255
    return -10 * torch.log10(F.mse_loss(reconstructions_BCYX, images_BCYX))


@torch.no_grad()
def true_elb(
    model: DVAE, images_BCYX: torch.Tensor, kl_weight: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Metrics with hard codes (the argmax), and how often each code was used: int64 [K]."""
    logits_BKYX = model.logits(images_BCYX)
    codes_BYX = logits_BKYX.argmax(dim=1)
    mu_BCYX, ln_b_BCYX = model.likelihood_maps(model.one_hot(codes_BYX))
    _, metrics = negative_elb(images_BCYX, logits_BKYX, model.log_code_prior_K(), mu_BCYX, ln_b_BCYX, kl_weight)
    return metrics, torch.bincount(codes_BYX.flatten(), minlength=model.config.codebook_size)


def perplexity(counts_K: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of code use: how many codes, used equally often, it amounts to. A scalar tensor."""
    p = counts_K.float() / counts_K.sum().clamp(min=1)
    return torch.exp(-torch.special.xlogy(p, p).sum())
