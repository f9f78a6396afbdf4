"""Both ways to orthonormal columns against NumPy's QR in double precision, of what gradients may be."""

import numpy as np
import pytest
import torch

from dalle.gradients.orthogonal import cholesky, householder, orthonormal

ROWS, COLUMNS = 40, 12


def _cases() -> dict[str, torch.Tensor]:
    """Two matrices of each kind [2, S, K]."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(2, ROWS, COLUMNS, generator=g)
    rank_one = torch.randn(2, ROWS, 1, generator=g) @ torch.randn(2, 1, COLUMNS, generator=g)
    few_rows = torch.cat([1e3 * torch.randn(2, 3, COLUMNS, generator=g), torch.zeros(2, ROWS - 3, COLUMNS)], dim=1)
    falling = normal * 10.0 ** -torch.arange(COLUMNS)
    cases = {"normal": normal, "small": 1e-4 * normal, "large": 1e20 * normal, "falling": falling}
    cases["large, of rank one"] = 1e6 * rank_one  # of condition 1e14: too much for a Gram matrix without a shift
    return cases | {
        "zero": torch.zeros_like(normal),
        "rank one": rank_one,
        "few rows": few_rows,
        "tiny": 1e-30 * normal,
    }


CASES = _cases()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", [cholesky, householder])
def test_columns_are_orthonormal_and_span_the_same(way, name):
    found_NSK = way(CASES[name])
    assert found_NSK.dtype == torch.float32
    for found_SK, matrix_SK in zip(found_NSK.double().numpy(), CASES[name].double().numpy(), strict=True):
        np.testing.assert_allclose(found_SK.T @ found_SK, np.eye(COLUMNS), atol=1e-6)  # rounded to fp32
        spanned_SK = matrix_SK + 1e-6 * np.eye(ROWS, COLUMNS)
        lost_SK = spanned_SK - found_SK @ (found_SK.T @ spanned_SK)
        # fp32's rounding of the columns, and in Householder's of the sum
        assert np.abs(lost_SK).max() <= 4e-6 * np.abs(spanned_SK).max()
        if way is cholesky:
            # in double precision it is the very space; in fp32 that moves by a rounding over the least singular value
            q_SK, _ = np.linalg.qr(spanned_SK)
            np.testing.assert_allclose(found_SK @ found_SK.T, q_SK @ q_SK.T, atol=1e-6)


def test_columns_without_a_direction_of_their_own_are_replaced():
    """Exactly singular, 1e-6 · I included: what comes is orthonormal all the same, and the others do not mind."""
    singular = torch.zeros(1, ROWS, COLUMNS, dtype=torch.float64)
    singular[0, 0, 0] = -1e-6
    found = cholesky(torch.cat([singular, CASES["normal"][:1].double()]))
    assert torch.equal(found[0], torch.eye(ROWS, COLUMNS))
    torch.testing.assert_close(found[1:], cholesky(CASES["normal"][:1]))


def test_what_is_not_finite_stays_so_and_alone():
    matrices = CASES["normal"].clone()
    matrices[0, 3, 2] = torch.inf
    found = orthonormal(matrices)
    assert found[0].isnan().all()
    assert torch.equal(found[1:], orthonormal(CASES["normal"][1:]))


def test_no_matrices_are_none():
    for way in (cholesky, householder, orthonormal):
        assert way(torch.zeros(0, ROWS, COLUMNS)).shape == (0, ROWS, COLUMNS)
