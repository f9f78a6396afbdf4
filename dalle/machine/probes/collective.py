"""One of the processes of a group: its place in the environment, as a launcher would give it, and a sum over all of them."""

from __future__ import annotations

import time

from dalle.machine.asking import telling


def main() -> None:
    """Tell the sum of the ranks' numbers, 1 for the first, 10 for the second and so on, in seconds from when all were there."""
    with telling() as tell:
        import torch

        from dalle.cluster.topology import joined

        with joined(silence_limit_s=30) as world:
            number = torch.full((1 << 16,), float(10**world.rank), device=world.device)
            world.barrier()
            began_s = time.monotonic()
            total = world.sum(number)
            found = sorted(set(total.tolist()))
            took_s = time.monotonic() - began_s
            backend = "NCCL" if world.device.type == "cuda" else "gloo"
            tell({"sums": found, "seconds": took_s, "backend": backend, "size": world.size})


if __name__ == "__main__":
    main()
