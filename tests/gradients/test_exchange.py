"""Averages between real processes: the same on all, and no element of none is lost on the way."""

import json

from tests.processes import ON_CPU, run_processes

_SCRIPT = """
import json, torch, torch.distributed as dist
from dalle.gradients.exchange import Exchange
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
told = {}
for format in ("fp32", "bf16", "1-6-9"):
    for numel in (1, 2, 7, 3000, 3001):
        values = [torch.randn(numel, generator=torch.Generator().manual_seed(100 * number + numel)) for number in range(size)]
        mean = Exchange(dist.group.WORLD, format)(values[rank])
        everyones = [torch.empty_like(mean) for _ in range(size)]
        dist.all_gather(everyones, mean)
        exact = torch.stack(values).double().mean(dim=0)
        largest = torch.stack(values).abs().amax(dim=0)
        error = ((mean - exact).abs() / largest).max().item()
        told[f"{format} {numel}"] = [error, all(torch.equal(mean, other) for other in everyones), mean.numel() == numel]
if rank == 0:
    print(json.dumps(told))
dist.destroy_process_group()
"""


def test_a_mean_of_three_processes():
    found = json.loads(run_processes(_SCRIPT, 3, 3, environment=ON_CPU).splitlines()[-1])
    assert len(found) == 15
    # each value is rounded before it is sent, and their mean once more: to 2⁻⁸ and 2⁻¹⁰
    epsilon = {"fp32": 2**-22, "bf16": 2 * 2**-8, "1-6-9": 2 * 2**-10}
    for name, (error, same, whole) in found.items():
        assert same and whole, name
        assert error <= epsilon[name.split()[0]], (name, error)
