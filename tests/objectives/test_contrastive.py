"""The contrastive loss: open_clip's where all pairs differ, brute force where some do not, and one over several processes."""

import json
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dalle.models.clip import ready_torchvision
from dalle.objectives.clip import CLIPObjective
from dalle.objectives.contrastive import ContrastiveLoss, alike
from tests.processes import ON_CPU, run_processes

SCALE = 14.0


def open_clips(**settings):
    """The loss of open_clip."""
    ready_torchvision()
    from open_clip import ClipLoss

    return ClipLoss(**settings)


def _vectors(count: int, width: int = 6, seed: int = 0) -> list[torch.Tensor]:
    """Unit vectors of images and texts, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return [
        F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()
        for _ in range(2)
    ]


def _brute_force(images, texts, scale, identities) -> torch.Tensor:
    """Pair by pair, with plain sums of exponentials in double precision."""
    total, count = 0.0, len(images)
    for queries, candidates in ((images, texts), (texts, images)):
        for i in range(count):
            rivals = [
                j
                for j in range(count)
                if j == i or not any(a == b for a, b in zip(identities[i], identities[j], strict=True))
            ]
            exponentials = {j: torch.exp(scale * (queries[i] * candidates[j]).sum()) for j in rivals}
            total = total - torch.log(exponentials[i] / sum(exponentials.values()))
    return total / (2 * count)


def _with_gradients(function, images, texts) -> list[torch.Tensor]:
    scale = torch.tensor([SCALE], dtype=torch.float64, requires_grad=True)
    loss = function(images, texts, scale)
    return [loss, *torch.autograd.grad(loss.sum(), (images, texts, scale))]


@pytest.mark.parametrize("identities", [None, torch.arange(9), torch.arange(18).reshape(9, 2)])
def test_where_all_pairs_differ_it_is_open_clips(identities):
    images, texts = _vectors(9)
    ours = _with_gradients(lambda *inputs: ContrastiveLoss()(*inputs, identities), images, texts)
    theirs = _with_gradients(open_clips(), images, texts)
    for found, expected in zip(ours, theirs, strict=True):
        # ours is computed in fp32, whose 24 bits meet logits of 14
        torch.testing.assert_close(found.double().reshape(expected.shape), expected, rtol=2e-5, atol=2e-6)


def test_pairs_of_one_caption_or_one_image_are_no_negatives_of_each_other():
    """Captions 0 and 4 are equal, images 4 and 6 are; so 0 and 6 are still told apart. An equal number of another kind means
    nothing."""
    images, texts = _vectors(8)
    captions, pictures = torch.arange(8), 7 - torch.arange(8)
    captions[4], pictures[6] = captions[0], pictures[4]
    identities = torch.stack([captions, 100 + pictures], dim=1)
    assert alike(identities, identities).sum() == 8 + 4
    ours = _with_gradients(lambda *inputs: ContrastiveLoss()(*inputs, identities), images, texts)
    plain = _with_gradients(partial(_brute_force, identities=identities.tolist()), images, texts)
    unmasked = _with_gradients(ContrastiveLoss(), images, texts)
    for found, expected, other in zip(ours, plain, unmasked, strict=True):
        torch.testing.assert_close(found.double().reshape(expected.shape), expected, rtol=2e-5, atol=2e-6)
        assert (found - other).abs().max() > 1e-3


def test_identities_need_all_their_64_bits():
    """Two that differ in the lowest bit are not equal in fp32 or fp64."""
    identities = torch.tensor([2**62, 2**62 + 1, 2**62])
    assert alike(identities, identities).tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_a_batch_of_one_caption_has_nothing_to_tell_apart():
    images, texts = _vectors(4)
    loss, *gradients = _with_gradients(
        lambda *inputs: ContrastiveLoss()(*inputs, torch.zeros(4, dtype=torch.int64)), images, texts
    )
    assert loss.item() == 0 and not any(g.any() for g in gradients)


def test_logits_are_fp32_under_autocast():
    """Of pairs that have been learned, the loss is a small difference of large logits, which 16 bits round by up to 1/4."""
    images, noise = (x.detach().float() for x in _vectors(32))
    texts = F.normalize(images + 0.3 * noise, dim=-1)
    expected = ContrastiveLoss()(images, texts, torch.tensor(100.0))
    with torch.autocast("cpu", torch.bfloat16):
        found = ContrastiveLoss()(images, texts, torch.tensor(100.0))
        theirs = open_clips()(images, texts, torch.tensor(100.0))
    assert found.dtype == torch.float32 and found.item() == expected.item()
    assert abs(theirs.item() - expected.item()) > 1e-3 * expected.item()  # so the comparison can fail


_SCRIPT = """
import json, os, sys
import torch
from dalle.cluster.topology import joined
from dalle.objectives.contrastive import ContrastiveLoss
from tests.objectives.test_contrastive import SCALE, open_clips, pairs
with joined() as world:
    told = {}
    for name in ("equal", "different"):
        images, texts, identities = pairs(name)
        mine = slice(world.rank * len(images) // world.size, (world.rank + 1) * len(images) // world.size)
        scale = torch.tensor([SCALE], dtype=torch.float32, requires_grad=True)
        ours = ContrastiveLoss(world.rank, world.size)
        theirs = open_clips(local_loss=True, gather_with_grad=True, rank=world.rank, world_size=world.size)
        for kind in ("ours", "open_clip")[: 1 if name == "equal" else 2]:
            leaves = [x[mine].float().detach().requires_grad_() for x in (images, texts)]
            loss = ours(*leaves, scale, identities[mine]) if kind == "ours" else theirs(*leaves, scale)
            gradients = torch.autograd.grad(loss.sum(), (*leaves, scale))
            told[f"{name} {kind}"] = {
                "loss": world.mean(loss.detach()).item(),
                # what a data-parallel training makes of them: the mean over the processes
                "images": [row for part in world.gather((gradients[0] / world.size).tolist()) for row in part],
                "texts": [row for part in world.gather((gradients[1] / world.size).tolist()) for row in part],
                "scale": world.mean(gradients[2]).item(),
            }
    if world.is_main:
        print(json.dumps(told), flush=True)
os._exit(0)
"""


def pairs(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, texts and identities of 8 pairs; of the "equal" ones some are alike across all parts, and some within one."""
    images, texts = _vectors(8)
    captions, pictures = 2**62 + torch.arange(8), torch.arange(8)
    if name == "equal":
        captions[[1, 6]], captions[7], pictures[5] = captions[3].clone(), captions[0].clone(), pictures[4].clone()
    return images, texts, torch.stack([captions, pictures], dim=1)


def test_two_processes_have_the_loss_and_the_gradients_of_one():
    """With gloo; open_clip's own gathering too."""
    told = json.loads(run_processes(_SCRIPT, 2, 2, environment=ON_CPU).splitlines()[-1])
    assert set(told) == {"equal ours", "different ours", "different open_clip"}
    for name, found in told.items():
        images, texts, identities = pairs(name.split()[0])
        loss, *gradients = _with_gradients(partial(_brute_force, identities=identities.tolist()), images, texts)
        assert found["loss"] == pytest.approx(loss.item(), rel=2e-5)
        for key, expected in zip(("images", "texts", "scale"), gradients, strict=True):
            got = torch.tensor(found[key], dtype=torch.float64).reshape(expected.shape)
            torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-6)
    assert not math.isclose(told["equal ours"]["loss"], told["different ours"]["loss"], rel_tol=1e-3)


class _Model(nn.Module):
    """Whose vectors are known."""

    def __init__(self, images_BE, texts_BE):
        super().__init__()
        self.vectors, self.logit_scale = (images_BE, texts_BE), torch.tensor(500.0)

    def embed_batch(self, batch):
        return self.vectors[0]

    def embed_texts(self, tokens_BU):
        return self.vectors[1]


def test_the_image_of_an_equal_caption_is_right_as_well():
    """Texts find images 1, 1, 2, 0: two their own, one that of its like, one a wrong one; and the scale is that of the paper at
    most."""
    images = torch.eye(4)
    texts = images[[1, 1, 2, 0]]
    batch = {
        "images_BCYX": None,
        "clip_tokens_BU": None,
        "identities_BK": torch.tensor([[7, 0], [7, 1], [8, 2], [9, 3]]),
    }
    loss, metrics = CLIPObjective(_Model(images, texts))(batch)
    assert metrics["caption_accuracy"].item() == 0.75
    assert metrics["scale"].item() == 100
    assert loss.item() == ContrastiveLoss()(images, texts, torch.tensor(100.0), batch["identities_BK"]).item()
