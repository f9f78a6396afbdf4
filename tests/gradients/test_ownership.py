"""Who owns which matrices, and which travel together: numbers found by hand."""

import pytest
import torch

from dalle.gradients.ownership import Layout, shares, together

# a resblock of attention and one of an MLP at 12 B weights and 8 processes: matrices side by side, elements of P
ATTENTION, MLP = (
    {"qkv": (3, 496 * 112), "project": (1, 496 * 112)},
    {"widen": (1, 1984 * 112), "narrow": (1, 1984 * 112)},
)


def _model(layers: int) -> tuple[list[list[str]], dict[str, tuple[int, int]]]:
    """Resblocks from the last to the first, and all sizes."""
    blocks, sizes = [], {}
    for layer in reversed(range(layers)):
        for block in (MLP, ATTENTION):
            blocks.append([f"{layer}.{name}" for name in block])
            sizes |= {f"{layer}.{name}": size for name, size in block.items()}
    return blocks, sizes


def test_everyone_owns_equally_many_elements():
    assert shares([256, 128], [1, 4], 128, 2) == [[[2] * 128, [1] * 128]] * 2  # the paper's: three matrices of 384 each
    assert shares([3, 1], [1, 1], 2) == [[[2, 1], [0, 1]]]
    assert shares([2, 5], [3, 1], 3) == [[[1, 1, 0], [1, 1, 3]]]
    # what one process of a machine leaves uneven the next makes up for
    assert shares([3], [1], 2, 2) == [[[2, 1]], [[1, 2]]]
    # and what is left over falls to another each time
    assert [shares([1], [1], 3, 1, first)[0][0] for first in range(4)] == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("owners", "ordinals", "groups"),
    # by hand, in units of the smaller P, an MLP first: its resblock has 2 of 4, one of attention 4 of 1
    [
        *(
            (1, 1, 16),
            (2, 1, 16),
            (3, 1, 8),
            (4, 1, 8),
        ),  # 3 and 4 machines share out both together: 4 4 4, and 4 4 2 2 is not
        (8, 1, 3),  # five resblocks, 6 of 4 and 8 of 1, then 4 a machine; and six; and what is left over
        *((2, 8, 16), (16, 8, 16)),  # 16 machines own one of the 8 processes' 2 · 8 each
        (128, 8, 2),  # ten resblocks, 80 of 4 and 160 of 1, are 4 a machine where 3.75 are the average; the rest
    ],
)
def test_as_few_resblocks_travel_together_as_can_be_shared(owners, ordinals, groups):
    blocks, sizes = _model(8)
    found = together(blocks, sizes, owners, ordinals)
    assert [name for group in found for name in group] == [name for block in blocks for name in block]
    assert len(found) == groups


def test_a_thirteenth_of_the_paper_s_exchange_is_not_hidden():
    """128 resblocks on 128 machines of 8 processes."""
    blocks, sizes = _model(64)
    found = together(blocks, sizes, 128, 8)
    assert [len(group) / 2 for group in found] == [10] * 12 + [8]
    for group in found:
        counts, elements = zip(*[sizes[name] for name in group], strict=True)
        loads = torch.tensor(shares(counts, elements, 128, 8)) * torch.tensor(elements)[:, None]
        of_machine = loads.sum(dim=(0, 1))
        assert of_machine.sum() == 8 * sum(n * size for n, size in zip(counts, elements, strict=True))
        if len(group) == 20:
            assert of_machine.max() <= 1.1 * of_machine.float().mean()


def test_a_layout_is_undone():
    layout = Layout([(2, 3), (4, 1)], shares([5, 2], [6, 4], 3)[0])
    stacks = [torch.arange(30.0).view(5, 2, 3), 100 + torch.arange(8.0).view(2, 4, 1)]
    flat = layout.laid(stacks)
    parts = flat.split(layout.sizes())
    assert len(parts) == 3 and flat.numel() == 38
    assert all(torch.equal(one, other) for one, other in zip(layout.stacked(parts), stacks, strict=True))
    first = layout.of_owner(parts[0], 0)
    assert torch.equal(first[0], stacks[0][: layout.owned[0][0]]) and first[1].shape[1:] == (4, 1)
