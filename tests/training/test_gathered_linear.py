"""A linear map of a gathered weight: PyTorch's own values and gradients, and nothing of the weight kept."""

import gc
import json
import weakref

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dalle.training.gathered_linear import GatheredLinear
from tests.processes import ON_CPU, run_processes

_SCRIPT = """
import gc, json, weakref
import torch
from torch import nn
from dalle.cluster.topology import joined
from dalle.models.prior import InputMajorLinear
from tests.training import cluster

torch.set_num_threads(1)
with joined() as world:
    engine = cluster.make(world, zero_stage=3)
    gathered = {}

    def note(name):
        return lambda module, *_: gathered.update({name: (module.weight.numel(), weakref.ref(module.weight.data.untyped_storage()))})

    for name, module in engine.model.named_modules():
        if name.startswith("layers.") and isinstance(module, nn.Linear | InputMajorLinear):
            module.register_forward_hook(note(name))
    kept, plain = [], engine.objective.forward

    def forward(batch):
        found = plain(batch)
        gc.collect()
        kept.extend([name for name, (_, storage) in gathered.items() if storage() is not None])
        return found

    engine.objective.forward = forward
    engine.update([cluster.micro_batch(0, world.rank, world.size)], 0, 1e-3)
    if world.is_main:
        print(json.dumps([len(gathered), min(size for size, _ in gathered.values()), kept]))
"""


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 6), (4, 6)])
def test_values_and_gradients_are_those_of_pytorch(autocast, shape):
    torch.manual_seed(0)
    given = [torch.randn(*shape), torch.randn(6, 5), torch.randn(5)]
    back, told = torch.randn(*shape[:-1], 5), []
    for function in (GatheredLinear.apply, lambda x, weight, bias: F.linear(x, weight.t(), bias)):
        x, weight, bias = (each.clone().requires_grad_() for each in given)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = function(x, weight, bias)
        found.backward(back.to(found.dtype))
        told.append([found, x.grad, weight.grad, bias.grad])
    for ours, theirs in zip(*told, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if autocast else 1e-5, atol=4e-2 if autocast else 1e-6)


def test_the_backward_pass_finds_what_the_weight_holds_by_then():
    x, weight, bias = torch.ones(1, 2), torch.nn.Parameter(torch.ones(2, 2)), torch.zeros(2)
    x.requires_grad_()
    found = GatheredLinear.apply(x, weight, bias)
    weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found.sum().backward()
    assert x.grad.tolist() == [[3.0, 7.0]]


def test_autocast_keeps_no_copy_of_the_weight_to_the_end_of_the_pass():
    """As it does of a parameter itself: every layer's would wait for the last."""
    copies = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if function is torch.ops.aten._to_copy.default and found.shape == (6, 5):
                copies.append(weakref.ref(found.untyped_storage()))
            return found

    x, weight, bias = torch.randn(4, 6), torch.nn.Parameter(torch.randn(6, 5)), torch.nn.Parameter(torch.zeros(5))
    with torch.autocast("cpu", torch.bfloat16):
        with Copies():
            GatheredLinear.apply(x, weight, bias)
        gc.collect()
        assert [copy() for copy in copies] == [None]


def test_no_layer_s_gathered_weights_are_kept_until_the_backward_pass():
    told = run_processes(_SCRIPT, 2, 2, environment=ON_CPU)
    count, least, kept = json.loads(told.strip().splitlines()[-1])
    assert count >= 8 and least > 0 and kept == []
