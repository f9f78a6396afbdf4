"""Averages between real processes, and what owners make of them: the same on all, and no element is lost on the way."""

import json

from tests.processes import ON_CPU, run_processes

_SCRIPT = """
import json, torch, torch.distributed as dist
from dalle.gradients.exchange import Exchange, finished
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
told = {}
for format in ("fp32", "bf16", "1-6-9"):
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
    assert len(found) == 15 + 9
    # each value is rounded before it is sent, and their mean once more: to 2⁻⁸ and 2⁻¹⁰
    epsilon = {"fp32": 2**-22, "bf16": 2 * 2**-8, "1-6-9": 2 * 2**-10}
    for name, (error, same, whole, *_) in found.items():
        assert same and whole, name
        assert error <= epsilon[name.split()[0]], (name, error)
    # to each its part, and one's own with one more to each
    width = {"fp32": 4, "bf16": 2, "1-6-9": 2}
    for name, (*_, sent) in list(found.items())[15:]:
        sizes = json.loads(name.split(" ", 1)[1])
        assert sent == [width[name.split()[0]] * n for n in (sum(sizes), 3 * (sizes[0] + 1))], name
