"""The machine's rates, with a clock of our own."""

import time

import pytest
import torch

from dalle.reporting import machine_limit
from dalle.reporting.machine_limit import best_rate, matrix_flops_per_s, matrix_product

CPU = torch.device("cpu")


@pytest.mark.parametrize(("least_calls", "calls"), [(1, 3), (20, 21)])
def test_the_best_of_the_calls_counts_and_the_first_does_not(monkeypatch, least_calls, calls):
    """Of calls that take 0.01 s, then 0.2, 0.1 and 0.15 s again and again; a third of a second is enough, or so many calls."""
    times_s, made, now_s = [0.2, 0.1, 0.15], 0, 0.0

    def call():
        nonlocal made, now_s
        now_s += 0.01 if made == 0 else times_s[(made - 1) % 3]
        made += 1

    monkeypatch.setattr(machine_limit.time, "perf_counter", lambda: now_s)
    assert best_rate(call, 500.0, CPU, least_calls) == pytest.approx(5000)
    assert made == calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_of_its_dtype_and_counted_whole(monkeypatch, dtype):
    seen = []
    monkeypatch.setattr(
        machine_limit.torch, "mm", lambda a, b, out: seen.append((a.dtype, b.dtype, out.dtype, a.shape))
    )
    product, flops = matrix_product(CPU, dtype)
    product()
    assert seen == [(dtype, dtype, dtype, (2048, 2048))]
    assert flops == 2 * 2048**3


def test_the_rate_of_a_precision(monkeypatch):
    asked = []

    def product(device, dtype):
        asked.append(dtype)
        return (lambda: None), 1.0

    monkeypatch.setattr(machine_limit, "matrix_product", product)
    for precision in ("fp32", "bf16", "fp16"):
        machine_limit.matrix_flops_per_s.__wrapped__(CPU, precision)
    assert asked == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_the_machines_rate_is_measured_once_and_draws_nothing():
    before = torch.random.get_rng_state()
    rate = matrix_flops_per_s(CPU, "fp32")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert matrix_flops_per_s(CPU, "fp32") == rate
    a, took_s = torch.randn(2048, 2048), []
    for _ in range(4):
        began_s = time.perf_counter()
        a @ a
        took_s.append(time.perf_counter() - began_s)
    # others may have been at work on the machine during one of the two, and taken most of it
    assert 0.1 < 2 * 2048**3 / min(took_s) / rate < 10
