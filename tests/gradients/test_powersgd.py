"""PowerSGD against the steps of appendix E written out with NumPy, a matrix at a time, machines as threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dalle.config import Compression
from dalle.gradients.exchange import decode, encode, finished
from dalle.gradients.lowbit import ONE_SIX_NINE
from dalle.gradients.powersgd import PowerSGD

CPU = torch.device("cpu")
SHAPES = {"qkv": (3 * 8, 16, 3), "project": (8, 16, 1), "widen": (32, 16, 1), "narrow": (24, 16, 1)}
"""What one of two processes holds at width 16; `narrow` stands for any other shape."""


class _Wire:
    """What passes between so many threads, in a format."""

    def __init__(self, machines: int, format: str = "fp32"):
        self.machines, self.format = machines, format
        self.barrier, self.held = threading.Barrier(machines), [None] * machines
        self.calls, self.bytes = 0, 0

    def all(self, number: int, values: torch.Tensor) -> list[torch.Tensor]:
        """Everybody's, rounded to the format."""
        self.held[number] = decode(encode(values, self.format), self.format)
        self.barrier.wait()
        found = list(self.held)
        if self.barrier.wait() == 0:
            self.calls += 1
        return found


class _Exchange:
    """One thread's end of it."""

    def __init__(self, wire: _Wire, number: int):
        self.wire, self.size, self.number = wire, wire.machines, number
        self.found: list[torch.Tensor] = []

    def mean(self, values):
        mean = torch.stack(self.wire.all(self.number, values)).mean(dim=0)
        return decode(encode(mean, self.wire.format), self.wire.format)
        yield  # a generator, as the real one

    def owned(self, values, sizes, compute, more=0):
        means = torch.stack(self.wire.all(self.number, values)).mean(dim=0).split(sizes)
        parts = self.wire.all(self.number, compute(means[self.number]))
        assert [part.numel() for part in parts] == [size + more for size in sizes]
        self.found.append(torch.cat(parts))
        return parts
        yield


def _machines(count: int, config: Compression, ranks_per_machine: int = 2, blocks=None) -> list[PowerSGD]:
    wire = _Wire(count, config.format)
    shape = (SHAPES, config, ranks_per_machine, 1)
    return [PowerSGD(*shape, _Exchange(wire, number), CPU, blocks) for number in range(count)]


def _gradients(seed: int, scale: float = 1e-3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(rows * columns, generator=generator) for n, (rows, columns, _) in SHAPES.items()}


def _update(machines: list[PowerSGD], gradients: list[dict], applied: bool = True):
    """What one update applies on each machine, nothing if it is skipped, and the squared norms they found. A machine has one
    gradient, or several micro-batches' one after the other."""

    def one(machine: PowerSGD, mine: dict):
        for micro_batch in mine if isinstance(mine, list) else [mine]:
            for name, gradient in micro_batch.items():
                machine.add(name, gradient)
        for number in range(len(machine.groups)):
            finished(machine.factorise(number))
        squares = machine.squares()
        machine.decide(torch.tensor(applied))
        found = {name: machine.applied(name).flatten() for name in SHAPES} if applied else {}
        machine.close()
        return found, squares.item()

    with ThreadPoolExecutor(len(machines)) as pool:
        results = list(pool.map(one, machines, gradients))
    return [r[0] for r in results], [r[1] for r in results]


def _buffers(machine: PowerSGD) -> dict[str, torch.Tensor]:
    return {name: machine.waiting(name) for name in SHAPES}


def _reference(buffers: list[np.ndarray], q0: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Steps 3 to 10 for one matrix on all machines, by the orientation that makes P the shorter side: what is applied,
    and the buffers afterwards."""
    if buffers[0].shape[0] > buffers[0].shape[1]:
        applied, left = _reference([b.T for b in buffers], q0)
        return applied.T, [b.T for b in left]
    p = np.mean([b @ q0 for b in buffers], axis=0)
    p = p + 1e-6 * np.eye(*p.shape)
    p, _ = np.linalg.qr(p)
    q = np.mean([b.T @ p for b in buffers], axis=0)
    return p @ q.T, [b - p @ q.T for b in buffers]


def _matrices(flat: torch.Tensor, name: str) -> list[np.ndarray]:
    rows, columns, parts = SHAPES[name]
    return list(flat.double().numpy().reshape(parts, rows // parts, columns))


@pytest.mark.parametrize("blocks", [None, [["qkv"], ["narrow"], ["widen", "project"]]])
def test_updates_are_those_of_the_steps_written_out(blocks):
    """Whatever travels together: all matrices, or first q, k and v, which 3 machines can share out evenly."""
    machines = _machines(3, Compression(rank=8, format="fp32"), blocks=blocks)
    assert len(machines[0].groups) == (2 if blocks else 1)
    q0_of = {name: stack.q0_LK.double().numpy() for stack in machines[0].stacks() for name in stack.names}
    kept = {
        name: [[np.zeros(m.shape) for m in _matrices(torch.zeros(r * c), name)] for _ in machines]
        for name, (r, c, _) in SHAPES.items()
    }
    for step in range(4):
        gradients = [_gradients(10 * step + number) for number in range(3)]
        applied, squares = _update(machines, gradients)
        total = 0.0
        for name in SHAPES:
            for part in range(SHAPES[name][2]):
                held = [kept[name][n][part] + _matrices(gradients[n][name], name)[part] for n in range(3)]
                expected, left = _reference(held, q0_of[name])
                for n in range(3):
                    kept[name][n][part] = left[n]
                    # fp32 against fp64: sums of at most 32 products of 1e-3 at relative 6e-8, through a QR
                    np.testing.assert_allclose(_matrices(applied[n][name], name)[part], expected, atol=1e-8)
                total += (expected**2).sum()
        assert squares == pytest.approx([total] * 3, rel=1e-5)  # the norm of what is applied, found from Q alone
    assert machines[0].exchange.wire.calls == 4 * 3 * len(machines[0].groups)  # P there and back, and Q


@pytest.mark.parametrize("format", ["fp32", "bf16", "1-6-9"])
def test_one_owner_s_columns_are_as_good_as_everyone_s(format):
    """What of a gradient is not applied, against P and Q that every machine makes of the same averages in double precision."""
    machines = _machines(2, Compression(rank=8, format=format))
    gradients = []
    for number in range(2):
        spectrum = {name: 2.0 ** -torch.arange(columns).float() for name, (_, columns, _) in SHAPES.items()}
        drawn = _gradients(number)
        gradients.append({n: (g.view(-1, len(spectrum[n])) * spectrum[n]).flatten() for n, g in drawn.items()})
    applied, _ = _update(machines, gradients)
    assert all(torch.equal(applied[0][name], applied[1][name]) for name in SHAPES)
    found = [machine.exchange.found for machine in machines]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))  # P, to the bit
    q0_of = {name: stack.q0_LK.double().numpy() for stack in machines[0].stacks() for name in stack.names}
    # rank 4 of 8 to 32; P and Q, rounded to 2⁻⁹ or less, add 2⁻⁸ of what is applied at most
    for name in SHAPES:
        for part in range(SHAPES[name][2]):
            held = [_matrices(gradients[n][name], name)[part] for n in range(2)]
            expected, _ = _reference(held, q0_of[name])
            mean = np.mean(held, axis=0)
            lost, least = (
                np.linalg.norm(mean - matrix) for matrix in (_matrices(applied[0][name], name)[part], expected)
            )
            assert 0.01 * np.linalg.norm(mean) < least
            assert abs(lost - least) < 2**-7 * np.linalg.norm(mean)


@pytest.mark.parametrize("format", ["fp32", "bf16", "1-6-9"])
def test_nothing_is_lost(format):
    """The buffers' sum plus what was applied on every machine is the sum of all gradients so far."""
    machines = _machines(2, Compression(rank=4, format=format))
    given, taken = {n: 0.0 for n in SHAPES}, {n: 0.0 for n in SHAPES}
    for step in range(20):
        gradients = [_gradients(100 * step + number) for number in range(2)]
        applied, _ = _update(machines, gradients)
        for name in SHAPES:
            given[name] = given[name] + gradients[0][name] + gradients[1][name]
            taken[name] = taken[name] + 2 * applied[0][name]
            assert torch.equal(applied[0][name], applied[1][name])
    # a buffer is rounded once an update, to 2⁻⁸ (bf16) or 2⁻¹⁰ (1-6-9) of at most 1e-2
    tolerance = {"fp32": 1e-6, "bf16": 20 * 2 * 2**-8 * 1e-2, "1-6-9": 20 * 2 * 2**-10 * 1e-2}[format]
    for name in SHAPES:
        left = _buffers(machines[0])[name] + _buffers(machines[1])[name]
        torch.testing.assert_close(left + taken[name], given[name], atol=tolerance, rtol=0)
        last = gradients[0][name] + gradients[1][name]
        assert left.norm() > last.norm()  # more than an update's worth has to wait: the rank is small
    assert all(stack.buffer_NSL.element_size() == (4 if format == "fp32" else 2) for stack in machines[0].stacks())


@pytest.mark.parametrize("format", ["fp32", "bf16", "1-6-9"])
def test_nothing_of_a_single_update_is_lost(format):
    """Neither on the way into a buffer nor out of it: a few per cent of one gradient would show."""
    machines = _machines(2, Compression(rank=4, format=format))
    for step in range(3):
        before = [_buffers(machine) for machine in machines]
        gradients = [_gradients(100 * step + number) for number in range(2)]
        applied, _ = _update(machines, gradients)
        for name in SHAPES:
            for number in range(2):
                expected = before[number][name] + gradients[number][name] - applied[number][name]
                lost = (_buffers(machines[number])[name] - expected).norm() / gradients[number][name].norm()
                # the buffer, less than three gradients' worth, is rounded once: to 2⁻⁸ in bf16, 2⁻¹⁰ in 1-6-9. What P and Q
                # are rounded to is both applied and subtracted
                assert lost < 3 * 2**-8, (name, lost)
                assert applied[number][name].norm() > 0.1 * gradients[number][name].norm()


def test_the_seed_draws_the_fixed_matrices():
    """The same for all machines, another for another seed, and not another at each update."""
    gradients = [_gradients(0), _gradients(1)]
    applied = {}
    for seed in (0, 1):
        machines = _machines(2, Compression(rank=4, format="fp32", seed=seed))
        held = [stack.q0_LK.clone() for stack in machines[0].stacks()]
        applied[seed] = _update(machines, gradients)[0][0]
        for machine in machines:
            assert all(torch.equal(stack.q0_LK, q0) for stack, q0 in zip(machine.stacks(), held, strict=True))
    again = _update(_machines(2, Compression(rank=4, format="fp32")), gradients)[0][0]
    for name in SHAPES:
        assert torch.equal(applied[0][name], again[name])
        assert (applied[0][name] - applied[1][name]).norm() > 0.1 * applied[0][name].norm()


def test_full_rank_on_one_machine_is_no_compression():
    (machine,) = _machines(1, Compression(rank=64, format="fp32"))
    for step in range(3):
        gradients = _gradients(step)
        (applied,), _ = _update([machine], [gradients])
        for name in SHAPES:
            # P is orthonormal to 1e-7, and gradients are 1e-3
            torch.testing.assert_close(applied[name], gradients[name], atol=2e-9, rtol=1e-5)
            assert _buffers(machine)[name].abs().max() < 2e-9


def test_a_skipped_update_drops_what_would_have_been_applied():
    """And nothing else: buffers are what they would be had it taken place, matrices whose gradient was not finite apart, which
    take in none of it on that machine alone."""
    skipping, plain = (_machines(2, Compression(rank=4, format="fp32")) for _ in range(2))
    for machines in (skipping, plain):
        _update(machines, [_gradients(0), _gradients(1)])
    scales = skipping[0].scales.clone()
    spoilt, rest = [_gradients(2), _gradients(3)], [_gradients(2), _gradients(3)]
    spoilt[0]["widen"][5] = float("inf")
    spoilt[1]["qkv"][8 * 16 + 3] = float("nan")  # of k
    rest[0]["widen"].zero_()
    rest[1]["qkv"][8 * 16 : 2 * 8 * 16] = 0
    assert _update(skipping, spoilt, applied=False) == ([{}, {}], [np.inf, np.inf])
    _update(plain, rest)
    for machine, other in zip(skipping, plain, strict=True):
        for name, values in _buffers(machine).items():
            assert torch.equal(values, _buffers(other)[name]), name
        assert torch.equal(machine.scales, scales)
    following = [_gradients(4), _gradients(5)]
    (applied, _), (expected, _) = _update(skipping, following)[0], _update(plain, following)[0]
    assert all(torch.equal(applied[name], expected[name]) for name in SHAPES)


def test_the_scale_of_the_wire_stays_in_a_skipped_update():
    machines = _machines(2, Compression(rank=4))
    _update(machines, [_gradients(0), _gradients(1)])
    scales = machines[0].scales.clone()
    _update(machines, [_gradients(2, 1e3), _gradients(3, 1e3)], applied=False)
    assert torch.equal(machines[0].scales, scales)
    _update(machines, [_gradients(4), _gradients(5)])
    assert not torch.equal(machines[0].scales, scales)


@pytest.mark.parametrize("format", ["fp32", "bf16", "1-6-9"])
def test_skipped_updates_do_not_pile_up(format):
    """What waits after twenty of them is what waits after twenty that took place."""
    norms = []
    for applied in (True, False):
        machines = _machines(2, Compression(rank=4, format=format))
        for step in range(20):
            _update(machines, [_gradients(10 * step), _gradients(10 * step + 1)], applied)
        norms.append([values.norm().item() for values in _buffers(machines[0]).values()])
    # scales of the wire stayed as they were, so that its roundings differ, by 2⁻⁸ at most
    assert norms[1] == pytest.approx(norms[0], rel=0 if format == "fp32" else 0.02)


@pytest.mark.parametrize(("format", "largest"), [("fp32", 1e-6), ("bf16", 2**-6), ("1-6-9", 2**-8)])
@pytest.mark.parametrize("count", [3, 32])
def test_micro_batches_are_added_one_after_the_other(format, largest, count):
    """Each sum is rounded once: of noise that is `count` times weaker nothing is lost but what is rounded away at random, the
    root of `count` times half of a last bit, 2⁻⁹ or 2⁻¹⁰ of what waits, by √12 / 2 too much. Nor is it always too little."""
    machine, shift = _machines(1, Compression(rank=4, format=format))[0], 2e-5
    _update([machine], [_gradients(0)])
    before = _buffers(machine)
    drawn = [_gradients(10 + number, 1e-3 / count**0.5) for number in range(count)]
    for gradients in drawn:
        for name in SHAPES:
            gradients[name] += shift
            machine.add(name, gradients[name])
    for name, values in _buffers(machine).items():
        wanted = before[name] + sum(gradients[name] for gradients in drawn)
        lost = values - wanted
        assert lost.norm() < largest * count**0.5 / 3**0.5 * wanted.norm()
        # the mean of so many that are as often too large: three standard deviations
        assert lost.mean().abs() <= 3 * lost.std() / lost.numel() ** 0.5 + 1e-9


def test_a_buffer_that_is_not_finite_is_emptied():
    machines = _machines(2, Compression(rank=4, format="fp32"))
    _update(machines, [_gradients(0), _gradients(1)])
    broken = machines[1].waiting("project")
    broken[3] = float("nan")
    machines[1].set_waiting("project", broken)
    _, squares = _update(machines, [_gradients(2), _gradients(3)], applied=False)
    assert not np.isfinite(squares).any()  # what was averaged reached both
    assert not _buffers(machines[1])["project"].any()
    assert _buffers(machines[0])["project"].any() and _buffers(machines[1])["widen"].any()


def test_scales_of_the_wire_keep_large_and_small_gradients():
    """Gradients near both ends of 1-6-9, whose factors would leave it: scaled after the first update they come through."""
    for scale in (1e-14, 2.0):
        machines = _machines(2, Compression(rank=32, format="1-6-9"))
        for step in range(4):
            gradients = [_gradients(10 * step + number, scale) for number in range(2)]
            waiting = [_buffers(machine) for machine in machines]
            applied, _ = _update(machines, gradients)
        expected = sum(waiting[n]["project"] + gradients[n]["project"] for n in range(2)) / 2
        # rank 16 of 8 rows is full, so only rounding is between: 2⁻¹⁰ in the buffer, in P and in Q
        assert (applied[0]["project"] - expected).norm() < 0.01 * expected.norm()
        assert machines[0].scales.tolist() == machines[1].scales.tolist() != [1.0, 1.0]


def test_the_scale_of_the_wire_changes_neither_columns_nor_the_next_scale():
    """Where the 1e-6 · I counts for as much as P itself. The largest number that was sent to an owner comes with its columns."""
    columns, largest, following = [], [], []
    for scale in (1.0, 2.0**20):
        machines = _machines(2, Compression(rank=4, format="1-6-9"))
        for machine in machines:
            machine.scales[0] = scale
        _update(machines, [_gradients(number, 1e-7) for number in range(2)])
        parts = machines[0].exchange.found[0].split([n + 1 for n in machines[0]._layouts[0].sizes()])
        columns.append(torch.cat([part[:-1] for part in parts]))
        largest.append(torch.stack([part[-1] for part in parts]))
        following.append(machines[0].scales[0].item())
    assert (columns[0] - columns[1]).abs().max() < 2**-8  # rounded to 2⁻¹⁰
    assert (largest[1] / largest[0] / 2**20 - 1).abs().max() < 2**-8
    # a power of two that brings the largest to between 2⁻⁷ and 2⁻⁶
    assert following[0] == following[1] and 2**-7 < following[0] * largest[0].max() <= 2**-6


def test_the_scale_of_the_wire_follows_smaller_gradients():
    """Full rank, so that what waits from before shrinks to its rounding, a thousandth, with each update."""
    machines, scales = _machines(2, Compression(rank=32, format="1-6-9")), []
    for scale in (1.0, 1e-6, 1e-6):
        _update(machines, [_gradients(number, scale) for number in range(2)])
        scales.append(machines[0].scales.clone())
    assert (scales[2] > 2**8 * scales[0]).all()


def test_what_no_format_can_hold_saturates():
    machines = _machines(2, Compression(rank=4, format="1-6-9"))
    for step in range(3):
        applied, squares = _update(machines, [_gradients(10 * step + number, 1e3) for number in range(2)])
        assert np.isfinite(squares).all() and all(gradient.isfinite().all() for gradient in applied[0].values())
    assert max(values.abs().max() for values in _buffers(machines[0]).values()) == ONE_SIX_NINE.largest


def test_a_rank_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"run\.compression\.rank 5: must be a multiple of the 2 processes"):
        _machines(1, Compression(rank=5))


@pytest.mark.parametrize(("format", "num_bytes"), [("fp32", 4), ("bf16", 2), ("1-6-9", 2)])
def test_p_and_q_wait_for_the_update_as_they_came(format, num_bytes):
    """In the format of the wire, and Q by its own scale, whatever the one of P: nothing is rounded once more."""
    (machine,) = _machines(1, Compression(rank=8, format=format))
    for name, gradient in _gradients(0).items():
        machine.add(name, gradient)
    machine.scales.copy_(torch.tensor([2.0**20, 2.0**4]))
    came = []
    plain = machine.exchange.mean

    def mean(values):
        found = yield from plain(values)
        came.append(found.clone())
        return found

    machine.exchange.mean = mean
    finished(machine.factorise(0))
    stacks = list(machine.stacks())
    assert all(each.element_size() == num_bytes for s in stacks for each in (s.p_NSK, s.q_NLK))
    assert torch.equal(torch.cat([machine._q(s).flatten() for s in stacks]), came[0] / 2.0**4)
    p_N = torch.cat([machine._p(s)[i].flatten() for s in stacks for i in range(len(s.buffer_NSL))])
    assert torch.equal(p_N.sort().values, machine.exchange.found[0][:-1].sort().values)
    assert machine.squares().item() == pytest.approx((came[0] / 2.0**4).square().sum().item(), rel=1e-6)
