"""How candidates are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dalle.config.checks import at_most, require
from dalle.config.training import Precision


def check_shortlist(shortlist: int | None, n: int) -> None:
    """Raises ValueError unless so many of n candidates can be decoded."""
    require(shortlist is None or shortlist >= 1, f"shortlist {shortlist}: must be at least 1, or null for all")
    require(
        shortlist is None or shortlist <= n,
        f"shortlist {shortlist}: is more than n {n}, so all would be decoded; leave shortlist out, or raise n",
    )


DEFAULT_MODEL = "icons"
"""What draws where no model is named: it comes with the package."""
LEAST_TEMPERATURE = 1e-30
"""Logits that are divided by less may leave the range of fp32."""


@dataclass(frozen=True)
class Sampling:
    """How candidates are drawn.

    Args:
        temperature: divides the logits; null takes the one that the prior's folder says it was tuned for, or else 1, the
            paper's
        top_k: keep the k likeliest codes at each step; null keeps all
        top_p: keep the likeliest codes that together have this probability; null keeps all
        guidance: scale of classifier-free guidance (Ho and Salimans, 2022): logits without the caption, plus so many times
            the difference that the caption makes. 1 is none; another one takes twice the work, and is refused for a
            prior that was trained without `caption_dropout`. Null takes the one that the prior's folder says, or else 1
        chunk: candidates decoded together; null takes what the device's memory holds, 64 at most on a CPU and 512 on a GPU.
            Matrix products of another shape round differently, so the chunk has one width whatever n is, and is part of
            what an image can be made again from
        precision: precision of the matrix products; on a CPU bf16 also rounds the logits, to 8 bits
        compile: compiled kernels between the matrix products: by a C++ compiler on a CPU, by PyTorch's on a GPU
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    guidance: float | None = None
    chunk: int | None = None
    precision: Precision = "bf16"
    compile: bool = True

    def __post_init__(self) -> None:
        require(
            self.temperature is None or LEAST_TEMPERATURE <= self.temperature < math.inf,
            f"temperature {self.temperature}: must be at least {LEAST_TEMPERATURE} and finite (1 in the paper; top_k 1 takes the likeliest)",
        )
        require(self.top_k is None or self.top_k >= 1, f"top_k {self.top_k}: must be at least 1")
        require(self.top_p is None or 0 < self.top_p <= 1, f"top_p {self.top_p}: must lie in (0, 1]")
        require(
            self.guidance is None or 0 <= self.guidance < math.inf,
            f"guidance {self.guidance}: must be finite and not negative; 1 is none",
        )
        at_most(self, 2**20, "chunk")
        at_most(self, 2**24, "top_k")
        require(self.chunk is None or self.chunk >= 1, f"chunk {self.chunk}: must be at least 1")
