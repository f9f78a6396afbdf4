"""The 16-bit formats against a slow reference that knows nothing of bits: exact fractions and a search."""

import bisect
import functools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dalle.gradients import lowbit
from dalle.gradients.lowbit import ONE_SIX_NINE, ZERO_SIX_TEN, Format

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMATS = pytest.mark.parametrize("format", [ONE_SIX_NINE, ZERO_SIX_TEN], ids=["1-6-9", "0-6-10"])


@functools.cache
def _magnitudes(format: Format) -> list[float]:
    """The values of all codes without a sign, in the order of the codes, from the definition of such a format."""
    significands, values = 2**format.significand_bits, []
    for code in range(2 ** (16 - format.sign_bits)):
        exponent, significand = divmod(code, significands)
        leading = significands if exponent else 0
        values.append(math.ldexp(leading + significand, max(exponent, 1) - format.bias - format.significand_bits))
    return values


def _reference_code(format: Format, x: float) -> int:
    """The nearest code as an unsigned number."""
    negative = math.copysign(1, x) < 0
    if negative and not format.sign_bits:
        return 0
    if math.isnan(x):
        return 2**15 * negative
    values = _magnitudes(format)
    above = bisect.bisect_left(values, abs(x))
    if above == len(values):
        code = above - 1
    elif above == 0:
        code = 0
    else:
        down, up = Fraction(abs(x)) - Fraction(values[above - 1]), Fraction(values[above]) - Fraction(abs(x))
        code = above - 1 if down < up or (down == up and above % 2) else above
    return code + 2**15 * negative


def _all_codes() -> torch.Tensor:
    return torch.arange(2**16).to(torch.int16).to(DEVICE)  # wraps round


def _check(format: Format, x: np.ndarray) -> None:
    """Encoding agrees with the reference in all of x."""
    found = format.encode(torch.from_numpy(x).to(DEVICE)).cpu().numpy().view(np.uint16)
    expected = np.array([_reference_code(format, value) for value in x.tolist()], dtype=np.uint16)
    wrong = np.flatnonzero(found != expected)
    assert not wrong.size, [(x[i], hex(found[i]), hex(expected[i])) for i in wrong[:5]]


@FORMATS
def test_every_code_is_decoded_exactly_and_encoded_again(format):
    values = format.decode(_all_codes())
    expected = _magnitudes(format)
    expected = [*expected, *(-value for value in expected)] if format.sign_bits else expected
    # by bits, for −0 is a code of its own
    assert np.array_equal(values.cpu().numpy().view(np.int32), np.array(expected, np.float32).view(np.int32))
    assert torch.equal(format.encode(values), _all_codes())


@FORMATS
def test_rounding_is_to_the_nearest_and_to_even_between_two(format):
    values = np.array(_magnitudes(format))
    # between all neighbours, the smallest value and zero included; 24 bits hold the midpoints
    midpoints = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    assert np.array_equal(midpoints.astype(np.float64) * 2, values[1:] + values[:-1])
    for x in (midpoints, np.nextafter(midpoints, np.float32(0)), np.nextafter(midpoints, np.float32(99))):
        _check(format, x)
    for x in (midpoints[::37], np.nextafter(values[::37].astype(np.float32), np.float32(99))):
        _check(format, -x)


@FORMATS
def test_what_no_code_is_near(format):
    inf, largest, tiny = math.inf, format.largest, format.smallest_normal * 2.0**-format.significand_bits
    assert largest == _magnitudes(format)[-1] and 15.98 < largest < 16
    assert format.smallest_normal == 2.0**-59 and tiny == _magnitudes(format)[1]
    # fp32's own largest, smallest normal and smallest; half of the smallest value is rounded to 0, for 0 is even
    x = [inf, 3.4e38, 16.0, 17.5, largest * 1.0001, 1.2e-38, 1e-45, tiny / 2, tiny * 0.51, 0.0, math.nan]
    _check(format, np.array([*x, *(-value for value in x)], np.float32))
    negative_nan = torch.tensor([-1], dtype=torch.int32).view(torch.float32)
    assert format.decode(format.encode(negative_nan.to(DEVICE))).item() == 0
    assert format.decode(format.encode(torch.tensor([inf, 1e-45], device=DEVICE))).tolist() == [largest, 0]
    negative = format.decode(format.encode(torch.tensor([-inf, -1.0], device=DEVICE))).tolist()
    assert negative == ([-largest, -1] if format.sign_bits else [0, 0])


@FORMATS
def test_any_fp32_number(format):
    # all signs, exponents and significands alike, most of them out of range
    _check(format, np.random.default_rng(0).integers(-(2**31), 2**31, 20_000).astype(np.int32).view(np.float32))
    in_range = np.ldexp(
        np.random.default_rng(1).uniform(-2, 2, 20_000), np.random.default_rng(2).integers(-72, 5, 20_000)
    )
    _check(format, in_range.astype(np.float32))


class _Largest(TorchDispatchMode):
    """Within, notes the most elements of a tensor that an operator gives."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        fresh = isinstance(out, torch.Tensor) and not function.is_view and not any(out is arg for arg in args)
        self.numel = max(self.numel, out.numel() if fresh else 0)
        return out


@FORMATS
def test_large_tensors_are_taken_piece_by_piece(format):
    piece = lowbit._PIECE[DEVICE.type]
    x = torch.randn(3, piece + 7, device=DEVICE)
    codes, values = torch.empty_like(x, dtype=torch.int16), torch.empty_like(x)
    with _Largest() as largest:
        assert format.encode(x, out=codes) is codes
        assert format.decode(codes, out=values) is values
    assert largest.numel == piece
    for row in range(3):
        assert torch.equal(codes[row], format.encode(x[row]))
    # half of the last of 10 or 11 bits, relative to the value
    positive = x > 0
    assert ((values - x).abs() <= x * 2.0 ** -(format.significand_bits + 1))[positive].all()
    # another order in memory, no dimensions, nothing at all
    assert torch.equal(format.encode(x.t()), codes.t()) and torch.equal(format.decode(codes.t()), values.t())
    assert format.encode(torch.tensor(1.5, device=DEVICE)).shape == ()
    assert format.decode(torch.empty(0, 4, dtype=torch.int16, device=DEVICE)).shape == (0, 4)


@FORMATS
def test_compiled_is_eager(format):
    x = torch.randn(1000, device=DEVICE) * torch.logspace(-25, 3, 1000, device=DEVICE)
    x[:4] = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    # traced as a whole, run by PyTorch's own kernels where building others takes long
    backend = "inductor" if DEVICE.type == "cuda" else "aot_eager"
    encode, decode = (torch.compile(f, fullgraph=True, backend=backend) for f in (format.encode, format.decode))
    codes = format.encode(x)
    assert torch.equal(encode(x), codes)
    assert torch.equal(decode(codes).view(torch.int32), format.decode(codes).view(torch.int32))
