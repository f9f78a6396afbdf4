"""Masks against a brute-force reading of the paper's sentences, and the published layer order."""

import pytest
import torch

from dalle.config import PriorModel
from dalle.masks import attention_mask, cache_places, image_mask, layer_kinds, seen_offsets


def _sees(kind: str, p: int, q: int, grid: int, kernel: int) -> bool:
    if q > p:
        return False
    if kind == "dense":
        return True
    if kind == "row":
        return p - grid <= q
    if kind == "column":
        return p % grid == q % grid
    half = kernel // 2
    return any(q == p - (grid * dr + dc) for dr in range(half + 1) for dc in range(-half, half + 1))


@pytest.mark.parametrize("kind", ["row", "column", "conv", "dense"])
@pytest.mark.parametrize(("grid", "kernel"), [(4, 3), (5, 11), (8, 5)])
def test_image_mask_is_the_definition(kind, grid, kernel):
    mask = image_mask(kind, grid, kernel)
    expected = torch.tensor([[_sees(kind, p, q, grid, kernel) for q in range(grid**2)] for p in range(grid**2)])
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("kind", ["row", "column", "conv", "dense"])
@pytest.mark.parametrize(("grid", "kernel"), [(1, 3), (4, 3), (5, 11), (8, 5)])
def test_what_a_slot_sees_depends_on_the_distance_alone(kind, grid, kernel):
    mask, offsets = image_mask(kind, grid, kernel), seen_offsets(kind, grid, kernel)
    for query in range(grid**2):
        assert mask[query].nonzero().flatten().tolist() == sorted(query - o for o in offsets if o <= query)


@pytest.mark.parametrize("kind", ["row", "column", "conv", "dense"])
def test_whole_mask(kind):
    text_slots, grid = 7, 4
    mask = attention_mask(kind, text_slots, grid, 3)
    assert torch.equal(mask[:text_slots, :text_slots], torch.ones(7, 7, dtype=torch.bool).tril())
    assert mask[text_slots:, :text_slots].all()
    assert not mask[:text_slots, text_slots:].any()
    assert not mask.triu(1).any()
    assert mask.diagonal().all()


def test_fractions_of_the_causal_triangle():
    """The shares that the specification states for 256 + 32² slots, to its two digits."""
    causal = 1280 * 1281 / 2
    shares = {kind: attention_mask(kind, 256, 32).sum().item() / causal for kind in ("row", "column", "conv")}
    assert shares == pytest.approx({"row": 0.40, "column": 0.38, "conv": 0.42}, abs=0.01)


def test_published_layer_order():
    kinds = layer_kinds(PriorModel())
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"row": 47, "column": 16, "conv": 1}
    assert kinds[:8] == ["row", "column", "row", "row", "row", "column", "row", "row"]
    assert kinds[-1] == "conv"
    assert layer_kinds(PriorModel(depth=1)) == ["conv"]
    assert set(layer_kinds(PriorModel(attention="dense"))) == {"dense"}


@pytest.mark.parametrize(("grid", "kernel"), [(1, 3), (2, 3), (3, 11), (5, 3), (8, 5)])
@pytest.mark.parametrize("kind", ["row", "column", "conv", "dense"])
def test_cache_places_hold_what_each_slot_sees(kind, grid, kernel):
    """Slots are written in turn, as in sampling; what a slot reads is what its mask lets it see, each slot once."""
    places = cache_places(kind, grid, kernel)
    mask = image_mask(kind, grid, kernel)
    held = torch.full((places.size,), -1)
    for slot in range(grid**2):
        held[places.place_I[slot]] = slot
        visible, bias = places.sight(torch.tensor([slot]))
        read = held if visible is None else held[visible]
        assert sorted(read[bias == 0].tolist()) == mask[slot].nonzero().flatten().tolist()
        assert bias.unique().tolist() in ([0.0], [-float("inf"), 0.0])
    assert places.size <= {"row": grid + 1, "column": grid**2, "conv": (kernel // 2 + 1) * grid, "dense": grid**2}[kind]
