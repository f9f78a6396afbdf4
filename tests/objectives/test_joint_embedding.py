"""The structured joint embedding loss against loops over its formula, and what its gradient leaves alone."""

import json

import numpy as np
import pytest
import torch

from dalle.config import CharCNNRNNModel
from dalle.models.text_encoders.char_cnn_rnn import LetterEncoder, letters
from dalle.objectives.joint_embedding import JointEmbeddingObjective, hinge
from tests.processes import ON_CPU, run_processes

CAPTIONS = ["a red bird", "a blue bird", "a flower with five petals", "x"]


def _by_loops(images: np.ndarray, texts: np.ndarray) -> float:
    """As published: both ways, over the square of the batch."""
    total = 0.0
    for a, b in ((images, texts), (texts, images)):
        for i in range(len(a)):
            for j in range(len(b)):
                if j != i:
                    total += max(0.0, 1 + a[i] @ b[j] - a[i] @ b[i])
    return total / len(images) ** 2


def _objective(scale: float = 12.0) -> tuple[JointEmbeddingObjective, dict]:
    torch.manual_seed(0)
    config = CharCNNRNNModel(
        channels=6, first_widths=(5, 7), embedding_width=3, caption_chars=130, image_width=4, third_pool=False
    )
    model = LetterEncoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)  # so that vectors differ by about the margin
    batch = {"letters_BU": letters(CAPTIONS, 130), "image_features_BE": 8 * torch.randn(4, 4)}
    return JointEmbeddingObjective(model), batch


def test_it_is_the_published_loss():
    objective, batch = _objective()
    loss, metrics = objective(batch)
    with torch.no_grad():
        images = objective.model.embed_images(batch["image_features_BE"]).double().numpy()
        texts = objective.model.embed_texts(batch["letters_BU"]).double().numpy()
    lacking = 1 + texts @ images.T - np.diag(texts @ images.T)[:, None]
    assert (lacking > 0).any() and (lacking < 0).any(), "both sides of the hinge"
    assert loss.item() == pytest.approx(_by_loops(images, texts), rel=1e-5)  # fp32 sums of a few terms
    assert metrics["loss"] == loss and not metrics["loss"].requires_grad
    nearest = (texts @ images.T).argmax(axis=1)
    assert 0 < metrics["caption_accuracy"] == (nearest == np.arange(4)).mean() < 1


def test_a_margin_that_is_kept_costs_nothing_and_pulls_nothing():
    scores_BM = torch.tensor([[3.0, 1.9, 2.5], [0.0, 1.0, -1.0]], requires_grad=True)
    loss = hinge(scores_BM, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(0.5 / 6)
    loss.backward()
    # of the first row the third alone is nearer than a margin; in the second the first is at the margin
    assert scores_BM.grad.mul(6).round(decimals=6)[0].tolist() == [-1.0, 0.0, 1.0]
    assert scores_BM.grad[1, 2] == 0


_SCRIPT = """
import json, os
import torch
import torch.distributed as dist
from tests.objectives.test_joint_embedding import _objective
from dalle.objectives.joint_embedding import JointEmbeddingObjective

dist.init_process_group("gloo")
rank = dist.get_rank()
objective, batch = _objective()
shared = JointEmbeddingObjective(objective.model, rank, 2)
loss, metrics = shared({name: tensor[2 * rank : 2 * rank + 2] for name, tensor in batch.items()})
loss.backward()
gradients = [p.grad for p in objective.model.parameters()]
values = torch.cat([loss.detach()[None], metrics["caption_accuracy"][None], *[g.flatten() for g in gradients]])
dist.all_reduce(values)
print(json.dumps((values / 2).tolist()))
"""


def test_two_processes_have_the_loss_and_the_gradients_of_one():
    """With gloo; averaged as a data-parallel training does."""
    found = torch.tensor(json.loads(run_processes(_SCRIPT, 2, 2, environment=ON_CPU).splitlines()[-1]))
    objective, batch = _objective()
    loss, metrics = objective(batch)
    loss.backward()
    assert found[:2] == pytest.approx([loss.item(), metrics["caption_accuracy"].item()], rel=1e-5)
    expected = torch.cat([p.grad.flatten() for p in objective.model.parameters()])
    # the same sums in another order
    torch.testing.assert_close(found[2:], expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0.1


def test_the_margin_is_not_rounded_in_16_bits():
    objective, batch = _objective()
    model = objective.model
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(batch)
        vectors = model.embed_images(batch["image_features_BE"]), model.embed_texts(batch["letters_BU"])
    exact = _by_loops(*(v.detach().float().double().numpy() for v in vectors))
    # the vectors are of 16 bits, their products are not
    assert loss.item() == pytest.approx(exact, rel=1e-5)
