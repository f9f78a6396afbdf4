"""What a prior's own work reaches on this machine, with a clock of our own."""

import pytest
import torch

from dalle.masks import layer_kinds
from dalle.models.flops import prior_flops
from dalle.models.prior import Head, Layer
from dalle.planning import reached
from tests.planning.small import MODEL, layout

CPU = torch.device("cpu")


def _watched(monkeypatch, seconds: float = 2.0) -> list:
    """The calls that are timed, each made twice; the median takes so many seconds."""
    calls = []

    def timed(call, device):
        assert device == CPU
        call()
        call()
        calls.append(call)
        return [seconds, 100 * seconds, seconds]

    monkeypatch.setattr(reached, "seconds_of", timed)
    monkeypatch.setattr(reached, "matrix_flops_per_s", lambda device, precision: 1e15)
    return calls


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-per-block"])
def test_every_layer_and_the_heads_are_in_it(monkeypatch, precision):
    calls = _watched(monkeypatch)
    found = reached.flops_per_s(MODEL, precision, 3, CPU)
    assert len(calls) == len(set(layer_kinds(MODEL))) + 1
    assert found == pytest.approx(3 * prior_flops(MODEL) / (2.0 * (MODEL.depth + 1)))


def test_no_more_samples_than_half_a_second_takes(monkeypatch):
    _watched(monkeypatch, 1.0)
    one = prior_flops(MODEL) / (MODEL.depth + 1)
    monkeypatch.setattr(reached, "matrix_flops_per_s", lambda *_: 2 * 5.5 * prior_flops(MODEL) / MODEL.depth)
    assert reached.flops_per_s(MODEL, "bf16", 1000, CPU) == pytest.approx(5 * one)
    monkeypatch.setattr(reached, "matrix_flops_per_s", lambda *_: 1.0)
    assert reached.flops_per_s(MODEL, "bf16", 1000, CPU) == pytest.approx(one)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_work_is_that_of_a_training(monkeypatch, precision, dtype):
    """Forward and backward pass of a layer on all slots, and of both heads on those that they score, in the run's precision."""
    seen, made = [], []
    for kind in (Layer, Head):

        def forward(self, x, *more, real=kind.forward):
            seen.append((tuple(x.shape), torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None))
            made.append(self)
            return real(self, x, *more)

        monkeypatch.setattr(kind, "forward", forward)
    reached._layer(MODEL, "conv", precision, 2, CPU)()
    reached._heads(MODEL, precision, 2, CPU)()
    d = MODEL.width
    shapes = [(2, MODEL.slots, d), (2 * MODEL.caption_tokens, d), (2 * MODEL.image_slots, d)]
    assert seen == [(shape, dtype) for shape in shapes]
    assert [head.weight.shape[0] for head in made[1:]] == [MODEL.text_vocabulary, MODEL.codebook_size]
    assert all(p.grad is not None and p.grad.any() for module in made for p in module.parameters())


def test_a_copy_reads_and_writes(monkeypatch):
    _watched(monkeypatch, 0.5)
    monkeypatch.setattr(reached, "_ELEMENTS", 1000)
    assert reached.copied_bytes_per_s(CPU) == pytest.approx(2 * 4 * 1000 / 0.5)


def test_muon_s_matrices_are_timed_by_shape(monkeypatch):
    """All of a shape together where that is few numbers, else some of them for all."""
    seen, d, sizes = [], MODEL.width, layout(1, 1).sizes
    monkeypatch.setattr(reached, "orthogonalized", lambda matrices: seen.append(tuple(matrices.shape)))
    _watched(monkeypatch, 0.25)
    square, wide = 4 * MODEL.depth, 2 * MODEL.depth
    assert reached.muon_flops_per_s(sizes, CPU) == pytest.approx(sizes.muon_flops / 0.5)
    assert set(seen) == {(square, d, d), (wide, d, 4 * d)}
    seen.clear()
    monkeypatch.setattr(reached, "_ELEMENTS", 2 * d * d)
    found = reached.muon_flops_per_s(sizes, CPU)
    assert set(seen) == {(2, d, d), (1, d, 4 * d)}
    assert found == pytest.approx(sizes.muon_flops / (0.25 * (square / 2 + wide)))


def test_this_machine_has_what_was_timed(monkeypatch):
    for name, rate in (("flops_per_s", 1.0), ("muon_flops_per_s", 2.0), ("copied_bytes_per_s", 3.0)):
        monkeypatch.setattr(reached, name, lambda *_, rate=rate: rate)
    for factor, muon in ((None, 1.0), (10.0, 2.0)):
        found = reached.this_machine(layout(1, 1, optimizer={"muon_step_size_factor": factor}), CPU, 4.0)
        assert (found.rates.flops, found.rates.muon, found.rates.memory, found.memory_bytes) == (1.0, muon, 3.0, 4.0)


def test_muon_is_counted_by_its_matrices():
    """Five iterations of X Xᵀ, its square and their product with X: of a layer's four square matrices and of two of D × 4D."""
    d, sizes = MODEL.width, layout(1, 1).sizes
    square, wide = 5 * 6 * d**3, 5 * (2 * d * d * 4 * d * 2 + 2 * d**3)
    assert sizes.muon_flops == MODEL.depth * (4 * square + 2 * wide)
