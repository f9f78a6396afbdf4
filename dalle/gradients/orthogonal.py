"""Orthonormal columns for the P of many matrices at once (appendix E, step 5).

On a CPU they are Householder's, as the paper's. On CUDA PyTorch has those of matrices of more than 256 rows one after the
other only, so there they are made by what is batched and waits for nothing: products, Cholesky factors and triangular solves.
That is Cholesky QR three times over, the first time with a shift (Fukaya et al., 2020), in double precision. It spans the
same columns with the same orthonormality as long as the smallest singular value is above some 1e-14 of the largest, which
the 1e-6 · I sees to for whatever has been seen of gradients.
"""

from __future__ import annotations

import torch

_IDENTITY = 1e-6
_ROUNDING = 2.0**-53
_TOLERANCE = 1e-3
"""Columns that are further from orthonormal than this are none; rounded to 16 bits they are off by as much."""


def orthonormal(matrices_NSK: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span those of each matrix + 1e-6 · I.

    Args:
        matrices_NSK: fp32, no more columns than rows

    Returns:
        fp32 [N, S, K]; not a number where a matrix is not finite
    """
    # a number that is not finite would end the process in some implementations
    usable_N11 = matrices_NSK.sum(dim=(1, 2), keepdim=True).isfinite()
    usable_NSK = matrices_NSK.where(usable_N11, 0)
    found_NSK = cholesky(usable_NSK) if matrices_NSK.is_cuda else householder(usable_NSK)
    return found_NSK.where(usable_N11, torch.nan)


def householder(matrices_NSK: torch.Tensor) -> torch.Tensor:
    """By reflections, one matrix after the other."""
    identity_SK = torch.eye(*matrices_NSK.shape[1:], device=matrices_NSK.device)
    return torch.linalg.qr(matrices_NSK + _IDENTITY * identity_SK).Q


def cholesky(matrices_NSK: torch.Tensor) -> torch.Tensor:
    """By Cholesky factors of Gram matrices, all matrices together. Columns that do not come out orthonormal are those of I:
    what is compressed with them is compressed badly, and waits in the error buffer."""
    rows, columns = matrices_NSK.shape[1:]
    identity_SK = torch.eye(rows, columns, dtype=torch.float64, device=matrices_NSK.device)
    # in double precision 1e-6 is not lost beside large numbers
    x_NSK = matrices_NSK.double() + _IDENTITY * identity_SK
    for repeat in range(3):
        gram_NKK = x_NSK.mT @ x_NSK
        if repeat == 0:
            # 11 (SK + K(K + 1)) u ‖X‖², with Frobenius' norm for the largest singular value
            diagonal_NK = gram_NKK.diagonal(dim1=1, dim2=2)
            shift = 11 * (rows * columns + columns * (columns + 1)) * _ROUNDING
            diagonal_NK += shift * diagonal_NK.sum(dim=1, keepdim=True)
        factor_NKK, _ = torch.linalg.cholesky_ex(gram_NKK)
        x_NSK = torch.linalg.solve_triangular(factor_NKK, x_NSK.mT, upper=False).mT
    off_NKK = x_NSK.mT @ x_NSK - identity_SK[:columns]
    good_N11 = off_NKK.abs().amax(dim=(1, 2), keepdim=True) < _TOLERANCE  # never of what is not a number
    return x_NSK.where(good_N11, identity_SK).float()
