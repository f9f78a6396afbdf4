"""Images a second through the collector of measures, and whether its memory stays flat: small made-up images and a small network.

`ours` sums as images come, at all five blur radii. The peer, `keep_all`, does what libraries' functions ask for: it keeps
features and logits of all images at all radii until the end. The limit is the same blur and network with nothing kept.
`peaks` are the most memory that a process of its own held with few images and with many, all figures included; what matters is
how it grows, since most of it is PyTorch and scikit-learn themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.sides import Side, case, peak_memory_bytes, running, seconds

_WIDTH, _CLASSES, _BATCH, _SAMPLE, _NUM_REFERENCE = 256, 100, 100, 1000, 1000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--images", type=int, default=30_000, help="that are many")
    parser.add_argument("--few", type=int, default=3_000, help="whose memory is compared with theirs")
    parser.add_argument("--size_px", type=int, default=32, help="their sides")
    parser.add_argument("--repeats", type=int, default=3, help="calls of each side that are counted")


def run(options: argparse.Namespace) -> list[dict]:
    """One case."""
    sizes = {"few": options.few, "many": options.images}
    builds = {
        name: partial(calls, sizes=sizes, size_px=options.size_px)
        for name, calls in (("ours", ours), ("keep_all", keep_all))
    }
    peaks = {
        name: {what: peak_memory_bytes(partial(Side, name, build, True), what) for what in sizes}
        for name, build in builds.items()
    }
    builds["limit"] = partial(nothing_kept, sizes=sizes, size_px=options.size_px)
    with running({name: partial(Side, name, build, True) for name, build in builds.items()}) as sides:
        times_s = seconds({name: partial(side.call, "collect") for name, side in sides.items()}, options.repeats)
    rates = {name: [options.images / took_s for took_s in values] for name, values in times_s.items()}
    limit = float(np.median(rates.pop("limit")))
    settings = {
        "images": options.images,
        "few": options.few,
        "size_px": options.size_px,
        "width": _WIDTH,
        "classes": _CLASSES,
        "sample": _SAMPLE,
        "batch": _BATCH,
        "threads": torch.get_num_threads(),
    }
    result = case("measures", "images/s", rates, limit, {name: peak["many"] for name, peak in peaks.items()}, settings)
    grown = {name: peak["many"] - peak["few"] for name, peak in peaks.items()}
    result |= {"peaks": peaks, "grown_bytes": grown}
    if not options.json:
        for name, peak in peaks.items():
            told = ", ".join(f"{size:,} images {peak[what] / 1e6:,.0f} MB" for what, size in sizes.items())
            print(f"peak memory of {name}: {told}; {grown[name] / 1e6:+,.0f} MB")
    return [result]


def ours(sizes: dict[str, int], size_px: int) -> dict[str, Callable[[], object]]:
    """The collector; `few` and `many` with all figures, `collect` without."""
    from dalle.evaluation.measures.collector import Collector
    from dalle.evaluation.measures.comparison import compare

    network = _network()

    def collect(count: int, seed: int = 0) -> Collector:
        collector = Collector(network, count, sample=_SAMPLE)
        for images_BYX3 in _images(count, size_px, seed):
            collector.add(images_BYX3)
        return collector

    reference = collect(_NUM_REFERENCE, seed=1)
    figures = {what: lambda count=count: compare(collect(count), reference) for what, count in sizes.items()}
    return figures | {"collect": lambda: collect(sizes["many"])}


def keep_all(sizes: dict[str, int], size_px: int) -> dict[str, Callable[[], object]]:
    """torch-fidelity's and prdc's functions on all features at once, kernel distance and prdc on as many as ours takes."""
    from dalle.evaluation.features.images import extra
    from dalle.evaluation.measures.blur import RADII_PX, blurred
    from dalle.evaluation.measures.distances import kernel_distance, neighbourhoods

    network = _network()
    fid, isc = extra("torch_fidelity.metric_fid"), extra("torch_fidelity.metric_isc")

    def collect(count: int, seed: int = 0) -> dict[float, list]:
        kept: dict[float, list] = {radius: [] for radius in RADII_PX}
        for images_BYX3 in _images(count, size_px, seed):
            for radius, seen in kept.items():
                seen.append(network(blurred(images_BYX3, radius)))
        return kept

    def compare(kept: dict[float, list]) -> dict[float, tuple]:
        found = {}
        for radius in RADII_PX:
            features, references = (
                np.concatenate([seen.features_BE for seen in of[radius]]) for of in (kept, reference)
            )
            logits = np.concatenate([seen.logits_BK for seen in kept[radius]])
            told = [fid.fid_features_to_statistics(torch.from_numpy(x).double()) for x in (features, references)]
            found[radius] = (
                fid.fid_statistics_to_metric(*told, verbose=False)[fid.KEY_METRIC_FID],
                kernel_distance(features[:_SAMPLE], references[:_SAMPLE]),
                neighbourhoods(features[:_SAMPLE], references[:_SAMPLE]),
                isc.isc_features_to_metric(torch.from_numpy(logits))[isc.KEY_METRIC_ISC_MEAN],
            )
        return found

    reference = collect(_NUM_REFERENCE, seed=1)
    figures = {what: lambda count=count: compare(collect(count)) for what, count in sizes.items()}
    return figures | {"collect": lambda: collect(sizes["many"])}


def nothing_kept(sizes: dict[str, int], size_px: int) -> dict[str, Callable[[], object]]:
    """Blur and network alone."""
    from dalle.evaluation.measures.blur import RADII_PX, blurred

    network = _network()

    def collect() -> None:
        for images_BYX3 in _images(sizes["many"], size_px, seed=0):
            for radius in RADII_PX:
                network(blurred(images_BYX3, radius))

    return {"collect": collect}


def _images(count: int, size_px: int, seed: int) -> Iterator[np.ndarray]:
    """Noise of different brightness, in batches."""
    rng = np.random.default_rng(seed)
    for first in range(0, count, _BATCH):
        shape = min(_BATCH, count - first), size_px, size_px, 3
        brightness = rng.integers(0, 128, (shape[0], 1, 1, 1), dtype=np.uint8)
        yield rng.integers(0, 128, shape, dtype=np.uint8) + brightness


def _network():
    """One convolution and a layer of classes, on the CPU."""
    from dalle.evaluation.features.images import Network

    torch.manual_seed(0)
    convolution, classify = torch.nn.Conv2d(3, _WIDTH, 8, stride=8), torch.nn.Linear(_WIDTH, _CLASSES)

    def see(images_BCYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features_BE = convolution(images_BCYX / 255).relu().mean(dim=(2, 3))
        return features_BE, classify(features_BE)

    return Network("one convolution", "0" * 64, _WIDTH, "not at all", torch.device("cpu"), see)
