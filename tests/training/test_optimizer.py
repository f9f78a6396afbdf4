"""Muon against PyTorch's own, AdamW where it belongs."""

import torch
from torch import nn

from dalle.config import Optimizer, Schedule
from dalle.training.optimizer import MuonAdamW, build, orthogonalized


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
