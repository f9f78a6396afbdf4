"""The cross-entropy by chunks against the plain one."""

import weakref

import pytest
import torch
from torch.nn import functional as F

from dalle.models.cross_entropy import _forward, _logits, cross_entropy, cross_entropy_reference, logits
from dalle.text import PAD


def _inputs(rows=13, width=8, vocabulary=11):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator) for shape in ((rows, width), (vocabulary, width), (vocabulary,))
    )
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets[3], targets[7:9] = PAD, PAD
    return [t.requires_grad_() for t in (x, weight, bias)], targets


@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (2, 55), (4, 1 << 20), (256, 1 << 20)])
def test_value_and_gradients_are_the_plain_ones(chunk, block, monkeypatch):
    monkeypatch.setattr("dalle.models.cross_entropy.CHUNK_ROWS", {"cpu": chunk})
    monkeypatch.setattr("dalle.models.cross_entropy._BLOCK_LOGITS", block)
    inputs, targets = _inputs()
    results = []
    for function in (cross_entropy, cross_entropy_reference):
        nats = function(*inputs, targets)
        results.append((nats, *torch.autograd.grad(nats / 3, inputs)))
    # fp32 sums in another order
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    assert torch.equal(results[0][1][3], torch.zeros(8)), "a pad teaches nothing"


def test_under_autocast_sums_are_fp32():
    inputs, targets = _inputs(rows=300, width=64, vocabulary=500)
    with torch.autocast("cpu", torch.bfloat16):
        nats = cross_entropy(*inputs, targets)
    plain = cross_entropy_reference(*inputs, targets)
    assert nats.dtype == torch.float32
    gradients, expected = torch.autograd.grad(nats, inputs), torch.autograd.grad(plain, inputs)
    assert [g.dtype for g in gradients] == [torch.float32] * 3
    # logits of up to 30 are rounded to 8 bits
    torch.testing.assert_close(nats, plain, rtol=2e-3, atol=0)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.05


def test_without_gradients_none_are_made(monkeypatch):
    inputs, targets = _inputs()
    results = []
    monkeypatch.setattr(
        "dalle.models.cross_entropy._forward", lambda *args: results.append(_forward(*args)) or results[-1]
    )
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(*inputs, targets), cross_entropy_reference(*inputs, targets))
    assert [gradient.numel() for gradient in results[0][1:]] == [0, 0, 0]


def test_logits_are_fp32_and_the_plain_ones():
    (x, weight, bias), _ = _inputs()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(logits(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
            with torch.autocast("cpu", torch.bfloat16):
                assert logits(x, weight, bias).dtype == torch.float32


def test_all_fp32_logits_are_never_there(monkeypatch):
    """Of 40 × 100 logits the forward pass holds a chunk of 5 rows in fp32 at a time, and lets it go before the next."""
    monkeypatch.setattr("dalle.models.cross_entropy.CHUNK_ROWS", {"cpu": 5})
    inputs, targets = _inputs(rows=40, width=2, vocabulary=100)
    chunks = []

    def watched(*args):
        assert all(chunk() is None for chunk in chunks)
        logits_CV = _logits(*args)
        chunks.append(weakref.ref(logits_CV))
        assert logits_CV.shape == (5, 100) and logits_CV.dtype == torch.float32
        return logits_CV

    monkeypatch.setattr("dalle.models.cross_entropy._logits", watched)
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy(*inputs, targets).backward()
    assert len(chunks) == 8


@pytest.mark.gpu
def test_on_a_gpu_logits_keep_fp32():
    inputs, targets = _inputs(rows=512, width=256, vocabulary=1000)
    inputs = [x.detach().cuda().bfloat16().float().requires_grad_() for x in inputs]
    with torch.autocast("cuda", torch.bfloat16):
        nats = cross_entropy(*inputs, targets.cuda())
    exact = F.cross_entropy(F.linear(*(x.double() for x in inputs)), targets.cuda(), ignore_index=PAD, reduction="sum")
    # the inputs are exact in 16 bits, and sums stay in fp32: logits rounded to 16 would be off by some thousandths
    torch.testing.assert_close(nats.double(), exact, rtol=1e-5, atol=0)
