"""fp16 with gradient scales: the gradients against fp64, the filter, the rule against a slow one, recomputation, state."""

import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dalle.config import PriorModel
from dalle.gradients.scaling import OVERALL, PER_BLOCK, GradientScales, Rule, static
from dalle.models.prior import Prior
from dalle.text import PAD

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = PriorModel(text_slots=3, grid=2, text_vocabulary=5, codebook_size=6, width=16, depth=3, heads=2)
FP16_EPSILON = 2**-11  # the most that rounding to fp16 changes a number, relative to it


def _prior(seed=0):
    torch.manual_seed(seed)
    return Prior(CONFIG).to(DEVICE)


def _loss(model):
    text_BU = torch.tensor([[1, 2], [3, PAD]], device=DEVICE)
    codes_BI = torch.tensor([[0, 1, 2, 3], [4, 5, 5, 1]], device=DEVICE)
    return sum(model.nats(text_BU, codes_BI))


def _per_block(model, replicas=1, **options):
    return GradientScales.per_block(model.resblocks(), replicas, DEVICE, **options)


def _gradients(model, scales, loss=None):
    """Those of the parameters by name, unscaled, and whether they are finite."""
    model.zero_grad()
    scales.scaled(_loss(model) if loss is None else loss).backward()
    finite = scales.unscale((p, p.grad) for p in model.parameters() if p.grad is not None)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, finite


def _distance(ours, theirs):
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def _equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("replicas", [1, 6])
def test_gradients_are_those_of_fp64(replicas):
    model, exact = _prior(), _prior().double()
    ours, finite = _gradients(model, _per_block(model, replicas))
    _loss(exact).backward()
    assert finite.all() and len(finite) == 2 * CONFIG.depth + 1
    for name, parameter in exact.named_parameters():
        # a gradient has passed some tens of roundings to fp16, whose errors add up as a random walk: 8 of them in a row
        assert _distance(ours[name], parameter.grad) < 8 * FP16_EPSILON, name


def test_only_the_resblocks_are_fp16():
    model = _prior()
    dtypes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.Linear):
            module.register_forward_hook(lambda m, i, o, name=name: dtypes.update({name: (i[0].dtype, o.dtype)}))
    _per_block(model)
    model(torch.tensor([[1, 2]], device=DEVICE), torch.tensor([[0, 1, 2, 3]], device=DEVICE))
    assert dtypes["layers.0.attention.norm"] == (torch.float32, torch.float32)
    assert dtypes["layers.0.attention.qkv"][1] == dtypes["layers.2.mlp.widen"][1] == torch.float16
    assert dtypes["norm"] == (torch.float32, torch.float32)
    assert dtypes["image_head"] == dtypes["text_head"] == (torch.float32, torch.float32)
    assert list(model.state_dict()) == list(_prior().state_dict())


def _watch_gradient(module, hook):
    """Have the gradient of what a module gives pass a hook, which may return another."""

    def watch(module, inputs, output):
        output.register_hook(hook)

    module.register_forward_hook(watch)


def _watch_identity_path(model):
    """The gradients of what goes into each resblock, by its number: those of the identity path."""
    kept = {}
    for number, block in enumerate(model.resblocks()):

        def watch(module, inputs, number=number):
            inputs[0].register_hook(partial(kept.__setitem__, number))

        block.register_forward_pre_hook(watch)
    return kept


def test_an_overflow_within_a_resblock_reaches_no_other():
    model = _prior()
    scales = _per_block(model)
    scales.scales[3] = 2.0**40  # beyond fp16 for this gradient
    identity = _watch_identity_path(model)
    gradients, finite = _gradients(model, scales)
    assert finite.tolist() == [True, True, True, False, True, True, True]
    assert len(identity) == 6 and all(gradient.isfinite().all() for gradient in identity.values())
    # what came out of the resblock was dropped where it was not finite; the identity path's own gradient went on
    assert torch.equal(identity[3], identity[4])
    assert gradients["layers.0.mlp.widen.weight"].count_nonzero() > 0


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_on_the_identity_path_is_no_resblocks_fault(value):
    model = _prior()
    scales = _per_block(model)

    def spoil(gradient):
        gradient = gradient.clone()
        gradient[0, 0, 0] = value
        return gradient

    into = []
    _watch_gradient(model.layers[1], spoil)  # comes into the resblocks 0 … 3 from behind
    _watch_gradient(model.layers[1].mlp.project, into.append)
    _, finite = _gradients(model, scales)
    assert finite.tolist() == [True] * 6 + [False]  # the embeddings lie on the identity path
    assert into[0].dtype == torch.float16 and into[0][0, 0, 0] == 0 and into[0].count_nonzero() > 0


class _SlowScale:
    """Appendix D in plain Python, for one scale."""

    def __init__(self, replicas):
        self.replicas, self.scale, self.last_division, self.now = replicas, replicas * 2.0**13, None, 0

    def update(self, finite):
        self.now += 1
        if finite:
            self.scale *= 2 ** (1 / 1000)
        elif self.last_division is None or self.now - self.last_division >= 125:
            self.scale /= math.sqrt(2)
            self.last_division = self.now
        self.scale = min(max(self.scale, self.replicas * 2**7), self.replicas * 2**24)


def test_the_rule_is_appendix_d():
    replicas, count, updates = 3, 4, 6000
    parts = [[nn.Parameter(torch.zeros(1))] for _ in range(count)]
    scales = GradientScales(parts, PER_BLOCK, replicas, DEVICE)
    slow = [_SlowScale(replicas) for _ in range(count)]
    draw = random.Random(0)
    # the first shall reach 2^24, which is 11,000 updates above the start, and the last 2^7
    scales.load_state_dict({**scales.state_dict(), "scale": torch.tensor([2.0**22, 2.0**13, 2.0**13, 2.0**9])})
    slow[0].scale, slow[3].scale = replicas * 2.0**22, replicas * 2.0**9
    failures = [0, 0.002, 0.05, 0.6]
    seen_greatest = seen_least = False
    for _ in range(updates):
        finite = [draw.random() >= failure for failure in failures]
        rest = draw.random() >= 0.01
        made = scales.update(torch.tensor([*finite, rest], device=DEVICE))
        assert bool(made) == all([*finite, rest])
        for scale, is_finite in zip(slow, finite, strict=True):
            scale.update(is_finite)
        expected = [scale.scale for scale in slow]
        # 6,000 roundings to fp32 by at most 2^-24 each, and that of the factor as often
        assert scales.scales.tolist() == pytest.approx(expected, rel=2 * updates * 2**-24)
        seen_greatest |= expected[0] == replicas * 2**24
        seen_least |= expected[3] == replicas * 2**7
    assert seen_greatest and seen_least


def test_accumulation_counts_into_m():
    """A micro-batch's gradient is divided by their number: what stands in fp16 is that of one micro-batch on one replica."""
    model, accumulating = _prior(), _prior()
    scales, more = _per_block(model, replicas=3), _per_block(accumulating, replicas=3, accumulation_steps=4)
    assert torch.equal(more.scales, 4 * scales.scales)
    sent = []
    for prior, own, steps in ((model, scales, 1), (accumulating, more, 4)):
        seen = []
        _watch_gradient(prior.layers[0].mlp.project, lambda gradient, seen=seen: seen.append(gradient.clone()))
        own.scaled(_loss(prior) / steps).backward()
        sent.append(seen[0])
    assert sent[0].dtype == torch.float16 and torch.equal(*sent)  # powers of two: exact
    more.unscale((p, p.grad) for p in accumulating.parameters())
    scales.unscale((p, p.grad) for p in model.parameters())
    for (name, p), q in zip(model.named_parameters(), accumulating.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad / 4, atol=0, rtol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("rule", "start", "updates"), [(PER_BLOCK, 2.0**13, 1376), (PER_BLOCK, 2.0**24, 4126), (OVERALL, 2.0**24, 24)]
)
def test_the_longest_descent_is_the_rules(rule, start, updates):
    """Counted by letting all updates fail until the scale is at its least."""
    scales = GradientScales([[nn.Parameter(torch.zeros(1))]], rule, 2, DEVICE)
    scales.load_state_dict({**scales.state_dict(), "scale": torch.tensor([start])})
    no, counted = torch.tensor([False, True], device=DEVICE), 0
    while scales.scales.item() > 2 * rule.least * (1 + 1e-5):  # 34 factors rounded to 2⁻²⁴
        scales.update(no)
        assert scales.falling
        counted += 1
    assert counted == updates
    assert rule.longest_descent_updates == {PER_BLOCK: 4126, OVERALL: 24}[rule]
    for _ in range(2 * rule.window_updates):
        scales.update(no)
    assert not scales.falling
    scales.failures.zero_()
    scales.update(torch.tensor([True, False], device=DEVICE))
    assert not scales.falling
    assert scales.blame() == "gradients of weights that have no gradient scale were not finite"
    scales.update(no)
    assert scales.blame().startswith("gradients of the model were not finite in fp16, with scales of 2^")
    assert static(8.0).longest_descent_updates == 1


def test_what_is_to_blame_is_named():
    scales = GradientScales([[nn.Parameter(torch.zeros(1))] for _ in range(6)], PER_BLOCK, 4, DEVICE)
    assert scales.blame() == "the norm of the averaged gradients was not finite"
    for number in (1, 2, 3, 5):
        finite = torch.ones(7, dtype=torch.bool, device=DEVICE)
        finite[number] = False
        scales.update(finite)
    assert scales.failures.tolist() == [0, 1, 1, 1, 0, 1, 0]
    told = "gradients of resblocks 1-3, 5 were not finite in fp16, with scales of 2^14.5 to 2^14.5, of which 2^9.0 is the least"
    assert scales.blame() == told


def test_the_usual_dynamic_scale_halves_and_doubles():
    scales = GradientScales([[nn.Parameter(torch.zeros(1))]], OVERALL, 2, DEVICE)
    yes, no = torch.tensor([True, True], device=DEVICE), torch.tensor([False, True], device=DEVICE)
    for _ in range(1999):
        scales.update(yes)
    assert scales.scales.item() == 2 * 2**16
    for _ in range(2000):
        scales.update(yes)
        assert scales.scales.item() == 2 * 2**17
    for _ in range(3):
        assert not scales.update(no)
    assert scales.scales.item() == 2 * 2**14  # three times in a row: it has no window
    for _ in range(1999):
        scales.update(yes)
    assert scales.scales.item() == 2 * 2**14  # counted from the last overflow
    for _ in range(20):
        scales.update(no)
    assert scales.scales.item() == 2


@pytest.mark.parametrize("parts", ["layers", "resblocks"])
def test_recomputation_changes_no_bit(parts):
    plain, recomputed = _prior(), _prior()
    expected, _ = _gradients(plain, _per_block(plain))
    runs = []
    recomputed.layers[0].mlp.widen.register_forward_hook(lambda *_: runs.append(1))
    scales = _per_block(recomputed)
    for module in recomputed.recomputable() if parts == "layers" else recomputed.resblocks():
        module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)
    ours, _ = _gradients(recomputed, scales)
    assert len(runs) == 2
    assert _equal(ours, expected)


def test_a_compiler_takes_a_layer_whole():
    plain, compiled = _prior(), _prior()
    expected, _ = _gradients(plain, _per_block(plain))
    scales = _per_block(compiled)
    for layer in compiled.layers:
        layer.compile(fullgraph=True, backend="aot_eager")
    ours, _ = _gradients(compiled, scales)
    for name in expected:
        # the same products; what the graph orders otherwise are sums in fp16
        assert _distance(ours[name], expected[name]) < FP16_EPSILON, name
    scales.update(torch.ones(7, dtype=torch.bool, device=DEVICE))
    scales.scales[2] = 2.0**40
    _, finite = _gradients(compiled, scales)
    assert not finite[2] and finite[[0, 1, 3, 4, 5, 6]].all()  # the compiled layers read the scales as they are


def test_the_constant_before_the_reduce_is_taken_out_again():
    plain, scaled = _prior(), _prior()
    expected, _ = _gradients(plain, _per_block(plain))
    scales = _per_block(scaled, reduce_factor=2.0**-6)
    scales.scaled(_loss(scaled)).backward()
    sent = {name: p.grad.clone() for name, p in scaled.named_parameters()}
    scales.unscale((p, p.grad) for p in scaled.parameters())
    # powers of two: exact
    assert torch.equal(sent["layers.0.mlp.widen.weight"], expected["layers.0.mlp.widen.weight"] * 2**13 * 2**-6)
    assert torch.equal(sent["layers.0.mlp.widen.bias"], expected["layers.0.mlp.widen.bias"] * 2**13)
    assert torch.equal(sent["image_head.weight"], expected["image_head.weight"])
    assert _equal({name: p.grad for name, p in scaled.named_parameters()}, expected)


@pytest.mark.parametrize("rule", [PER_BLOCK, replace(OVERALL, finite_updates=16)])
def test_state_goes_round_and_to_another_number_of_replicas(rule):
    """On more replicas of the same batch a sample's gradient is what it was, and so have its scale and the bounds to be."""
    one, other, wider, narrower = (
        GradientScales([[nn.Parameter(torch.zeros(1))] for _ in range(3)], rule, replicas, DEVICE, accumulation_steps=a)
        for replicas, a in ((2, 1), (2, 1), (8, 1), (1, 2))
    )
    flags = [torch.tensor([i % 7 > 0, i % 3 > 0, True, True], device=DEVICE) for i in range(200)]
    for finite in flags[:100]:
        one.update(finite)
    state = {name: tensor.cpu() for name, tensor in one.state_dict().items()}
    for scales in (other, wider, narrower):
        scales.load_state_dict(state)
        assert torch.equal(scales.scales, one.scales)
        assert (scales.scaled(torch.ones(())) == 1 / scales.replicas).all()  # no scale is the loss's own here
    for finite in flags[100:]:
        for scales in (one, other, wider, narrower):
            scales.update(finite)
    for scales in (other, wider, narrower):
        assert torch.equal(scales.scales, one.scales)
        assert _equal(scales.state_dict(), one.state_dict())
    for _ in range(20_000):  # down to the least, which is M's too
        wider.update(torch.tensor([False, False, False, True], device=DEVICE))
        if not wider.falling:
            break
    assert wider.scales.tolist() == [2 * rule.least] * 3
    with pytest.raises(ValueError, match=r"holds 3 gradient scales, this run has 1: set run\.precision back"):
        GradientScales([[nn.Parameter(torch.zeros(1))]], OVERALL, 2, DEVICE).load_state_dict(state)


class _Deep(nn.Module):
    """Two resblocks; the second counts for so little that its gradients are below fp16 wherever those of the first fit."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(2))

    def forward(self, batch):
        x = self.blocks[0](batch).float()
        y = self.blocks[1](batch).float()
        return 2.0**9 * x.square().sum() + 2.0**-36 * y.square().sum()


@pytest.mark.parametrize("power", range(-8, 33, 8))
def test_no_single_scale_serves_two_resblocks_far_apart_and_two_scales_do(power):
    batch = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    exact = _Deep().to(DEVICE).double()
    exact(batch.double()).backward()

    single = _Deep().to(DEVICE)
    scales = GradientScales.overall(single, 1, DEVICE, rule=static(2.0**power))
    gradients, finite = _gradients(single, scales, single(batch))
    underflown = gradients["blocks.1.1.weight"].count_nonzero() == 0
    assert underflown or not finite.all()

    each = _Deep().to(DEVICE)
    scales = GradientScales.per_block(list(each.blocks), 1, DEVICE, rule=Rule(1, 2**-10, 2.0**40, 1, 1))
    scales.load_state_dict({**scales.state_dict(), "scale": torch.tensor([2.0**-4, 2.0**34])})
    gradients, finite = _gradients(each, scales, each(batch))
    assert finite.all()
    for name, parameter in exact.named_parameters():
        assert _distance(gradients[name], parameter.grad) < 8 * FP16_EPSILON, name
