"""Weights that processes which shard them gather from one another, at ZeRO stage 3, and whole gradients on their way back."""

from __future__ import annotations

from collections.abc import Iterator

from dalle.cluster.topology import World
from dalle.planning.layout import META, Layout
from dalle.training.deepspeed_adapter import settings


def at_the_turn(layout: Layout, ended: int = 0) -> int:
    """Bytes of gathered weights between forward and backward pass, or of those what is left when so many parts of the latter have
    ended: DeepSpeed lets go only of those that come
    again later than a number of weights that its settings name. On the way a weight may have 16 bits, but DeepSpeed then makes of it
    what it is kept as, fp32 of which autocast makes its copies, or 16 bits."""
    if layout.run.zero_stage < 3:
        return 0
    distance = _settings(layout)["stage3_max_reuse_distance"]
    behind = size = 0
    for number, names in enumerate(layout.sizes.in_backward_order):
        if 2 * behind >= distance:
            break
        behind += sum(layout.whole[name] for name in names)
        size += _bytes(layout, names) if number >= ended else 0
    return size


def at_work(layout: Layout) -> int:
    """Bytes of gathered weights elsewhere: of the resblock that is computed and of the next."""
    if layout.run.zero_stage < 3:
        return 0
    return 2 * max(_bytes(layout, names) for names in layout.sizes.blocks)


def gradients_at_work(layout: Layout) -> int:
    """Bytes of whole gradients of the resblock that is computed, before they are reduced; at stage 3 none stay."""
    return at_work(layout) // 2


def reduced_at_once(layout: Layout) -> int:
    """Bytes of the copy of those that are reduced together, laid end to end in the format of communication; at stage 3."""
    if layout.run.zero_stage < 3:
        return 0
    formats = layout.sizes.wire_bytes(layout.run)
    return max(sum(layout.whole[name] * formats[name] for name in names) for names in layout.sizes.blocks)


def _bytes(layout: Layout, names: list[str]) -> int:
    return layout.weight_bytes({name: layout.whole[name] for name in names})


def _settings(layout: Layout) -> dict:
    return settings(layout.run, World(0, layout.processes, META), layout.sizes.resblock)["zero_optimization"]


def bucket_elements(layout: Layout) -> int:
    """Of DeepSpeed's buckets; without sharding it has none that stay."""
    return _settings(layout).get("reduce_bucket_size", 0) if layout.run.zero_stage > 0 else 0


def sub_groups(layout: Layout) -> Iterator[list[str]]:
    """Names of the parameters that DeepSpeed updates together at stage 3: so many that those of a process reach a size that its
    settings name."""
    if layout.run.zero_stage < 3:
        return
    most, names, size = _settings(layout)["sub_group_size"], [], 0
    for name, held in layout.held.items():
        names.append(name)
        size += held
        if size >= most:
            yield names
            names, size = [], 0
    if names:
        yield names
