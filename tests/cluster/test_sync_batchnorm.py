"""Batch normalisation over two processes is that of one with the whole batch."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from dalle.cluster.sync_batchnorm import SynchronisedBatchNorm, synchronised
from dalle.cluster.topology import World

CPU = torch.device("cpu")


def _inputs():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    norm.weight.data, norm.bias.data = torch.rand(5) + 0.5, torch.randn(5)
    norm.running_mean += torch.randn(5)
    return norm, 3 * torch.randn(4, 5, 3, 3) + 2, torch.randn(4, 5, 3, 3)


def _half(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm, x, weights = _inputs()
    norm = synchronised(norm, World(rank, 2, CPU))
    x = x[2 * rank : 2 * rank + 2].clone().requires_grad_()
    y = norm(x)
    (y * weights[2 * rank : 2 * rank + 2]).sum().backward()
    torch.save([y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.state_dict()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_halves_are_the_whole(tmp_path):
    mp.spawn(_half, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    norm, x, weights = _inputs()
    x.requires_grad_()
    y = norm(x)
    (y * weights).sum().backward()
    torch.testing.assert_close(torch.cat([first[0], second[0]]), y.detach())
    # sums of cancelling terms of size 1 in fp32
    torch.testing.assert_close(torch.cat([first[1], second[1]]), x.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first[2] + second[2], norm.weight.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first[3] + second[3], norm.bias.grad, atol=1e-5, rtol=1e-4)
    for state in (first[4], second[4]):
        torch.testing.assert_close(state, norm.state_dict())


def test_one_process_keeps_its_layer():
    norm, x, _ = _inputs()
    assert synchronised(norm, World(0, 1, CPU)) is norm
    evaluated = synchronised(norm, World(0, 2, CPU)).eval()
    assert isinstance(evaluated, SynchronisedBatchNorm)
    torch.testing.assert_close(evaluated(x), norm.eval()(x))
