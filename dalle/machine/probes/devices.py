"""PyTorch and what it computes on: does it load, which GPUs does it see, are products right in each precision?"""

from __future__ import annotations

import platform
import warnings
from functools import partial
from typing import Any

from dalle.machine.asking import telling

_SIDE = 256
_RATE_SIDE = 1024
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main() -> None:
    """Tell PyTorch's version, its GPUs, and how far products are off."""
    with telling() as tell:
        import torch

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            is_there = torch.cuda.is_available()
        tell(
            {
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "hip": torch.version.hip,
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "said": [" ".join(str(each.message).split()) for each in said],
            }
        )
        gpus = torch.cuda.device_count() if is_there else 0
        for number in range(gpus):
            tell({f"gpu{number}": _gpu(torch, number)})
        tell({"gpus": gpus})
        tell({"cpu": {"off": _off(torch, "cpu"), "rates": {} if gpus else _rates(torch)}})


def _gpu(torch: Any, number: int) -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(number)
    capability = torch.cuda.get_device_capability(number)
    free, total = torch.cuda.mem_get_info(number)
    return {
        "name": facts.name,
        "capability": list(capability),
        "free_bytes": free,
        "total_bytes": total,
        "built_for": torch.cuda.get_arch_list(),
        "off": _off(torch, f"cuda:{number}"),
    }


def _off(torch: Any, device: str) -> dict[str, float | str]:
    """Of a product in each precision: how far it is from that in fp64, as a share of its largest number; or what went wrong."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(_SIDE, _SIDE, generator=generator, dtype=torch.float64) for _ in range(2))
    off: dict[str, float | str] = {}
    for name, of_torch in PRECISIONS.items():
        dtype = getattr(torch, of_torch)
        # of the numbers as they are rounded, so that the product alone is judged
        expected = a.to(dtype).double() @ b.to(dtype).double()
        try:
            found = (a.to(device, dtype) @ b.to(device, dtype)).double().cpu()
        except RuntimeError as error:
            off[name] = " ".join(str(error).split())[:200]
            continue
        off[name] = ((found - expected).abs().max() / expected.abs().max()).item()
    return {name: value if isinstance(value, str) or value == value else "is no number" for name, value in off.items()}


def _rates(torch: Any) -> dict[str, float]:
    """Floating-point operations a second of the CPU."""
    from dalle.reporting.machine_limit import best_rate

    rates = {}
    for name in ("fp32", "bf16"):
        dtype = getattr(torch, PRECISIONS[name])
        a, b = (torch.randn(_RATE_SIDE, _RATE_SIDE).to(dtype) for _ in range(2))
        rates[name] = best_rate(partial(torch.matmul, a, b), 2 * _RATE_SIDE**3, torch.device("cpu"))
    return rates


if __name__ == "__main__":
    main()
