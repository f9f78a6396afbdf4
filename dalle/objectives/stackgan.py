"""What the two players of a StackGAN minimise: equations 3 to 6, and DF-GAN's hinge with its gradient penalty.

The discriminator's loss is r + ½·(w + f): right pairs (a real image and its caption), wrong pairs (a real image and a caption of another
concept) and fakes (a drawn image and its caption). Equation 3 prints the wrong pairs with log D, and ½ on them alone; the sentence
below it has r + (w + f)·0.5, which is taken, with log(1 − D) for both. Of a label y the cross-entropy of a logit stands for −log D where
y is 1 and −log(1 − D) where it is 0, so labels may be soft. The generator minimises −log D(fake), the form that does not saturate, plus
λ times the KL divergence of its condition.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dalle.config import StackGANObjective
from dalle.models.stackgan.discriminator import Discriminator
from dalle.models.stackgan.generators import Generator

_SPREAD_PX = 8
"""Side of the maps in which spread is measured."""


def draw(model: Generator, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images fp32 [B, 3, Y, X] in [−1, 1] of a batch's captions and noise, and mean and log variance of their condition. What is put into
    the batch as `drawn` before the players move is drawn once for both, with the gradients that the generator's move needs."""
    return model(batch["text_BE"], batch["noise_BZ"], batch["epsilon_BC"], batch.get("low_BCYX"))


class DiscriminatorObjective(nn.Module):
    """The discriminator's loss, on fakes through which no gradients go.

    Args:
        model: the discriminator
        against: the generator, which is not part of this module
        config: which loss
    """

    def __init__(self, model: Discriminator, against: Generator, config: StackGANObjective):
        super().__init__()
        self.model, self.config = model, config
        self._against = (against,)  # in a tuple PyTorch does not take it for a part

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss and its parts, scalar tensors.

        Args:
            batch: `images_BCYX` uint8; `text_BE` of its captions and `wrong_text_BE` of others, `has_wrong_B`, 1 where there is one;
                `noise_BZ` and `epsilon_BC`, standard normal; `real_labels_B`, `wrong_labels_B` and `fake_labels_B`; in stage two
                `low_BCYX`, stage one's images. `drawn`, where it is there, is what `draw` makes of it
        """
        (against,), config, model = self._against, self.config, self.model
        real_BCYX = signed(batch["images_BCYX"])
        text_BE, wrong_BE = batch["text_BE"], batch["wrong_text_BE"]
        with torch.no_grad():
            fake_BCYX = (batch.get("drawn") or draw(against, batch))[0].detach()
            if model.text is None:
                text_BE, wrong_BE = (against.conditioning(each_BE)[0] for each_BE in (text_BE, wrong_BE))
        features_BCYX = model.features(real_BCYX)
        fake_features_BCYX = model.features(fake_BCYX)
        right_B, wrong_B = (model.judge(features_BCYX, each_BE) for each_BE in (text_BE, wrong_BE))
        fake_B = model.judge(fake_features_BCYX, text_BE)
        real_labels_B, fake_labels_B = batch["real_labels_B"], batch["fake_labels_B"]
        right = self._loss(right_B, real_labels_B)
        # a row without a wrong caption has no such term
        wrong = self._loss(wrong_B, batch["wrong_labels_B"], batch["has_wrong_B"])
        fake = self._loss(fake_B, fake_labels_B)
        loss = right + 0.5 * (wrong + fake)
        metrics = {"right": right, "wrong": wrong, "fake": fake, "has_wrong": batch["has_wrong_B"].mean()}
        if model.unconditional is not None:
            alone = self._loss(model.judge_image(features_BCYX), real_labels_B)
            alone = alone + self._loss(model.judge_image(fake_features_BCYX), fake_labels_B)
            loss = loss + config.unconditional_weight * alone
            metrics["unconditional"] = alone
        if config.penalty_weight > 0:
            penalty = gradient_penalty(model, real_BCYX, text_BE, config.penalty_exponent)
            loss = loss + config.penalty_weight * penalty
            metrics["penalty"] = penalty
        metrics["believed_real"], metrics["believed_fake"] = (right_B > 0).float().mean(), (fake_B > 0).float().mean()
        return loss, {"loss": loss.detach()} | {name: value.detach() for name, value in metrics.items()}

    def _loss(
        self, logits_B: torch.Tensor, labels_B: torch.Tensor, weights_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean over the batch, each row by its weight."""
        if self.config.loss == "hinge":
            losses_B = F.relu(1 - (2 * labels_B - 1) * logits_B)
        else:
            losses_B = F.binary_cross_entropy_with_logits(logits_B, labels_B, reduction="none")
        return (losses_B if weights_B is None else weights_B * losses_B).mean()


class GeneratorObjective(nn.Module):
    """The generator's loss: drawn images are to be taken for real ones of their captions.

    Args:
        model: the generator
        against: the discriminator, which is not part of this module; what it is called for leaves gradients with it, unless its
            parameters want none
        config: which loss
    """

    def __init__(self, model: Generator, against: Discriminator, config: StackGANObjective):
        super().__init__()
        self.model, self.config = model, config
        self._against = (against,)

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss and its parts, scalar tensors.

        Args:
            batch: as the discriminator's
        """
        (against,), config = self._against, self.config
        fake_BCYX, mean_BC, log_variance_BC = batch.get("drawn") or draw(self.model, batch)
        # as the family has it: the condition is not moved by what the discriminator makes of it
        text_BE = mean_BC.detach() if against.text is None else batch["text_BE"]
        features_BCYX = against.features(fake_BCYX)
        adversarial = self._loss(against.judge(features_BCYX, text_BE))
        kl = kl_divergence(mean_BC, log_variance_BC)
        loss = adversarial + config.kl_weight * kl
        if against.unconditional is not None:
            loss = loss + config.unconditional_weight * self._loss(against.judge_image(features_BCYX))
        with torch.no_grad():
            # of pixels: batch normalisation would make features of images that are all but alike differ as much as any
            real = spread(signed(batch["images_BCYX"]))
            metrics = {"adversarial": adversarial, "kl": kl, "spread": spread(fake_BCYX) / real.clamp(min=1e-8)}
        return loss, {"loss": loss.detach()} | {name: value.detach() for name, value in metrics.items()}

    def _loss(self, logits_B: torch.Tensor) -> torch.Tensor:
        return -logits_B.mean() if self.config.loss == "hinge" else F.softplus(-logits_B).mean()


def signed(images_BCYX: torch.Tensor) -> torch.Tensor:
    """uint8 images as fp32 in [−1, 1], where tanh has them."""
    return images_BCYX.float() / 127.5 - 1


def kl_divergence(mean_BC: torch.Tensor, log_variance_BC: torch.Tensor) -> torch.Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) in nats, averaged over batch and numbers, as the family weighs it."""
    return 0.5 * (mean_BC.square() + log_variance_BC.exp() - 1 - log_variance_BC).mean()


def gradient_penalty(
    model: Discriminator, images_BCYX: torch.Tensor, text_BE: torch.Tensor, exponent: float
) -> torch.Tensor:
    """DF-GAN's matching-aware zero-centred gradient penalty: ‖∇ D‖ᵖ at real images with their own captions, averaged over the batch, in
    fp32 whatever the run's precision. The norm is that of the gradients by pixels and by embedding laid end to end, as in
    DF-GAN's code; its paper adds two norms.

    Args:
        model: the discriminator, without batch normalisation, through which one image would depend on the others
        images_BCYX: real ones, in [−1, 1]
        text_BE: of their own captions
        exponent: p
    """
    with torch.autocast(images_BCYX.device.type, enabled=False):
        images_BCYX, text_BE = (each.detach().float().requires_grad_() for each in (images_BCYX, text_BE))
        judged = model(images_BCYX, text_BE).sum()
        gradients = torch.autograd.grad(judged, (images_BCYX, text_BE), create_graph=True)
        squares_B = sum(gradient.flatten(1).square().sum(dim=1) for gradient in gradients)
        # p/2 on the square: the root has no finite gradient at 0
        return (squares_B ** (exponent / 2)).mean()


def spread(maps_BCYX: torch.Tensor) -> torch.Tensor:
    """How much images, or their features, differ from one another: the variance over the batch of their numbers at 8×8, or where they
    are smaller as they are, averaged over these. 0 where all are the same."""
    small_BCYX = F.adaptive_avg_pool2d(maps_BCYX.float(), min(_SPREAD_PX, maps_BCYX.shape[-1]))
    return small_BCYX.var(dim=0, correction=0).mean()
