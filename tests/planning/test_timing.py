"""The model of overlap, beside times made by hand."""

import pytest

from dalle.models.flops import prior_flops
from dalle.planning.exchanged import Call, Exchanged
from dalle.planning.timing import Rates, update
from tests.planning.small import MODEL, layout

FAST = 1e30
FLOPS = prior_flops(MODEL)


def _sent(*calls: Call, flops: int = 0) -> Exchanged:
    return Exchanged(calls, 0, 0, (), flops)


def test_alone_it_is_operations_and_memory():
    found = update(layout(1, 1, accumulation_steps=4), _sent(), 1000, Rates(FLOPS, FAST, FAST, FAST, 500))
    assert found.seconds == pytest.approx(8 + 2 * 1000 / 500)
    assert found.earlier_s == pytest.approx(6)
    again = layout(1, 1, recompute=True)
    blocks = sum(again.sizes.forward_flops[:-1])
    assert update(again, _sent(), 0, Rates(FLOPS, FAST, FAST, FAST, FAST)).seconds == pytest.approx(
        8 * (1 + blocks / FLOPS)
    )


def test_muon_comes_on_top():
    muon = layout(1, 1, optimizer={"muon_step_size_factor": 10.0})
    found = update(muon, _sent(), 0, Rates(FLOPS, 2 * FLOPS, FAST, FAST, FAST))
    assert found.seconds == pytest.approx(8 + muon.sizes.muon_flops / (2 * FLOPS))


def test_operations_are_those_that_are_counted():
    """All together, and of the heads alone."""
    sizes = layout(1, 1).sizes
    assert 3 * sum(sizes.forward_flops) == FLOPS
    scored = MODEL.caption_tokens * MODEL.text_vocabulary + MODEL.image_slots * MODEL.codebook_size
    assert sizes.forward_flops[-1] == 2 * MODEL.width * scored
    assert len(sizes.forward_flops) == 2 * MODEL.depth + 1


def test_an_exchange_within_the_backward_pass_is_hidden():
    """Two machines of two GPUs, which share a link: 10 bytes of each take 20 of its."""
    two = layout(2, 2, rank=8, zero_stage=3)
    rates = Rates(2 * FLOPS, FAST, 1000, FAST, FAST)  # two samples in a second
    early, late = (update(two, _sent(Call(after, 10)), 0, rates) for after in (0, 6))
    assert (early.exposed_s, early.seconds) == (0, pytest.approx(1))
    assert late.exposed_s == pytest.approx(0.02) and late.seconds == pytest.approx(1.02)
    # one after the other
    many = update(two, _sent(*(Call(6, 10) for _ in range(3))), 0, rates)
    assert many.exposed_s == pytest.approx(0.06)
    compressed = update(two, _sent(flops=FLOPS), 0, rates)
    assert compressed.seconds == pytest.approx(1 + 8 / 2)


def test_slow_gathering_is_waited_for():
    """At stage 3 each micro-batch gathers the resblocks' weights twice and reduces their gradients, the norms and biases as fp32."""
    two = layout(1, 2, zero_stage=3, accumulation_steps=2)
    found = update(two, _sent(), 0, Rates(FAST, FAST, FAST, 100.0, FAST))
    resblocks = 2 * (2 * 12 * MODEL.width**2 + 4 * (3 + 1 + 4 + 1 + 4) * MODEL.width)
    assert found.shared_bytes == pytest.approx(2 * 3 * resblocks / 2)
    assert found.seconds == pytest.approx(found.shared_bytes / 100)
    # of two machines' processes all together it goes through the link
    across = update(layout(2, 2, zero_stage=3, ranks_per_machine=0), _sent(), 0, Rates(FAST, FAST, 100.0, FAST, FAST))
    assert across.seconds == pytest.approx(3 * resblocks * 3 / 4 / 100)
    assert not across.inside.done


def test_below_stage_3_gradients_come_after_the_backward_pass():
    weights = layout(1, 1).sizes.weights
    zero = update(layout(1, 2), _sent(), 0, Rates(FLOPS, FAST, FAST, 100.0, FAST))
    assert zero.seconds == pytest.approx(4 + 2 * 4 * weights / 2 / 100)
    matrices = 2 * 12 * MODEL.width**2
    one = update(layout(1, 2, zero_stage=1), _sent(), 0, Rates(FLOPS, FAST, FAST, 100.0, FAST))
    wire = 2 * matrices + 4 * (weights - matrices)
    assert one.seconds == pytest.approx(4 + (wire + 4 * weights) / 2 / 100)  # and then the weights of others
    short = update(layout(1, 2, zero_stage=1, weights="16-bit"), _sent(), 0, Rates(FLOPS, FAST, FAST, 100.0, FAST))
    assert short.seconds == pytest.approx(4 + (wire + 4 * weights - 2 * matrices) / 2 / 100)
