"""Seeds of what is drawn in a run, each a function of numbers that a resumed run knows."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, step: int, number: int) -> int:
    """63 bits that look random, whatever the size of the three; the number is a rank's or a sample's."""
    digest = hashlib.blake2b(f"{seed} {step} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
