"""Averages of the weights, against the recurrence written out."""

import torch
from torch import nn

from dalle.training.ema import EMA


def test_average_follows_its_recurrence_and_swaps_back():
    model = nn.BatchNorm1d(2)  # parameters, floating-point buffers and a counter
    ema = EMA(model, decay=0.5)
    expected = model.weight.detach().clone()
    for step in range(6):
        with torch.no_grad():
            model.weight += step + 1
            model.running_mean += 1
            model.num_batches_tracked += 1
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(ema.averages["weight"], expected)
    assert ema.averages["num_batches_tracked"] == 6
    assert 0 < ema.averages["running_mean"][0] < 6
    live = model.weight.detach().clone()
    with ema.swapped_in():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, live)
    torch.testing.assert_close(ema.averages["weight"], expected)
