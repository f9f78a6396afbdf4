"""The machine's rate."""

import time

import torch

from dalle.reporting.machine_limit import matrix_flops_per_s


def test_the_machines_rate_is_measured_once_and_draws_nothing():
    before = torch.random.get_rng_state()
    rate = matrix_flops_per_s(torch.device("cpu"), "fp32")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert matrix_flops_per_s(torch.device("cpu"), "fp32") == rate
    a, took_s = torch.randn(2048, 2048), []
    for _ in range(4):
        began_s = time.perf_counter()
        a @ a
        took_s.append(time.perf_counter() - began_s)
    # others may have been at work on the machine during one of the two, and taken most of it
    assert 0.1 < 2 * 2048**3 / min(took_s) / rate < 10
