"""Stochastic rounding beside the list of all values that a 16-bit format has, and what it is for: steps below a last bit."""

import copy
import math

import pytest
import torch
from torch import nn

from dalle.gradients.partition import Piece, Place
from dalle.optim import optimizer as optimizers
from dalle.optim.optimizer import PaperAdamW
from dalle.optim.rounding import key_of, random_bits, rounded

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMATS = [torch.bfloat16, torch.float16]
ALL_RANDOM = torch.arange(2**16, dtype=torch.int32, device=DEVICE)


def _values(dtype: torch.dtype) -> torch.Tensor:
    """All finite values of a format, sorted, float64: those of all 65,536 codes."""
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = codes.view(dtype).double()
    return values[values.isfinite()].unique()


def _numbers(dtype: torch.dtype) -> list[float]:
    """fp32 numbers of both signs and many sizes, in float16 also below its smallest normal one; just above and below powers of
    two, and next to values that the format has."""
    generator = torch.Generator().manual_seed(0)
    smallest = -24 if dtype == torch.float16 else -120
    largest = 15 if dtype == torch.float16 else 100
    exponents = torch.randint(smallest, largest, (40,), generator=generator)
    found = torch.ldexp(1 + torch.rand(40, generator=generator), exponents)
    found = torch.cat([found, -found, torch.tensor([0.02, 1 + 2**-23, 1 - 2**-24, 2**-14 - 2**-37, 2**-14 + 2**-37])])
    return found.float().tolist()


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_mean_of_all_roundings_is_the_number_itself(dtype):
    """Of all random bits, not of some: each number becomes one of the two values beside it, the upper one as often as it is near.
    Below float16's smallest normal value a chance is a multiple of 2⁻¹³, and fp32 has numbers between."""
    values = _values(dtype)
    between = 0
    for number in _numbers(dtype):
        x = torch.full((2**16,), number, device=DEVICE)
        found = rounded(x, ALL_RANDOM, dtype)
        assert found.dtype == dtype
        found = found.double().cpu()
        exact = x[0].double().item()
        place = torch.searchsorted(values, torch.tensor(exact, dtype=torch.float64), right=True).item()
        below = values[place - 1].item()
        above = below if below == exact else values[place].item()
        assert set(found.tolist()) <= {below, above}, number
        tolerance = 2.0**-37 if dtype == torch.float16 and abs(exact) < 2**-14 else 0.0
        assert abs(found.mean().item() - exact) <= tolerance, number
        between += below != above
    assert between > 80


@pytest.mark.parametrize("dtype", FORMATS)
def test_values_of_the_format_stay(dtype):
    """All of them, zero and the subnormal ones too, whatever the random bits; and what is not finite."""
    values = _values(dtype).float().to(DEVICE)
    for bits in (0, 1, 2**13 - 1, 2**15, 2**16 - 1):
        random = torch.full(values.shape, bits, dtype=torch.int32, device=DEVICE)
        assert torch.equal(rounded(values, random, dtype).float(), values), bits
        odd = torch.tensor([math.inf, -math.inf, math.nan], device=DEVICE)
        found = rounded(odd, random[:3], dtype).float()
        assert found[:2].tolist() == [math.inf, -math.inf] and found[2].isnan()


def _splitmix(state: int) -> int:
    """The output function of Steele, Lea and Flood, "Fast splittable pseudorandom number generators", on whole numbers."""
    mask = 2**64 - 1
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
    return state ^ (state >> 31)


def _random(key: int, update: float, position: int, count: int) -> torch.Tensor:
    told = [torch.tensor(number, device=DEVICE) for number in (key, update, position)]
    return random_bits(*told, count)


def test_random_bits_are_those_of_the_book():
    key, golden = key_of(7, "layers.0.mlp.widen.weight"), 0x9E3779B97F4A7C15
    stream = _splitmix((_splitmix(key % 2**64) + 12 * golden) % 2**64)
    expected = [_splitmix((stream + (position + 1) * golden) % 2**64) >> 48 for position in range(1000, 1010)]
    assert _random(key, 12.0, 1000, 10).tolist() == expected


def test_random_bits_belong_to_a_seed_a_parameter_an_update_and_a_position():
    key = key_of(0, "w")
    whole = _random(key, 3.0, 0, 4096)
    assert torch.equal(whole[1000:1024], _random(key, 3.0, 1000, 24))  # whoever holds that part
    others = [_random(key, 4.0, 0, 4096), _random(key_of(1, "w"), 3.0, 0, 4096), _random(key_of(0, "v"), 3.0, 0, 4096)]
    others.append(_random(key, 3.0, 1, 4096))
    for other in others:
        assert (other == whole).float().mean() < 0.01  # 2⁻¹⁶ of them, by chance
    # of each bit the mean over 4,096 has a standard error of 1/128
    for bit in range(16):
        assert abs(((whole >> bit) & 1).double().mean() - 0.5) < 5 / 128


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_mean_of_many_roundings_is_the_number_within_its_standard_error(dtype):
    """With the random bits of a training, over positions and over updates."""
    generator = torch.Generator().manual_seed(1)
    x = 0.02 * torch.randn(512, generator=generator)
    values, exact = _values(dtype), x.double()
    place = torch.searchsorted(values, exact, right=True)
    size = values[place] - values[place - 1]
    chance = (exact - values[place - 1]) / size
    times, key = 400, key_of(0, "w")
    found = torch.stack(
        [rounded(x.to(DEVICE), _random(key, float(update), 0, 512), dtype).double().cpu() for update in range(times)]
    )
    errors = (found.mean(dim=0) - exact) / (size * (chance * (1 - chance) / times).sqrt())
    errors = errors[(chance > 0.05) & (chance < 0.95)]  # where the mean of 400 is nearly normal
    assert len(errors) > 400
    assert errors.abs().max() < 5  # one of 512 would be so in 3,400 such tests
    assert abs(errors.mean()) < 5 / len(errors) ** 0.5
    assert 0.8 < errors.std() < 1.2  # neither correlated nor less random than it should be; its own error is 0.03


# --- updates


def _placed(optimizer: PaperAdamW, parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
    for number, (p, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        name = f"matrix {number}"
        optimizer.places[p] = [Place(name, 0, Piece(tuple(p.shape), 0, p.numel(), shared=True))]
        optimizer.gradients[name] = gradient
        p.grad = torch.zeros_like(p)  # which is not read


def _adamw(parameters: list, moments: str = "fp32", **settings) -> PaperAdamW:
    # with a limit, which never binds, the update of fp32 weights is ours, too, and not PyTorch's fused one
    group = {"params": parameters, "moments": moments, "variance_limit": 15.0, **settings}
    return PaperAdamW([group], **{"lr": 1e-4, "betas": (0.9, 0.96), "fused": True})


@pytest.mark.parametrize("moments", ["fp32", "16-bit"])
def test_steps_below_the_last_bit_add_up(moments):
    """100 steps of 10⁻⁴ from 1, and as much weight decay, where bfloat16 has the values 1 and 1 − 2⁻⁸: rounded to the nearest not
    one is seen, of either."""
    count, updates, ones = 4096, 100, torch.ones(64, 64, device=DEVICE)
    p = nn.Parameter(ones.bfloat16())
    exact, nearest = nn.Parameter(ones.clone()), ones.bfloat16()
    ours, reference = _adamw([p], moments, weight_decay=1.0), _adamw([exact], moments, weight_decay=1.0)
    for _ in range(updates):
        _placed(ours, [p], [ones])
        ours.step()
        before = exact.detach().clone()
        exact.grad = ones.clone()
        reference.step()
        nearest = (nearest.float() + (exact.detach() - before)).bfloat16()
    # Adam's steps along one direction are lr long
    assert exact.mean().item() == pytest.approx(2 * (1 - 1e-4) ** updates - 1, abs=1e-4)
    assert torch.equal(nearest, ones.bfloat16())
    # a step is a jump of 2⁻⁸ with a chance of 2 · 10⁻⁴ · 2⁸
    chance = 2e-4 * 2**8
    error = (updates * chance * (1 - chance)) ** 0.5 * 2**-8 / count**0.5
    assert p.dtype == torch.bfloat16
    assert p.detach().double().mean().item() == pytest.approx(exact.detach().double().mean().item(), abs=5 * error)


def test_an_update_is_adamws_to_one_last_bit():
    """Beside the same steps from the same weights in fp32: moments alike, and each weight one of the two values around."""
    torch.manual_seed(0)
    start = (0.02 * torch.randn(50, 70, device=DEVICE)).bfloat16()
    p, exact = nn.Parameter(start.clone()), nn.Parameter(start.float())
    ours, reference = _adamw([p], weight_decay=0.1), _adamw([exact], weight_decay=0.1)
    values = _values(torch.bfloat16)
    for _ in range(3):
        gradient = torch.randn(50, 70, device=DEVICE)
        with torch.no_grad():
            exact.copy_(p)
        _placed(ours, [p], [gradient])
        exact.grad = gradient.clone()
        ours.step()
        reference.step()
        for name, value in reference.state[exact].items():
            assert torch.equal(ours.state[p][name], value) and ours.state[p][name].dtype == value.dtype
        wanted, found = exact.detach().double().cpu(), p.detach().double().cpu()
        place = torch.searchsorted(values, wanted, right=True)
        below, above = values[place - 1], values[place]
        assert ((found == below) | (found == above)).all()
        assert 0.3 < (found > wanted).float().mean() < 0.7


def test_parts_are_rounded_as_the_whole(monkeypatch):
    """What ZeRO makes of two matrices: parts end to end, the second's from the middle on, and something that fills it up. And the
    pieces that are updated at a time are of no account."""
    torch.manual_seed(0)
    matrices = [torch.randn(30, 32, device=DEVICE).bfloat16() for _ in range(2)]
    gradients = [torch.randn(30, 32, device=DEVICE) for _ in range(2)]
    whole = [nn.Parameter(m.clone()) for m in matrices]
    ours = _adamw(whole, weight_decay=0.1)
    parts = [(0, 100, 300), (1, 480, 480)]  # matrix, start, size
    flat = nn.Parameter(
        torch.cat([*(matrices[n].flatten()[s : s + size] for n, s, size in parts), matrices[0].new_zeros(5)])
    )
    theirs = _adamw([flat], weight_decay=0.1)
    offset = 0
    theirs.places[flat] = []
    for number, start, size in parts:
        theirs.places[flat].append(Place(f"matrix {number}", offset, Piece((30, 32), start, size)))
        offset += size
    for _ in range(2):
        _placed(ours, whole, gradients)
        monkeypatch.setattr(optimizers, "_PIECE", {"cpu": 2**16, "cuda": 2**24})
        ours.step()
        theirs.gradients = {f"matrix {n}": gradients[n].flatten()[s : s + size] for n, s, size in parts}
        flat.grad = torch.zeros_like(flat)
        monkeypatch.setattr(optimizers, "_PIECE", {"cpu": 77, "cuda": 77})
        theirs.step()
    offset = 0
    for number, start, size in parts:
        assert torch.equal(flat[offset : offset + size], whole[number].flatten()[start : start + size])
        offset += size
    assert flat[offset:].tolist() == [0.0] * 5
    assert not torch.equal(whole[0], matrices[0])
    # another seed is another rounding
    again = [nn.Parameter(m.clone()) for m in matrices]
    other = _adamw(again, weight_decay=0.1)
    other.seed = 1
    _placed(other, again, gradients)
    first = [nn.Parameter(m.clone()) for m in matrices]
    plain = _adamw(first, weight_decay=0.1)
    _placed(plain, first, gradients)
    other.step()
    plain.step()
    assert not torch.equal(again[0], first[0])


def test_a_skipped_update_leaves_weights_in_16_bits():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(8, 8, device=DEVICE).bfloat16())
    start, ours = p.detach().clone(), _adamw([p], weight_decay=0.1)
    for found_inf in (1.0, 0.0):
        ours.found_inf = torch.tensor(found_inf, device=DEVICE)
        _placed(ours, [p], [torch.randn(8, 8, device=DEVICE)])
        before = copy.deepcopy(ours.state[p])
        ours.step()
        assert torch.equal(p, start) == bool(found_inf)
        assert ours.state[p]["step"] == 1 - found_inf
    assert not before or (before["exp_avg"] == 0).all()
