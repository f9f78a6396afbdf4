"""The kernels in C++ that sampling uses on a CPU: are they compiled, where, and do they give what the plain ones give?"""

from __future__ import annotations

import time
import warnings
from typing import Any

from dalle.machine.asking import telling


def main() -> None:
    """Tell of the compiler, the folder, and how far the kernels are off."""
    with telling() as tell:
        from dalle.decoding import native

        tell({"compiler": native.compiler(), "wanted_folder": str(native.cache_folder())})
        began_s = time.monotonic()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            library = native.library()
        tell({"seconds": time.monotonic() - began_s, "said": [" ".join(str(each.message).split()) for each in said]})
        if library is not None:
            tell({"place": str(native.place()), "off": _off()})


def _off() -> dict[str, float]:
    """Of each kernel and precision: the greatest difference from the plain form in fp32, of values about 1."""
    import torch

    from dalle.decoding.caches import LayerCache
    from dalle.decoding.kernels import Kernels, NativeKernels
    from dalle.masks import cache_places

    heads, width, text_slots, rows = 2, 64, 9, 4
    places = cache_places("row", 5)

    def cache(dtype: torch.dtype) -> LayerCache:
        generator = torch.Generator().manual_seed(0)
        shapes = [
            (1, heads, width, text_slots),
            (1, heads, text_slots, width),
            *2 * [(rows, heads, places.size, width)],
        ]
        return LayerCache(places, *(torch.randn(shape, generator=generator).to(dtype) for shape in shapes))

    norm = torch.nn.LayerNorm(width)
    slot_1 = torch.tensor([13])
    off = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        generator = torch.Generator().manual_seed(1)
        qkv = torch.randn(rows, 3, heads, width, generator=generator).to(dtype)
        x, change = (
            torch.randn(rows, width, generator=generator),
            torch.randn(rows, width, generator=generator).to(dtype),
        )
        with torch.no_grad():
            plain = Kernels().attend(qkv.float(), _widened(cache(dtype)), slot_1, *places.sight(slot_1))
            fast = NativeKernels().attend(qkv, cache(dtype), slot_1, *places.sight(slot_1))
            off[f"attention in {name}"] = _apart(fast, plain)
            plain = Kernels().add_norm(x.clone(), change.float(), norm, torch.float32)
            off[f"layer norm in {name}"] = _apart(NativeKernels().add_norm(x.clone(), change, norm, dtype), plain)
    return off


def _widened(cache: Any) -> Any:
    """The same numbers in fp32."""
    from dalle.decoding.caches import LayerCache

    tensors = (cache.text_k_CHKT, cache.text_v_CHTK, cache.k_RHPK, cache.v_RHPK)
    return LayerCache(cache.places, *(tensor.float() for tensor in tensors))


def _apart(found: Any, expected: Any) -> float:
    difference = (found.float() - expected).abs().max().item()
    return difference if difference == difference else float("inf")


if __name__ == "__main__":
    main()
