"""How long an update takes, by a model of what overlaps: computed, never measured on a GPU.

Three things go on beside one another: computing, the exchange within a machine, and that between machines. In each one comes after
the other, and waits for what it needs:

- a resblock is computed when its weights are gathered; those of the next are gathered meanwhile
- its gradients are reduced within the machine when its backward pass has ended
- machines exchange in the order, and begin at the places of the backward pass, that `exchanged.py` counted
- the update comes when all has arrived

A time is operations by the rate that is reached, or bytes by a bandwidth; neither latency nor what they take from one another is in
it. All processes of a machine share its link, and each has its own way to the others of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dalle.planning.exchanged import Exchanged
from dalle.planning.layout import Layout

_FP32_SLOWER = 8
"""How much slower than in 16 bits the compression's products are, which are fp32: a V100's 15.7 TFLOP/s against 125."""


@dataclass(frozen=True)
class Rates:
    """Of the machines.

    Args:
        flops: operations/s that a GPU reaches in forward and backward passes
        muon: operations/s that it reaches in Muon's products
        link: bytes/s from a machine to the others, each way
        inside: bytes/s of a GPU to the others of its machine, each way
        memory: bytes/s of a GPU's memory
    """

    flops: float
    muon: float
    link: float
    inside: float
    memory: float


@dataclass
class Spans:
    """What one after the other does in a row of the picture: (what, begin, end), seconds."""

    done: list[tuple[str, float, float]] = field(default_factory=list)
    shared_bytes: float = 0.0
    """That a process sent here to those that it shards with"""

    @property
    def free_s(self) -> float:
        return self.done[-1][2] if self.done else 0.0

    def add(self, what: str, took_s: float, after_s: float = 0.0) -> float:
        begin_s = max(self.free_s, after_s)
        if took_s > 0:
            self.done.append((what, begin_s, begin_s + took_s))
        return begin_s + took_s


@dataclass(frozen=True)
class Update:
    """One update.

    Args:
        compute, inside, between: what is computed, and exchanged within and between machines, in the last micro-batch and after it
        earlier_s: of the micro-batches before the last, in which machines exchange nothing
        exposed_s: of waiting for the exchange between machines when the backward pass has ended
        shared_bytes: that a process sends in all to those that it shards with
    """

    compute: Spans
    inside: Spans
    between: Spans
    earlier_s: float
    exposed_s: float
    shared_bytes: float

    @property
    def seconds(self) -> float:
        return self.earlier_s + max(spans.free_s for spans in (self.compute, self.inside, self.between))


def update(layout: Layout, exchanged: Exchanged, state_bytes: int, rates: Rates) -> Update:
    """Simulate one.

    Args:
        layout: the training
        exchanged: between machines
        state_bytes: of weights, gradients, moments and error buffers, which an update reads and writes
        rates: of the machines
    """
    earlier = _micro_batch(layout, rates)
    steps = layout.run.accumulation_steps
    compute, inside, between, ended = _micro_batch(layout, rates)
    share = _between_share(layout)
    for call in exchanged.calls:
        begin_s = ended[min(call.after, len(ended) - 1)]
        between.add("exchange", layout.gpus * share * call.bytes / rates.link, begin_s)
        inside.add("exchange", (1 - share) * call.bytes / rates.inside, begin_s)
    backward_s = ended[-1]
    reduced_s = _reduced_by_deepspeed(layout, rates, inside, between, backward_s)
    there_s = max(between.free_s, inside.free_s, backward_s, reduced_s)
    compute.add("compression", exchanged.flops * _FP32_SLOWER / rates.flops, there_s)
    muon_s = layout.sizes.muon_flops / rates.muon if layout.optimizer.muon_step_size_factor else 0.0
    done_s = compute.add("update", 2 * state_bytes / rates.memory + muon_s, there_s)
    if layout.run.zero_stage in (1, 2):  # the weights that others have updated
        _shared(layout, rates, inside, between, "gather", layout.weight_bytes(layout.whole), done_s)
    one_s = max(spans.free_s for spans in earlier[:3])
    shared_bytes = (
        (steps - 1) * sum(spans.shared_bytes for spans in earlier[:3]) + inside.shared_bytes + between.shared_bytes
    )
    return Update(compute, inside, between, (steps - 1) * one_s, max(0.0, between.free_s - backward_s), shared_bytes)


def _micro_batch(layout: Layout, rates: Rates) -> tuple[Spans, Spans, Spans, list[float]]:
    """Forward and backward pass: computing and the exchange within and between machines, and when the backward pass of the heads, of
    each resblock from the last to the first, and of the embeddings had ended."""
    compute, inside, between = Spans(), Spans(), Spans()
    *blocks_s, heads_s = (layout.micro_batch * count / rates.flops for count in layout.sizes.forward_flops)
    wire = layout.sizes.wire_bytes(layout.run)
    block_bytes = [sum(wire[n] * layout.sizes.parameters[n].numel() for n in names) for names in layout.sizes.blocks]
    sharded = layout.run.zero_stage == 3

    def gathered(size: int, after_s: float) -> float:
        return _shared(layout, rates, inside, between, "gather", size if sharded else 0, after_s)

    def passed(name: str, order: list[tuple[float, int]], reduced: bool) -> list[float]:
        ended = []
        before_s = compute.free_s
        next_ready_s = gathered(order[0][1], before_s)
        for number, (took_s, size) in enumerate(order):
            ready_s = next_ready_s
            if number + 1 < len(order):  # the next one's weights come while this one is computed
                next_ready_s = gathered(order[number + 1][1], max(before_s, ready_s))
            before_s = compute.add(name, took_s, ready_s)
            if reduced and sharded:
                _shared(layout, rates, inside, between, "reduce", size, before_s)
            ended.append(before_s)
        return ended

    passed("forward pass", list(zip(blocks_s, block_bytes, strict=True)), reduced=False)
    ended = [compute.add("heads", 3 * heads_s)]  # whose gradients are made with their logits
    times = 3 if layout.run.recompute else 2
    ended += passed(
        "backward pass",
        [(times * t, size) for t, size in zip(blocks_s[::-1], block_bytes[::-1], strict=True)],
        reduced=True,
    )
    return compute, inside, between, [*ended, ended[-1]]


def _shared(layout: Layout, rates: Rates, inside: Spans, between: Spans, what: str, size: int, after_s: float) -> float:
    """When processes that shard have gathered or reduced so many bytes, in a ring, which crosses a machine's link where it is of
    several machines."""
    m = layout.shards
    share = size * (m - 1) / m
    way, rate = (between, rates.link) if m > layout.gpus else (inside, rates.inside)
    way.shared_bytes += share
    return way.add(what, share / rate, after_s)


def _reduced_by_deepspeed(layout: Layout, rates: Rates, inside: Spans, between: Spans, after_s: float) -> float:
    """When gradients that DeepSpeed reduces after the backward pass, below stage 3, are there."""
    stage = layout.run.zero_stage
    if stage == 3:
        return after_s
    wire = layout.sizes.wire_bytes(layout.run)
    size = sum(4 * p.numel() if stage == 0 else wire[n] * p.numel() for n, p in layout.sizes.parameters.items())
    return _shared(layout, rates, inside, between, "reduce", 2 * size if stage == 0 else size, after_s)


def _between_share(layout: Layout) -> float:
    """Of what a process exchanges with its replicas, the share that goes to other machines."""
    here = max(1, layout.gpus // layout.shards)
    return (layout.groups - here) / (layout.groups - 1) if layout.groups > 1 else 0.0
