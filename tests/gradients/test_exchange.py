"""Averages between real processes, and what owners make of them: the same on all, and no element is lost on the way."""

import json

import pytest
import torch

from dalle.gradients.exchange import encode
from tests.processes import ON_CPU, run_processes

_SCRIPT = """
import json, torch, torch.distributed as dist
from dalle.gradients.exchange import Exchange, finished
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
told = {}
for format in ("fp32", "bf16", "1-6-9", "bf16-ring"):
    for numel in (1, 2, 7, 3000, 3001):
        values = [torch.randn(numel, generator=torch.Generator().manual_seed(100 * number + numel)) for number in range(size)]
        mean = finished(Exchange(dist.group.WORLD, format).mean(values[rank]))
        everyones = [torch.empty_like(mean) for _ in range(size)]
        dist.all_gather(everyones, mean)
        exact = torch.stack(values).double().mean(dim=0)
        largest = torch.stack(values).abs().amax(dim=0)
        error = ((mean - exact).abs() / largest).max().item()
        told[f"{format} {numel}"] = [error, all(torch.equal(mean, other) for other in everyones), mean.numel() == numel]
for format in ("fp32", "bf16", "1-6-9"):
    for sizes in ([2, 0, 3], [0, 4, 0], [3, 3, 3]):
        values = [torch.randn(sum(sizes), generator=torch.Generator().manual_seed(number)) for number in range(size)]
        asked, sent = [], []
        whole = dist.all_to_all_single

        def counted(output, input, *more, **options):
            sent.append(input.numel())
            return whole(output, input, *more, **options)

        def compute(mean):
            asked.append(mean)
            return torch.cat([mean + 3 * rank, torch.tensor([float(rank)])])

        dist.all_to_all_single = counted
        parts = finished(Exchange(dist.group.WORLD, format).owned(values[rank], sizes, compute, more=1))
        dist.all_to_all_single = whole
        flat = torch.cat(parts)
        everyones = [torch.empty_like(flat) for _ in range(size)]
        dist.all_gather(everyones, flat)
        exact = torch.stack(values).double().mean(dim=0).split(sizes)
        expected = torch.cat([torch.cat([mean + 3 * n, torch.tensor([n])]) for n, mean in enumerate(exact)])
        error = ((flat - expected).abs().max() / 10).item()  # all lie within 10
        same = all(torch.equal(flat, other) for other in everyones)
        once = [mean.numel() for mean in asked] == [sizes[rank]]
        told[f"{format} {sizes}"] = [error, same, once, sent]
if rank == 0:
    print(json.dumps(told))
dist.destroy_process_group()
"""


def test_a_mean_of_three_processes():
    found = json.loads(run_processes(_SCRIPT, 3, 3, environment=ON_CPU).splitlines()[-1])
    assert len(found) == 20 + 9
    # each value is rounded before it is sent, and their mean once more: to 2⁻⁸ and 2⁻¹⁰; in a ring each, and two sums
    epsilon = {"fp32": 2**-22, "bf16": 2 * 2**-8, "1-6-9": 2 * 2**-10, "bf16-ring": 3 * 2**-8}
    for name, (error, same, whole, *_) in found.items():
        assert same and whole, name
        assert error <= epsilon[name.split()[0]], (name, error)
    # to each its part, and one's own with one more to each
    width = {"fp32": 4, "bf16": 2, "1-6-9": 2}
    for name, (*_, sent) in list(found.items())[20:]:
        sizes = json.loads(name.split(" ", 1)[1])
        assert sent == [width[name.split()[0]] * n for n in (sum(sizes), 3 * (sizes[0] + 1))], name


_BF16 = """
import json, os, sys
import numpy as np
import torch, torch.distributed as dist
from dalle.gradients.exchange import Exchange, finished
from tests.gradients.bf16 import rounded
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
told = {}
for numel in (1, 5, 2999, 3000):
    values = [torch.randn(numel, generator=torch.Generator().manual_seed(100 * n + numel)).numpy() for n in range(size)]
    if numel == 3000:
        values[size - 1][7], values[0][8], values[0][9], values[size - 1][9] = np.nan, np.inf, -np.inf, np.inf
        for n in range(size):  # as large, and as small, as gradients in fp32 may be
            values[n][10:20] *= np.float32(1e37)
            values[n][20:30] *= np.float32(1e-35)
    for format in ("bf16", "bf16-ring"):
        sent = []
        whole = {name: getattr(dist, name) for name in ("all_reduce", "all_to_all_single")}

        def reduced(tensor, **options):
            sent.append((2 * (size - 1) * tensor.nbytes / size, str(tensor.dtype)))  # a ring's
            return whole["all_reduce"](tensor, **options)

        def exchanged(output, input, got, given, **options):
            sent.append((sum(given) - given[rank], str(input.dtype)))
            return whole["all_to_all_single"](output, input, got, given, **options)

        dist.all_reduce, dist.all_to_all_single = reduced, exchanged
        mean = finished(Exchange(dist.group.WORLD, format).mean(torch.from_numpy(values[rank].copy())))
        dist.all_reduce, dist.all_to_all_single = whole["all_reduce"], whole["all_to_all_single"]
        everyones = [torch.empty_like(mean) for _ in range(size)]
        dist.all_gather(everyones, mean)
        same = len({each.numpy().tobytes() for each in everyones}) == 1
        with np.errstate(invalid="ignore"):
            total = np.zeros(numel, dtype=np.float32)
            for each in values:
                total += rounded(each)
            exact = rounded(total / np.float32(size))
            finite = np.isfinite(exact)
            whole_sum = np.abs(np.stack(values)).sum(axis=0)
            off = np.abs(mean.numpy()[finite].astype(np.float64) - exact[finite]) / whole_sum[finite] * size
        kinds = np.array_equal(np.isnan(mean.numpy()), np.isnan(exact)) and np.array_equal(np.isinf(mean.numpy()), np.isinf(exact))
        told[f"{format} {numel}"] = {
            "equal": np.array_equal(mean.numpy(), exact, equal_nan=True), "off": off.max().item() if len(off) else 0.0, "same": same,
            "kinds": kinds, "finite": int(finite.sum()), "sent": sum(count for count, _ in sent),
        }
everyones = [None] * size
dist.all_gather_object(everyones, {name: each["sent"] for name, each in told.items()})
for name, each in told.items():
    each["sent"] = [theirs[name] for theirs in everyones]
if rank == 0:
    print(json.dumps(told), flush=True)
dist.barrier()
os._exit(0)
"""


@pytest.mark.parametrize("size", [2, 4])
def test_a_bf16_wire_is_a_sum_in_fp32_of_what_each_has_rounded(size):
    """Bit for bit, beside a reference that rounds integers; the ring's sums are rounded as they go. What is not finite stays so."""
    found = json.loads(run_processes(_BF16, size, size, environment=ON_CPU).splitlines()[-1])
    assert len(found) == 8
    for name, each in found.items():
        format, numel = name.split()
        assert each["same"] and each["kinds"], name
        assert each["finite"] == int(numel) - (3 if numel == "3000" else 0)
        if format == "bf16" or size == 2:  # of two the sum is rounded once, as their mean is
            assert each["equal"], name
        # the sum so far is rounded at every hop, and the reference once, to 2⁻⁸ of no more than the sum of all magnitudes
        assert each["off"] <= size * 2**-8, name
        # half of what fp32 takes in a ring, on average over the processes, whose parts may differ by one number
        assert sum(each["sent"]) == pytest.approx(2 * (size - 1) * 2 * int(numel)), name


def test_nothing_is_rounded_where_nothing_is_sent_in_fp32():
    values = torch.tensor([1 + 2.0**-20])
    assert encode(values, "fp32") is values
    assert encode(values, "bf16-ring").item() == encode(values, "bf16").item() == 1
