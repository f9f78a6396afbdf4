"""The transformer against the plain definitions: no look-ahead, attention, embeddings, heads, published sizes."""

from dataclasses import replace

import pytest
import torch

from dalle.config import PriorModel
from dalle.config import PriorObjective as PriorObjectiveConfig
from dalle.models.prior import Prior
from dalle.models.wrapping import recompute_blocks
from dalle.objectives.prior import PriorObjective
from dalle.text import PAD

SMALL = PriorModel(
    text_slots=6, grid=4, text_vocabulary=20, codebook_size=11, width=24, depth=4, heads=2, conv_kernel=3
)


def _model(config=SMALL) -> Prior:
    torch.manual_seed(0)
    model = Prior(config)
    for parameter in model.parameters():  # large weights, so that every connection shows
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def _inputs(batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    text_BU = torch.randint(0, 20, (batch, 5), generator=generator)
    text_BU[1, 3:] = PAD
    return text_BU, torch.randint(0, 11, (batch, 16), generator=generator)


@pytest.mark.parametrize("depth", [4, 16])
def test_residual_projections_begin_smaller_by_the_root_of_twice_the_layers(depth):
    """So that the identity path's variance does not grow with the depth: 0.02/√(2L) for what is added to it, 0.02 for all other
    matrices and tables."""
    torch.manual_seed(0)
    model = Prior(replace(SMALL, width=48, depth=depth))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            continue
        added = name.endswith(("attention.project.weight", "mlp.project.weight"))
        expected = 0.02 / (2 * depth) ** 0.5 if added else 0.02
        # 6 standard deviations of the estimate, of tables of a few hundred numbers and more
        spread = 6 / (2 * parameter.numel()) ** 0.5
        assert parameter.std().item() == pytest.approx(expected, rel=spread), name
        assert spread < 0.35, "narrow enough to tell a factor of √8"


def test_no_slot_sees_a_later_token():
    """Change each token in turn: only logits of slots after it, and of its own kind of attention, may move."""
    model = _model()
    text_BU, codes_BI = _inputs()
    with torch.no_grad():
        text, image = model(text_BU, codes_BI)
        for at in range(5):
            changed = text_BU.clone()
            changed[0, at] = (changed[0, at] + 1) % 20
            new_text, new_image = model(changed, codes_BI)
            assert torch.equal(text[0, : at + 1], new_text[0, : at + 1])
            assert not torch.allclose(text[0, at + 1 :], new_text[0, at + 1 :]) or at == 4
            assert not torch.isclose(image[0], new_image[0]).all(dim=-1).any(), "every image slot sees all text"
        for at in range(16):
            changed = codes_BI.clone()
            changed[0, at] = (changed[0, at] + 1) % 11
            new_text, new_image = model(text_BU, changed)
            assert torch.equal(text, new_text)
            assert torch.equal(image[0, : at + 1], new_image[0, : at + 1])
            if at < 15:
                assert not torch.allclose(image[0, at + 1], new_image[0, at + 1])


def test_pads_are_embeddings_of_their_position():
    model = _model()
    text_BU, _ = _inputs()
    embedded = model.embed_text(text_BU)
    assert torch.equal(embedded[1, 4:], model.text_pads.weight[4:])
    start = model.text_tokens.weight[20] + model.text_positions.weight[0]
    assert torch.equal(embedded[0, 0], start)
    assert torch.equal(embedded[1, 1], model.text_tokens.weight[text_BU[1, 0]] + model.text_positions.weight[1])


def test_image_positions_are_those_that_a_slot_predicts():
    model = _model()
    held = torch.tensor([[11, 3, 4, 5, 6, 7]])
    embedded = model.embed_image(held)
    for slot in range(6):
        expected = (
            model.image_tokens.weight[held[0, slot]]
            + model.image_rows.weight[slot // 4]
            + model.image_columns.weight[slot % 4]
        )
        assert torch.equal(embedded[0, slot], expected)


def test_identity_path_and_logits_stay_fp32_under_autocast():
    model = _model()
    with torch.autocast("cpu", torch.bfloat16):
        states = model.states(*_inputs())
        text, image = model(*_inputs())
    assert states.dtype == text.dtype == image.dtype == torch.float32


def test_what_a_resblock_adds_is_not_rounded_to_the_identity_path():
    """A 16-bit product is added in fp32, to a path of which it is far less than bf16 resolves: nothing of either is lost, forward
    or backward."""
    model = _model()
    layer, masked = model.layers[0], model.masked[model.kinds[0]]
    with torch.no_grad():
        for block in (layer.attention, layer.mlp):
            for parameter in block.parameters():
                parameter.mul_(0.3)
    small_BSD = torch.randn(2, SMALL.slots, SMALL.width, generator=torch.Generator().manual_seed(2))
    x_BSD = (1000 + small_BSD).requires_grad_()  # bf16 has steps of 4 there
    with torch.autocast("cpu", torch.bfloat16):
        added_BSD = layer.attention(x_BSD, masked)
        middle_BSD = x_BSD + added_BSD.float()
        expected_BSD = middle_BSD + layer.mlp(middle_BSD).float()
        found_BSD = layer(x_BSD, masked)
    assert added_BSD.dtype == torch.bfloat16
    assert 0 < added_BSD.abs().max() < 4
    assert found_BSD.dtype == torch.float32
    assert torch.equal(found_BSD, expected_BSD)
    # through the identity path a gradient comes back as it is, but for what the resblocks add to it
    weight_BSD = 1 + 1e-4 * small_BSD
    (gradient_BSD,) = torch.autograd.grad((found_BSD * weight_BSD).sum(), x_BSD)
    (expected_BSD,) = torch.autograd.grad((expected_BSD * weight_BSD).sum(), x_BSD)
    assert torch.equal(gradient_BSD, expected_BSD)


@pytest.mark.parametrize(("attention", "recompute"), [("paper", False), ("dense", False), ("paper", True)])
def test_the_training_step_compiles_without_a_graph_break(attention, recompute):
    objective = PriorObjective(_model(replace(SMALL, attention=attention)).train(), PriorObjectiveConfig())
    if recompute:
        recompute_blocks(objective.model)
    text_BU, codes_BI = _inputs()
    batch = {"text_BU": text_BU, "codes_BI": codes_BI, "text_targets": torch.tensor(8.0)}
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")  # raises at a graph break
    results = []
    for function in (objective, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = function(batch)
        results.append((loss, *torch.autograd.grad(loss, list(objective.parameters()))))
    # the same operations in the same order
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)
