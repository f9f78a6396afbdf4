"""The relaxed codes of stage one (appendix A.2) and their KL, in the memory that they cannot do without.

At 256² a tensor over 8192 codes × 32×32 positions is 33.5 MB an image in fp32. Between the forward and the backward pass
this keeps two of them, the logits and the relaxed codes, which are the decoder's input anyway; at most four are alive at a
time in the forward pass and six in the backward pass. Plain operations keep four. `relaxed_codes_reference` is the
plain form. All of it is fp32, under autocast too.
"""

from __future__ import annotations

from typing import Any

import torch


def relaxed_codes_reference(
    logits_BYXK: torch.Tensor,
    uniform_BYXK: torch.Tensor,
    temperature: torch.Tensor,
    noise_scale: torch.Tensor,
    log_prior_K: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Relaxed one-hot codes (Jang et al., 2016; Maddison et al., 2016) and the KL of the plain softmax.

    Args:
        logits_BYXK: [B, Y, X, K] fp32
        uniform_BYXK: uniform random numbers in (0, 1), of the same shape
        temperature: τ, a scalar tensor
        noise_scale: factor on the gumbel noise, a scalar tensor
        log_prior_K: ln p of every code

    Returns:
        softmax((logits + noise_scale · gumbel) / τ), [B, Y, X, K]; and KL(softmax(logits) ‖ p) in nats, [B, Y, X]
    """
    # uniform numbers and two logarithms: drawing exponentials costs five times as much on a CPU
    gumbel_BYXK = -(-uniform_BYXK.log()).log()
    z_BYXK = ((logits_BYXK + noise_scale * gumbel_BYXK) / temperature).softmax(dim=-1)
    log_q_BYXK = logits_BYXK.log_softmax(dim=-1)
    return z_BYXK, (log_q_BYXK.exp() * (log_q_BYXK - log_prior_K)).sum(dim=-1)


def relaxed_codes(
    logits_BYXK: torch.Tensor,
    uniform_BYXK: torch.Tensor,
    temperature: torch.Tensor,
    noise_scale: torch.Tensor,
    log_prior_K: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`relaxed_codes_reference` with a backward pass that recomputes what is cheap. The last dimension should be the
    contiguous one, as it is of logits in channels-last memory."""
    with torch.autocast(logits_BYXK.device.type, enabled=False):
        return _RelaxedCodes.apply(logits_BYXK, uniform_BYXK, temperature, noise_scale, log_prior_K)


class _RelaxedCodes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_BYXK: torch.Tensor,
        uniform_BYXK: torch.Tensor,
        temperature: Any,
        noise_scale: Any,
        log_prior_K: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log_sum_BYX1 = logits_BYXK.logsumexp(dim=-1, keepdim=True)
        q_BYXK = (logits_BYXK - log_sum_BYX1).exp_()
        kl_BYX = _dot(q_BYXK, logits_BYXK - log_prior_K) - log_sum_BYX1[..., 0]
        del q_BYXK
        z_BYXK = uniform_BYXK.log().neg_().log_().mul_(-noise_scale).add_(logits_BYXK).div_(temperature).softmax(dim=-1)
        ctx.save_for_backward(logits_BYXK, log_sum_BYX1, z_BYXK, kl_BYX, temperature, log_prior_K)
        return z_BYXK, kl_BYX

    @staticmethod
    def backward(ctx: Any, dz_BYXK: torch.Tensor, dkl_BYX: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits_BYXK, log_sum_BYX1, z_BYXK, kl_BYX, temperature, log_prior_K = ctx.saved_tensors
        # no matrix products here: a compiled backward pass would run them in the forward pass's 16 bits
        dlogits_BYXK = (dz_BYXK - _dot(dz_BYXK, z_BYXK)[..., None]).mul_(z_BYXK).div_(temperature)
        # d kl / d logits = q · (ln q − ln p − kl)
        dq_BYXK = (logits_BYXK - log_sum_BYX1).exp_().mul_(dkl_BYX[..., None])
        dprior_K = -dq_BYXK.sum(dim=(0, 1, 2)) if ctx.needs_input_grad[4] else None
        dlogits_BYXK.addcmul_(dq_BYXK, (logits_BYXK - log_prior_K).sub_(log_sum_BYX1 + kl_BYX[..., None]))
        return dlogits_BYXK, None, None, None, dprior_K


def _dot(a_BYXK: torch.Tensor, b_BYXK: torch.Tensor) -> torch.Tensor:
    """Σ over codes of the products, [B, Y, X]. Not `vecdot`, which autocast takes for a matrix product."""
    return (a_BYXK * b_BYXK).sum(dim=-1)
