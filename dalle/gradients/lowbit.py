"""The paper's 16-bit formats for Adam's moments and for what machines exchange: 1-6-9 and 0-6-10 (appendices B.2, D, E).

The three numbers are the bits of sign, exponent and significand. Against float16 they trade significand for exponent,
and fp32's exponent for half its bytes. The paper gives the widths; the bias follows from its largest value, just under
16. No code stands for an infinity or NaN, and exponent 0 is subnormal, as in IEEE 754.

Codes are kept in int16, for which PyTorch has operators (it has few for uint16): the sign is the highest bit of 1-6-9,
and a 0-6-10 code of 32,768 or more appears negative. A code of zero bits is the value 0, so zeroed codes are zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

_SIGNIFICAND_BITS = 23  # of fp32
_BIAS = 127
_INFINITY = 0xFF << _SIGNIFICAND_BITS
_MAGNITUDE = 0x7FFFFFFF  # all but the sign

_PIECE = {"cpu": 2**16, "cuda": 2**22}
"""Values at a time, by device: the int32 numbers on the way from fp32 to codes then stay in a core's cache, or take no more
than some 100 MB of a GPU's memory."""


@dataclass(frozen=True)
class Format:
    """A 16-bit floating-point format: ±2^(exponent − bias) · 1.significand.

    Args:
        sign_bits: 1, or 0 for a format without negative values
        exponent_bits: of the exponent
        significand_bits: what remains of 16
        bias: of the exponent; no value may be subnormal in fp32
    """

    sign_bits: int
    exponent_bits: int
    significand_bits: int
    bias: int

    @property
    def largest(self) -> float:
        """The largest value."""
        return 2.0 ** (2**self.exponent_bits - 1 - self.bias) * (2 - 2.0**-self.significand_bits)

    @property
    def smallest_normal(self) -> float:
        """The smallest positive value with all its significand bits."""
        return 2.0 ** (1 - self.bias)

    def encode(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The codes of the nearest values; of two that are equally near, the one whose last bit is 0.

        What lies beyond the largest value, infinities included, becomes the largest value of that sign. NaN becomes 0 (or
        −0), so whoever needs to know of NaNs has to look before. Without a sign bit, what is negative becomes 0.

        Args:
            x: fp32
            out: int16 of the same shape, contiguous, to be filled; None makes one

        Returns:
            int16, the codes
        """
        if out is None:
            out = torch.empty_like(x, dtype=torch.int16, memory_format=torch.contiguous_format)
        assert (x.dtype, out.dtype, out.shape) == (torch.float32, torch.int16, x.shape)
        for source, target in _pieces(x, out):
            target.copy_(self._codes(source))
        return out

    def decode(self, codes: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The values of codes, without rounding.

        Args:
            codes: int16
            out: fp32 of the same shape, contiguous, to be filled; None makes one

        Returns:
            fp32
        """
        if out is None:
            out = torch.empty_like(codes, dtype=torch.float32, memory_format=torch.contiguous_format)
        assert (codes.dtype, out.dtype, out.shape) == (torch.int16, torch.float32, codes.shape)
        for source, target in _pieces(codes, out):
            target.copy_(self._values(source))
        return out

    @property
    def _dropped_bits(self) -> int:
        """By how many bits the significand is shorter than fp32's."""
        return _SIGNIFICAND_BITS - self.significand_bits

    @property
    def _rebias(self) -> int:
        """What a code without its sign, shifted to fp32's place, lacks to be the fp32 number of a normal value."""
        return (_BIAS - self.bias) << _SIGNIFICAND_BITS

    def _codes(self, x: torch.Tensor) -> torch.Tensor:
        """As int32, in the range of int16, so that the conversion to it is the same everywhere."""
        # a product, since compilers of some versions of PyTorch shift no number by one that they hold for a variable
        largest = (2 ** (self.exponent_bits + self.significand_bits) - 1) * 2**self._dropped_bits + self._rebias
        smallest_normal = (1 << _SIGNIFICAND_BITS) + self._rebias
        bits = x.view(torch.int32)
        magnitude = bits & _MAGNITUDE if self.sign_bits else bits.clamp(min=0)
        magnitude = magnitude.masked_fill_(magnitude > _INFINITY, 0).clamp_(max=largest)
        # the binade each value is rounded in: the power of two below it, for subnormals that of the smallest normal
        binade = magnitude.clamp(min=smallest_normal).bitwise_and_(_INFINITY)
        # A number so much larger has the wanted last bit as its own, so that the addition rounds. Both come from integers,
        # so that no compiler contracts the addition with what made x.
        larger = binade + (self._dropped_bits << _SIGNIFICAND_BITS)
        significand = (magnitude.view(torch.float32) + larger.view(torch.float32)).view(torch.int32).sub_(larger)
        # the significand still has its leading 1, and carries into the exponent when it was rounded up to a power of two
        codes = significand.add_(binade.sub_(smallest_normal).bitwise_right_shift_(self._dropped_bits))
        if self.sign_bits:
            return codes.bitwise_or_((bits >> 16).bitwise_and_(-0x8000))
        return codes.bitwise_left_shift_(16).bitwise_right_shift_(16)

    def _values(self, codes: torch.Tensor) -> torch.Tensor:
        codes = codes.to(torch.int32)
        magnitude = codes & (0x7FFF if self.sign_bits else 0xFFFF)
        normal = magnitude.bitwise_left_shift_(self._dropped_bits).add_(self._rebias).view(torch.float32)
        # Exponent 0 has no leading 1 and the scale of exponent 1: twice what was read, less that 1. Of the two readings it
        # is the smaller one there, and nowhere else.
        values = torch.minimum(normal, (normal - self.smallest_normal).add_(normal))
        if self.sign_bits:  # by its bit: 0 − x, which some compilers make of −x, loses that of −0
            sign = codes.bitwise_left_shift_(16).bitwise_and_(-0x80000000)
            values = values.view(torch.int32).bitwise_or_(sign).view(torch.float32)
        return values


def _pieces(source: torch.Tensor, target: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both flat, a piece at a time; in one where it is compiled, which makes one kernel of it without temporaries."""
    source, target = source.reshape(-1), target.view(-1)
    size = max(1, source.numel()) if torch.compiler.is_compiling() else _PIECE[source.device.type]
    return zip(source.split(size), target.split(size), strict=True)


ONE_SIX_NINE = Format(sign_bits=1, exponent_bits=6, significand_bits=9, bias=60)
"""For the running mean, PowerSGD's P and Q, and its error buffers."""
ZERO_SIX_TEN = Format(sign_bits=0, exponent_bits=6, significand_bits=10, bias=60)
"""For the running variance, which is never negative."""
