"""Averages of the weights, against the recurrence written out."""

import pytest
import torch
from torch import nn

from dalle.gradients.partition import Piece
from dalle.optim.ema import EMA

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _ema(model: nn.Module, **settings) -> EMA:
    return EMA({n: (Piece(tuple(t.shape), 0, t.numel()), t) for n, t in model.state_dict().items()}, **settings)


@pytest.mark.parametrize("every_steps", [1, 3])
def test_average_follows_its_recurrence_and_swaps_back(every_steps):
    model = nn.BatchNorm1d(2, device=DEVICE)  # parameters, floating-point buffers and a counter
    ema = _ema(model, decay=0.5, every_steps=every_steps)
    expected = model.weight.detach().clone()
    for step in range(6 * every_steps):
        with torch.no_grad():
            model.weight += step + 1
            model.running_mean += 1
            model.num_batches_tracked += 1
        ema.update(step)
        if step % every_steps == every_steps - 1:
            number = step // every_steps
            decay = min(0.5, (1 + number) / (10 + number))
            expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(ema.averages["weight"].to(DEVICE), expected)
    assert ema.averages["num_batches_tracked"] == 6 * every_steps
    assert 0 < ema.averages["running_mean"][0] < 6 * every_steps
    assert ema.averages["weight"].device.type == ("cpu" if every_steps > 1 else DEVICE.type)
    live = model.weight.detach().clone()
    with ema.swapped_in():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, live)
    torch.testing.assert_close(ema.averages["weight"].to(DEVICE), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("every_steps", [1, 2])
def test_the_average_of_16_bit_weights_is_fp32(dtype, every_steps):
    """An average in 16 bits would stand still where it moves by less than its last bit: here by 10⁻³ of 2⁻⁸ each time."""
    weight = torch.ones(3, 5, dtype=dtype, device=DEVICE)
    ema = EMA({"w": (Piece((3, 5), 0, 15), weight)}, decay=0.999, every_steps=every_steps)
    ema.update(every_steps * 10**6 - 1)
    weight.fill_(1 + 2**-7)
    expected = torch.ones(3, 5, dtype=torch.float64)
    for step in range(10):
        ema.update(every_steps * (10**6 + step + 1) - 1)
        expected += 1e-3 * (1 + 2**-7 - expected)
    average = ema.averages["w"].clone()
    assert average.dtype == torch.float32
    torch.testing.assert_close(average.double().cpu(), expected, rtol=0, atol=10 * 2**-24)  # ten sums in fp32
    assert (average - 1).min() > 5e-5
    with ema.swapped_in():
        assert torch.equal(weight, average.to(DEVICE).to(dtype)) and weight[0, 0] == 1
    assert (weight == 1 + 2**-7).all() and torch.equal(ema.averages["w"], average)


@pytest.mark.gpu
def test_copying_to_main_memory_never_waits_for_the_gpu():
    model = nn.Linear(512, 512, device=DEVICE)
    ema = _ema(model, decay=0.5, every_steps=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4):
            ema.update(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
