"""16-bit moments and the clipped variance against PyTorch's AdamW, Muon against PyTorch's own, AdamW where it belongs."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dalle.config import Optimizer, PriorModel, PriorObjective, Schedule
from dalle.gradients.lowbit import ONE_SIX_NINE, ZERO_SIX_TEN
from dalle.models.prior import InputMajorLinear, Prior
from dalle.objectives.prior import PriorObjective as PriorLoss
from dalle.optim import optimizer as optimizers
from dalle.optim.optimizer import MuonAdamW, PaperAdamW, build, orthogonalized
from dalle.optim.rounding import key_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SCHEDULE = Schedule(3e-3, 3e-3)
MOMENTS = ("exp_avg", "exp_avg_sq")
SIXTEEN = {"moments": "16-bit", "variance_limit": 5.0, "beta2": 0.96}


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 16)
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 64), nn.Linear(64, 16)])
        self.head = nn.Linear(16, 5)


def _two_updates(optimizers, model):
    for seed in (1, 2):
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        for optimizer in optimizers:
            optimizer.step()


def _parts(model):
    matrices = [layer.weight for layer in model.layers]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    return matrices, others


def _prior(seed: int) -> PriorLoss:
    torch.manual_seed(seed)
    config = PriorModel(text_slots=4, grid=4, text_vocabulary=8, codebook_size=16, width=32, depth=2, heads=2)
    return PriorLoss(Prior(config), PriorObjective()).to(DEVICE)


@functools.cache
def _curve(updates: int = 150, **settings) -> tuple[torch.Tensor, torch.optim.AdamW]:
    """Losses of a prior that learns which image a caption's first token stands for, from noisy images, never the same."""
    loss_of, made = _prior(0), torch.Generator().manual_seed(0)
    optimizer = build(loss_of.model, Optimizer(SCHEDULE, weight_decay=4.5e-2, **{"beta2": 0.96, **settings}))
    images, losses = torch.randint(16, (8, 16), generator=made), []
    for _ in range(updates):
        text_BU = torch.randint(8, (8, 3), generator=made)
        noise_BI, noisy_BI = torch.randint(16, (8, 16), generator=made), torch.rand(8, 16, generator=made) < 0.1
        codes_BI = torch.where(noisy_BI, noise_BI, images[text_BU[:, 0]])
        batch = {"text_BU": text_BU, "codes_BI": codes_BI, "text_targets": torch.tensor(24.0)}
        loss, _ = loss_of({name: value.to(DEVICE) for name, value in batch.items()})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).cpu(), optimizer


def test_16_bit_moments_learn_as_pytorchs_adamw():
    losses, adamw = _curve()
    assert type(adamw) is torch.optim.AdamW
    assert losses[-10:].mean() < 0.5 * losses[:10].mean()
    found, optimizer = _curve(**SIXTEEN)
    assert type(optimizer) is PaperAdamW
    # A moment is off by 2⁻¹⁰ of itself at most, so every update by a thousandth; on this curve the loss is by 5e-4 at most.
    # Another seed's is off by a tenth.
    assert (found / losses - 1).abs().max() < 2e-3
    # and the codes do matter
    assert (found != losses).float().mean() > 0.5


def test_the_same_update_without_a_limit_that_binds():
    found, optimizer = _curve(updates=60, variance_limit=1e30)
    losses = _curve()[0][:60]
    assert type(optimizer) is PaperAdamW
    # fp32 rounding, in another order, of 60 updates; 7e-7 was seen
    assert (found / losses - 1).abs().max() < 1e-5


def test_the_matrices_moments_are_4_bytes_a_parameter_and_the_rest_fp32():
    loss_of = _prior(0)
    optimizer = build(loss_of.model, Optimizer(SCHEDULE, **SIXTEEN))
    for p in loss_of.model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    layers = loss_of.model.layers
    matrices = [m.weight for m in layers.modules() if hasattr(m, "weight") and m.weight.ndim == 2]
    assert len(matrices) == 2 * 4
    (group,) = (group for group in optimizer.param_groups if group["moments"] == "16-bit")
    assert {id(p) for p in group["params"]} == {id(p) for p in matrices}
    for p in loss_of.model.parameters():
        moments = [optimizer.state[p][name] for name in MOMENTS]
        assert all(moment.shape == p.shape for moment in moments)
        bytes_each = sum(moment.untyped_storage().nbytes() for moment in moments) / p.numel()
        assert bytes_each == (4 if id(p) in {id(m) for m in matrices} else 8)
    first = optimizer.state[matrices[0]]
    # 0.1 and 0.04 of a gradient of 1, to half of the last of 10 and 11 bits
    assert ONE_SIX_NINE.decode(first["exp_avg"]).sub(0.1).abs().max() < 0.1 * 2**-10
    assert ZERO_SIX_TEN.decode(first["exp_avg_sq"]).sub(0.04).abs().max() < 0.04 * 2**-11


@pytest.mark.parametrize("settings", [{}, SIXTEEN], ids=["fp32", "16-bit"])
def test_sharded_weights_are_grouped_by_their_whole_shapes(settings):
    """ZeRO-3 leaves of a weight an empty tensor that knows its shape."""
    model = _prior(0).model
    names = {id(p): name for name, p in model.named_parameters()}
    found = []
    for sharded in (False, True):
        for p in model.parameters() if sharded else ():
            p.ds_shape, p.data = p.shape, torch.empty(0, device=DEVICE)
        groups = build(model, Optimizer(SCHEDULE, **settings)).param_groups
        found.append([sorted(names[id(p)] for p in group["params"]) for group in groups])
    assert found[0] == found[1]


@pytest.mark.parametrize("moments", ["fp32", "16-bit"])
def test_the_variance_is_clipped_before_use_and_kept_so(moments):
    p = nn.Parameter(torch.full((4, 4), 1.0, device=DEVICE))
    group = {"params": [p], "moments": moments, "variance_limit": 5.0, "weight_decay": 0.1}
    optimizer = PaperAdamW([group], lr=1e-2, betas=(0.9, 0.96), fused=True)
    p.grad = torch.full_like(p, 100.0)  # its variance, 0.04 · 100² = 400
    optimizer.step()
    kept = optimizer.state[p]["exp_avg_sq"]
    assert (kept if moments == "fp32" else ZERO_SIX_TEN.decode(kept)).eq(5.0).all()
    expected = 1 - 1e-2 * 0.1 - 1e-2 * 100 / (5.0 / 0.04) ** 0.5
    # an update of fp32
    torch.testing.assert_close(p.detach(), torch.full_like(p, expected), rtol=1e-6, atol=0)


def _updated(optimizer, parameters, seed: int, found_inf: float | None = None) -> None:
    made = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=made).to(p.device) * (torch.nan if found_inf else 1)
    optimizer.found_inf = None if found_inf is None else torch.tensor(found_inf, device=DEVICE)
    optimizer.step()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, torch.optim.AdamW),
        ({"variance_limit": 5.0}, PaperAdamW),
        (SIXTEEN, PaperAdamW),
        ({"muon_step_size_factor": 10, "variance_limit": 5.0}, MuonAdamW),
    ],
    ids=["adamw", "limit", "16-bit", "muon"],
)
def test_found_inf_skips_an_update(settings, kind):
    """Of PyTorch's fused AdamW too, on which the engine relies: nothing changes, and training goes on as if the update had
    never been tried. Also for the first update."""
    torch.manual_seed(0)
    skipping = _Model().to(DEVICE)
    straight = copy.deepcopy(skipping)
    config = Optimizer(SCHEDULE, **settings)
    optimizer, reference = build(skipping, config), build(straight, config)
    assert type(optimizer) is kind
    for seed, found_inf in ((0, 1.0), (1, 0.0), (2, 1.0), (3, 0.0), (4, None)):
        _updated(optimizer, list(skipping.parameters()), seed, found_inf)
        if not found_inf:
            _updated(reference, list(straight.parameters()), seed)
        for p, q in zip(skipping.parameters(), straight.parameters(), strict=True):
            assert torch.equal(p, q)
            for name, value in reference.state[q].items():
                assert torch.equal(optimizer.state[p][name], value)
    assert optimizer.state[skipping.head.bias]["step"].item() == 3


def test_flat_parts_as_zero_hands_them_over_are_updated_as_the_whole():
    """ZeRO-3 steps through its sub-groups, each in its group's place for one call of `step`."""
    torch.manual_seed(0)
    matrices = [nn.Parameter(torch.randn(300, 320, device=DEVICE)) for _ in range(2)]
    gains = [nn.Parameter(torch.randn(7, device=DEVICE))]
    settings = {"lr": 1e-3, "betas": (0.9, 0.96), "fused": True}

    def make(matrices, gains):
        in_16_bits = {"params": matrices, "weight_decay": 0.1, "moments": "16-bit", "variance_limit": 5.0}
        in_fp32 = {"params": gains, "weight_decay": 0.0, "moments": "fp32", "variance_limit": 5.0}
        return PaperAdamW([in_16_bits, in_fp32], **settings)

    flats = [nn.Parameter(p.detach().clone().flatten()) for p in (*matrices, *gains)]
    whole, sharded = make(matrices, gains), make(flats[:2], flats[2:])
    for group in sharded.param_groups:
        group["params"] = []
    for seed in range(3):
        made = torch.Generator().manual_seed(seed)
        for p, flat in zip((*matrices, *gains), flats, strict=True):
            p.grad = torch.randn(p.shape, generator=made).to(DEVICE)
            flat.grad = p.grad.flatten()
        whole.step()
        for number, flat in enumerate(flats):
            group = sharded.param_groups[0 if number < 2 else 1]
            group["params"] = [flat]
            sharded.step()
            group["params"] = []
    for p, flat in zip((*matrices, *gains), flats, strict=True):
        assert torch.equal(p.flatten(), flat)
        for name in MOMENTS:
            assert torch.equal(whole.state[p][name].flatten(), sharded.state[flat][name])
    assert sharded.state[flats[0]]["exp_avg"].dtype == torch.int16


def test_state_is_restored_as_codes():
    torch.manual_seed(0)
    model = _Model().to(DEVICE)
    optimizer = build(model, Optimizer(SCHEDULE, **SIXTEEN))
    _updated(optimizer, list(model.parameters()), 1)
    other = copy.deepcopy(model)
    restored = build(other, Optimizer(SCHEDULE, **SIXTEEN))
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for which, parameters in ((optimizer, model.parameters()), (restored, other.parameters())):
        _updated(which, list(parameters), 2)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(value, restored.state[q][name]) for name, value in optimizer.state[p].items())
    assert restored.state[other.layers[0].weight]["exp_avg"].dtype == torch.int16


class _LargestOfFp32(TorchDispatchMode):
    """Within, notes the most elements of an fp32 tensor that an operator gives."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            fresh = isinstance(tensor, torch.Tensor) and not function.is_view and not any(tensor is a for a in args)
            if fresh and tensor.dtype == torch.float32:
                self.numel = max(self.numel, tensor.numel())
        return out


def test_decoded_moments_are_never_whole(monkeypatch):
    monkeypatch.setattr(optimizers, "_PIECE", {"cpu": 1000})
    p = nn.Parameter(torch.randn(100, 101))
    p.grad = torch.randn_like(p)
    group = {"params": [p], "moments": "16-bit", "variance_limit": 5.0}
    with _LargestOfFp32() as largest:
        PaperAdamW([group], lr=1e-3, fused=True).step()
    assert largest.numel == 1000


def test_kernels_in_another_order_of_memory():
    torch.manual_seed(0)
    kernel, gradient = torch.randn(4, 3, 5, 5, device=DEVICE), torch.randn(4, 3, 5, 5, device=DEVICE)
    moved = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(kernel.clone(memory_format=memory_format))
        p.grad = gradient.clone()
        group = {"params": [p], "moments": "fp32", "variance_limit": 0.5}
        PaperAdamW([group], lr=1e-3, fused=True).step()
        moved.append(p.detach())
    # with vectorised instructions or without
    torch.testing.assert_close(*moved, rtol=1e-6, atol=1e-7)
    assert (moved[0] - kernel).abs().min() > 1e-4


def test_a_gradient_scalers_gradients_are_unscaled_first():
    p, q = (nn.Parameter(torch.ones(4, 4, device=DEVICE)) for _ in range(2))
    ours, reference = (PaperAdamW([{"params": [w], **SIXTEEN}], lr=1e-2, fused=True) for w in (p, q))
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**16)
    scaler.scale(p.pow(2).sum()).backward()
    scaler.step(ours)
    q.pow(2).sum().backward()
    reference.step()
    # not scaled, the variance would have been clipped and the update 100 times as large
    assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiled_update_is_the_plain_one(dtype):
    # traced as a whole, run by PyTorch's own kernels where building others takes long
    backend = "inductor" if DEVICE.type == "cuda" else "aot_eager"
    compiled = torch.compile(optimizers._update, dynamic=True, fullgraph=True, backend=backend)
    numbers = [torch.tensor(value, device=DEVICE) for value in (1e-3, 0.9, 0.999)]
    torch.manual_seed(0)
    p, gradient, mean = (torch.randn(1000, device=DEVICE) for _ in range(3))
    variance, skip = torch.rand(1000, device=DEVICE), torch.tensor(False, device=DEVICE)
    found = [p.to(dtype, copy=True), gradient, ONE_SIX_NINE.encode(mean), ZERO_SIX_TEN.encode(variance)]
    expected = [t.clone() for t in found]
    rounding = tuple(torch.tensor(n, device=DEVICE) for n in (key_of(0, "w"), 3.0, 17))
    settings = (skip, None if dtype == torch.float32 else rounding, 0.9, 0.96, 1e-8, 5.0)
    compiled(*found, *numbers, *settings)
    optimizers._update(*expected, *numbers, *settings)
    assert (expected[0] - p).abs().max() > 1e-3
    # fused multiplications and additions, in fp32; a code may then be the neighbour's, and of 65,536 or 8,192 places of a last bit
    # one, so that a few of a thousand weights may be rounded the other way
    off = (found[0].float() - expected[0].float()).abs() > 1e-6 * (1 + expected[0].float().abs())
    assert off.sum() <= (0 if dtype == torch.float32 else 5)
    assert all((a.int() - b.int()).abs().max() <= 1 for a, b in zip(found[2:], expected[2:], strict=True))


@pytest.mark.gpu
def test_an_update_never_waits_for_the_gpu():
    model = _Model().to(DEVICE)
    optimizer = build(model, Optimizer(SCHEDULE, **SIXTEEN))
    optimizer.found_inf = torch.zeros((), device=DEVICE)
    gradients = [torch.randn_like(p) for p in model.parameters()]
    for number in range(2):
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        torch.cuda.set_sync_debug_mode("error" if number else "default")  # compiled in the first
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_muon_is_pytorchs_and_the_rest_is_adamw():
    settings = {"weight_decay": 0.1, "clip_norm": 1.0}
    torch.manual_seed(0)
    ours, theirs = _Model(), _Model()
    theirs.load_state_dict(ours.state_dict())
    before = [matrix.clone() for matrix in _parts(ours)[0]]
    optimizer = build(ours, Optimizer(Schedule(2e-3, 2e-3), muon_step_size_factor=10, **settings))
    assert isinstance(optimizer, MuonAdamW)
    _two_updates([optimizer], ours)

    matrices, others = _parts(theirs)
    tables, gains = [p for p in others if p.ndim >= 2], [p for p in others if p.ndim < 2]
    adamw = torch.optim.AdamW(
        [{"params": tables, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}], lr=2e-3, fused=True
    )
    _two_updates([torch.optim.Muon(matrices, lr=2e-2, momentum=0.95, weight_decay=0.1), adamw], theirs)
    for mine, reference, start in zip(_parts(ours)[0], matrices, before, strict=True):
        # both orthogonalise in bf16 (8 bits), in another order of sums
        moved, expected = mine - start, reference - start
        assert (moved - expected).norm() < 0.03 * expected.norm()
    for mine, reference in zip(_parts(ours)[1], others, strict=True):
        assert torch.equal(mine, reference)


def test_muon_moves_an_input_major_weight_as_its_transpose():
    """Narrowing and widening ones, and one whose stored shape looks like a fused projection's."""
    shapes = ((64, 16), (16, 64), (48, 16))  # inputs, outputs
    plain, stored = nn.Module(), nn.Module()
    torch.manual_seed(0)
    plain.layers = nn.ModuleList([nn.Linear(*shape) for shape in shapes])
    stored.layers = nn.ModuleList([InputMajorLinear(*shape) for shape in shapes])
    for a, b in zip(plain.layers, stored.layers, strict=True):
        b.weight.data, b.bias.data = a.weight.detach().t().contiguous(), a.bias.detach().clone()
    for model in (plain, stored):
        optimizer = build(model, Optimizer(SCHEDULE, muon_step_size_factor=10))
        for seed in range(2):
            torch.manual_seed(seed)
            for layer, shape in zip(model.layers, shapes, strict=True):
                gradient = torch.randn(shape)
                layer.weight.grad = gradient if model is stored else gradient.t().contiguous()
                layer.bias.grad = torch.randn(shape[1])
            optimizer.step()
    for a, b in zip(plain.layers, stored.layers, strict=True):
        assert torch.equal(a.weight.t(), b.weight) and torch.equal(a.bias, b.bias)


def test_a_fused_projection_is_three_matrices():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(8, 24, bias=False)])
    weight = model.layers[0].weight
    start = weight.detach().clone()
    optimizer = build(model, Optimizer(Schedule(1e-3, 1e-3), weight_decay=0.0, muon_step_size_factor=10))
    weight.grad = torch.randn_like(weight)
    weight.grad[:8] *= 1000  # would drown the others' directions were they one matrix
    optimizer.step()
    for part in ((start - weight.detach()) / 1e-2).chunk(3):
        assert torch.linalg.svdvals(part).min() > 0.5


def test_orthogonalized_keeps_the_singular_vectors():
    torch.manual_seed(0)
    for shape in ((2, 16, 16), (3, 8, 32), (2, 32, 8)):
        found = orthogonalized(torch.randn(shape))
        u, s, vh = torch.linalg.svd(found, full_matrices=False)
        # what the coefficients are made for, give or take bf16
        assert s.min() > 0.5 and s.max() < 1.3
    matrix = torch.randn(1, 8, 32)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    aligned = torch.diagonal(u.mT @ orthogonalized(matrix) @ vh.mT, dim1=1, dim2=2)
    assert aligned.min() > 0.5


def test_rmsprop_is_pytorchs_without_momentum_and_skips_where_it_is_told_to():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).to(DEVICE)
    theirs = copy.deepcopy(ours)
    settings = Optimizer(Schedule(7e-3, 7e-3), method="rmsprop", beta1=0, beta2=0.9, epsilon=1e-3, weight_decay=0)
    mine = build(ours, settings)
    other = torch.optim.RMSprop(theirs.parameters(), lr=7e-3, alpha=0.9, eps=1e-3)
    for seed in range(5):
        for model, optimizer in ((ours, mine), (theirs, other)):
            torch.manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            # the same sums, in another order of operations
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    assert {name for state in mine.state.values() for name in state} == {"step", "exp_avg_sq"}
    before = copy.deepcopy((ours.state_dict(), mine.state_dict()["state"]))
    mine.found_inf = torch.tensor(1.0)
    next(ours.parameters()).grad[:] = torch.inf
    mine.step()
    torch.testing.assert_close((ours.state_dict(), mine.state_dict()["state"]), before, rtol=0, atol=0)
    mine.found_inf = torch.tensor(0.0)
    next(ours.parameters()).grad[:] = 1
    mine.step()
    assert mine.state[next(ours.parameters())]["step"] == 6
