"""The fastest settings that fit: over machines, sharding, ranks and wires, micro-batches and recomputation.

What is asked of a layout is cheap but for what machines exchange. So all are first taken as if machines exchanged nothing and needed
no memory for it, which makes none slower or larger than it is. In the order of those times each is then planned in full, until no
other can be faster than the fastest that was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dalle.config import Compression
from dalle.planning.exchanged import Exchanged, exchanged
from dalle.planning.layout import Layout
from dalle.planning.plan import Machines, Planned

_NOTHING = Exchanged((), 0, 0, (), 0)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        fastest: of those that fit; null where none does
        least: where none fits, that which needs least memory of those planned in full
        considered: layouts in all
    """

    fastest: Planned | None
    least: Planned | None
    considered: int


def search(layout: Layout, machines: Machines) -> Found:
    """Look for the fastest that fits, of the same batch, precision and optimiser, on as many machines or fewer."""
    known: dict[tuple, Exchanged | None] = {}
    bounds = [Planned(each, machines, _NOTHING) for each in layouts(layout)]
    best = None
    for bound in sorted((b for b in bounds if b.fits), key=lambda b: b.update.seconds):
        if best is not None and bound.update.seconds >= best.update.seconds:
            break
        found = _in_full(bound, known)
        if found is not None and found.fits and (best is None or found.update.seconds < best.update.seconds):
            best = found
    if best is not None:
        return Found(best, None, len(bounds))
    least = None
    for bound in sorted(bounds, key=lambda b: b.peak_bytes):
        if least is not None and bound.peak_bytes >= least.peak_bytes:
            break
        found = _in_full(bound, known)
        if found is not None and (least is None or found.peak_bytes < least.peak_bytes):
            least = found
    return Found(None, least, len(bounds))


def _in_full(bound: Planned, known: dict[tuple, Exchanged | None]) -> Planned | None:
    """With what machines exchange; null where compression cannot cut the matrices so."""
    run = bound.layout.run
    key = (bound.layout.groups, bound.layout.shards, run.zero_stage, run.compression, run.wire, run.offload)
    if key not in known:
        try:
            known[key] = exchanged(bound.layout)
        except ValueError:
            known[key] = None
    sent = known[key]
    return None if sent is None else Planned(bound.layout, bound.machines, sent)


def layouts(layout: Layout) -> Iterator[Layout]:
    """All that are looked at."""
    counts = {layout.machines, *(2**power for power in range(17) if 2**power < layout.machines)}
    for machines in sorted(counts):
        for run in _runs(layout, machines):
            try:
                yield replace(layout, machines=machines, run=run)
            except ValueError:  # such a batch, or such a rank, does not divide, or such a wire saves nothing
                continue


def _runs(layout: Layout, machines: int) -> Iterator:
    asked, processes = layout.run, machines * layout.gpus
    for changes in _sharded(layout, machines):
        for micro_batch in (2**power for power in range(25)):
            steps, rest = divmod(asked.batch_size, processes * micro_batch)
            if rest or not steps:
                continue
            for recompute in (False, True):
                try:
                    yield replace(asked, accumulation_steps=steps, recompute=recompute, **changes)
                except ValueError:  # what cannot go together
                    continue


def _sharded(layout: Layout, machines: int) -> Iterator[dict]:
    """Stages with who shards, ranks and wires: without compression the one that is asked for and a 16-bit one."""
    asked = layout.run.wire
    wires = dict.fromkeys((asked, "bf16" if asked == "fp32" else "fp32")) if machines > 1 else [asked]
    plain: list[dict] = [{"compression": None, "wire": wire} for wire in wires]
    compressed: list[dict] = [{"compression": each, "wire": asked} for each in _compressions(layout)]
    stages = (0,) if layout.optimizer.muon_step_size_factor is not None else (0, 1, 2, 3)
    for stage in stages:
        for ranks_per_machine in (None, 0) if stage else (None,):
            for sent in [*plain, *compressed] if stage in (0, 3) else plain:
                yield {"zero_stage": stage, "ranks_per_machine": ranks_per_machine, **sent}


def _compressions(layout: Layout) -> list[Compression]:
    """The one asked for, a quarter of the width (the paper's are 0.22 to 0.27 of it), and an eighth."""
    asked = layout.run.compression or Compression(1, "bf16")
    width = layout.sizes.config.width
    ranks = {max(1, width // share // layout.gpus) * layout.gpus for share in (4, 8)}
    if layout.run.compression is not None:
        ranks.add(asked.rank)
    return [replace(asked, rank=rank) for rank in sorted(ranks)]
