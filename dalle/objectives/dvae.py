"""The relaxed evidence lower bound of stage one (appendix A.2), and its true counterpart for validation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from dalle.config import DVAEModel
from dalle.models.dvae import DVAE
from dalle.models.likelihood import unit_range
from dalle.objectives.relaxation import relaxed_codes


class DVAEObjective(nn.Module):
    """Negative relaxed ELB per subpixel.

    Args:
        model: the dVAE
    """

    def __init__(self, model: DVAE):
        super().__init__()
        self.model = model

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss and its parts, scalar tensors all but `code_use_K`, the share of each code among the codes.

        Args:
            batch: `images_BCYX` uint8; `uniform_BYXK` from `uniform_noise`, which is taken out of the batch;
                `temperature`, `kl_weight`, `noise_scale` as scalar tensors
        """
        images_BCYX = batch["images_BCYX"]
        logits_BKYX = self.model.logits(images_BCYX)
        # the batch gives its noise away, so that it need not outlive this call
        z_BYXK, kl_BYX = relaxed_codes(
            logits_BKYX.permute(0, 2, 3, 1),
            batch.pop("uniform_BYXK"),
            batch["temperature"],
            batch["noise_scale"],
            self.model.log_code_prior_K(),
        )
        maps = self.model.likelihood_maps(z_BYXK.permute(0, 3, 1, 2))
        loss, metrics = negative_elb(self.model, images_BCYX, maps, kl_BYX, batch["kl_weight"])
        metrics["relaxed_elb"] = metrics.pop("elb")
        with torch.no_grad():
            codes_BYX = logits_BKYX.argmax(dim=1)
            metrics["code_use_K"] = code_counts(codes_BYX, logits_BKYX.shape[1]) / codes_BYX.numel()
        schedules = {name: batch[name] for name in ("temperature", "kl_weight", "noise_scale")}
        return loss, {**metrics, **schedules}


class DecoderObjective(nn.Module):
    """Negative log-likelihood per subpixel of images given the codes that inference takes of them: the reconstruction of the
    bound alone.

    The decoder sees what it will see in sampling, hard codes (the argmax, no gumbel noise). The KL is left out because it
    is a function of the encoder's logits alone: with the encoder as it is it is a constant, and its gradient is nothing.

    Args:
        model: the dVAE, its encoder frozen
    """

    def __init__(self, model: DVAE):
        super().__init__()
        assert model.encoder_is_frozen
        self.model = model

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss and its parts, scalar tensors all but `code_use_K`, the share of each code among the codes.

        Args:
            batch: `images_BCYX` uint8
        """
        loss, metrics, used_K = reconstruction_of_codes(self.model, batch["images_BCYX"])
        return loss, {**metrics, "code_use_K": used_K / used_K.sum()}


def reconstruction_of_codes(
    model: DVAE, images_BCYX: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """How well images come back from the codes that inference takes of them.

    Args:
        model: with an encoder in evaluation mode
        images_BCYX: uint8

    Returns:
        loss: nats per subpixel, with a gradient in the decoder alone
        metrics: `loss`, `reconstruction_nats` (the same) and `psnr_db`
        counts: how often each code was used, int64 [K]
    """
    codes_BYX = model.encode(images_BCYX)
    maps = model.likelihood_maps_of_codes(codes_BYX)
    loss = -model.log_likelihood(images_BCYX, *maps).mean()
    with torch.no_grad():
        psnr = psnr_db(images_BCYX, model.reconstruction(maps[0]))
        counts_K = code_counts(codes_BYX, model.config.codebook_size)
    return loss, {"loss": loss.detach(), "reconstruction_nats": loss.detach(), "psnr_db": psnr}, counts_K


def uniform_noise(config: DVAEModel, seeds: Sequence[int], device: torch.device) -> torch.Tensor:
    """Uniform random numbers in (0, 1) for the relaxation, [B, G, G, K] fp32: each image's from a seed of its own, so that
    they do not depend on which images it shares a batch with."""
    noise_BYXK = torch.empty(len(seeds), config.grid, config.grid, config.codebook_size, device=device)
    generator = torch.Generator(device)
    for noise_YXK, seed in zip(noise_BYXK, seeds, strict=True):
        noise_YXK.uniform_(generator=generator.manual_seed(seed))
    return noise_BYXK.clamp_(torch.finfo(torch.float32).tiny, 1 - 2**-24)  # at 0 and 1 the gumbel noise is infinite


def negative_elb(
    model: DVAE,
    images_BCYX: torch.Tensor,
    maps: tuple[torch.Tensor, torch.Tensor],
    kl_BYX: torch.Tensor,
    kl_weight: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(Reconstruction + β·KL) / subpixels, meaned over images, and its parts.

    The KL is that of the plain softmax of the logits against the prior (the paper's is uniform), summed over positions, even
    while τ > 0; dividing by the 3·Y·X subpixels turns its weight into β/192 per position for 8× downsampling.

    Args:
        model: knows its likelihood
        images_BCYX: [B, 3, Y, X], uint8 or floats in [0, 1]
        maps: of `model.likelihood_maps`
        kl_BYX: in nats, per position
        kl_weight: β, a scalar tensor
    """
    reconstruction_nats = -model.log_likelihood(images_BCYX, *maps).mean()
    kl_per_subpixel = kl_BYX.sum(dim=(1, 2)).mean() / images_BCYX[0].numel()
    loss = reconstruction_nats + kl_weight * kl_per_subpixel
    metrics = {
        "loss": loss.detach(),
        "reconstruction_nats": reconstruction_nats.detach(),
        "kl_per_position_nats": kl_BYX.detach().mean(),
        "elb": -(reconstruction_nats + kl_per_subpixel).detach(),
        "psnr_db": psnr_db(images_BCYX, model.reconstruction(maps[0].detach())),
    }
    return loss, metrics


def psnr_db(images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio, pixels in [0, 1] (uint8 is divided by 255), meaned over images; at most 100 dB each."""
    mse_B = F.mse_loss(reconstructions_BCYX, unit_range(images_BCYX), reduction="none").mean(dim=(1, 2, 3))
    return (-10 * torch.log10(mse_B.clamp(min=1e-10))).mean()


@torch.no_grad()
def validation_figures(
    model: DVAE, images_BCYX: torch.Tensor, uniform_BYXK: torch.Tensor, temperature: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The true evidence lower bound beside the relaxed one, and how good the codes are that inference takes.

    Args:
        model: in evaluation mode
        images_BCYX: uint8
        uniform_BYXK: from `uniform_noise`
        temperature: τ of the relaxed bound, a scalar tensor

    Returns:
        metrics: `elb`, with codes drawn from softmax(logits) (the argmax of the relaxed ones is such a draw);
        `relaxed_elb`; `loss`, the true negative bound; the parts of `elb`; and `psnr_db` of the codes that the argmax of
        the logits gives. And how often each of these was used, int64 [K]
    """
    logits_BKYX = model.logits(images_BCYX)
    one, log_prior_K = torch.ones_like(temperature), model.log_code_prior_K()
    z_BYXK, kl_BYX = relaxed_codes(logits_BKYX.permute(0, 2, 3, 1), uniform_BYXK, temperature, one, log_prior_K)
    relaxed_maps = model.likelihood_maps(z_BYXK.permute(0, 3, 1, 2))
    _, relaxed = negative_elb(model, images_BCYX, relaxed_maps, kl_BYX, one)
    drawn_maps = model.likelihood_maps_of_codes(z_BYXK.argmax(dim=-1))
    _, metrics = negative_elb(model, images_BCYX, drawn_maps, kl_BYX, one)
    codes_BYX = logits_BKYX.argmax(dim=1)
    decoded_BCYX = model.reconstruction(model.likelihood_maps_of_codes(codes_BYX)[0])
    metrics |= {"relaxed_elb": relaxed["elb"], "psnr_db": psnr_db(images_BCYX, decoded_BCYX)}
    return metrics, code_counts(codes_BYX, model.config.codebook_size)


def code_counts(codes_BYX: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """How often each code occurs, int64 [K]. `torch.bincount` would make a GPU wait."""
    counts_K = torch.zeros(codebook_size, dtype=torch.int64, device=codes_BYX.device)
    return counts_K.scatter_add_(0, codes_BYX.flatten(), torch.ones_like(codes_BYX).flatten())


def perplexity(use_K: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of code use: how many codes, used equally often, it amounts to. A scalar tensor.

    Args:
        use_K: counts or shares
    """
    p = use_K.float() / use_K.sum().clamp(min=1e-30)
    return torch.exp(-torch.special.xlogy(p, p).sum())
