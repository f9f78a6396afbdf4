"""What machines exchange, beside appendix E's counts made by hand, and the moments at which it begins."""

import pytest

from dalle.planning.exchanged import exchanged
from tests.planning.small import layout

# 2 processes a machine, rank 8, so 4 of each shard: of a layer q, k, v and the projection are 32 × 64, the MLP's two 64 × 128
P_ELEMENTS = 2 * (4 * 32 + 2 * 64) * 4
Q_ELEMENTS = 2 * (4 * 64 + 2 * 128) * 4
REST = 2 * (64 * 3 + 64 + 64 * 4 + 64 + 4 * 64)  # biases and norms of 2 layers
REST += 64 * (41 + 8 + 8 + 25 + 4 + 4 + 2) + (40 + 24) * (64 + 1)  # embeddings and the last norm, heads


def test_bytes_are_those_of_p_and_q_and_the_rest():
    found = exchanged(layout(4, 2, rank=8, zero_stage=3))
    expected = 2 * 3 / 4 * (2 * (P_ELEMENTS + Q_ELEMENTS) + 4 * REST / 2)
    # a number more for each owner and group, shards of vectors rounded up
    assert found.sent_bytes == pytest.approx(expected, rel=0.02)
    assert found.error_bytes == 2 * 2 * 12 * 64**2 // 2
    # products with Q0 and P, and P · Qᵀ: three of a multiply-add for each element and rank
    assert found.flops == 3 * 2 * (2 * 12 * 64**2 // 2) * 4


def test_uncompressed_gradients_go_as_fp32():
    weights = 2 * 12 * 64**2 + REST
    assert exchanged(layout(4, 2, zero_stage=3)).sent_bytes == pytest.approx(2 * 3 / 4 * 4 * weights / 2, rel=0.01)
    assert exchanged(layout(4, 2)).calls == ()  # by DeepSpeed
    assert exchanged(layout(1, 2, zero_stage=3)).calls == ()  # no machines


@pytest.mark.parametrize("wire", ["bf16", "bf16-ring"])
def test_in_16_bits_half_of_that(wire):
    """What is not compressed as well; where DeepSpeed averages, and on one machine, nothing."""
    whole = exchanged(layout(4, 2, zero_stage=3))
    half = exchanged(layout(4, 2, zero_stage=3, wire=wire))
    assert half.sent_bytes == pytest.approx(whole.sent_bytes / 2, rel=1e-5)
    assert half.calls[0].after == whole.calls[0].after == 5  # the second of two collectives waits for the end
    compressed = exchanged(layout(4, 2, rank=8, zero_stage=3, wire=wire)).sent_bytes
    assert compressed == pytest.approx(2 * 3 / 4 * (2 * (P_ELEMENTS + Q_ELEMENTS) + 2 * REST / 2), rel=0.02)
    assert exchanged(layout(1, 2, wire=wire)).calls == ()
    assert exchanged(layout(4, 1, wire=wire)).sent_bytes == pytest.approx(2 * half.sent_bytes, rel=0.01)


def test_at_stage_3_it_begins_within_the_backward_pass():
    """The heads, four resblocks, the embeddings: what is not compressed of the heads is smaller than a call, and waits."""
    calls = exchanged(layout(2, 2, rank=8, zero_stage=3)).calls
    after = [call.after for call in calls]
    assert after == sorted(after) and after[0] == 1 and after[-1] == 6
    assert {1, 2, 3, 4} <= set(after)
    whole = exchanged(layout(2, 2, rank=8)).calls
    assert {call.after for call in whole} == {6}
    assert {call.after for call in exchanged(layout(2, 2, rank=8, zero_stage=3, offload="cpu")).calls} == {6}
    assert sum(call.bytes for call in whole) > 1.5 * sum(call.bytes for call in calls)  # whole matrices, not shards
