"""The transformer against the plain definitions: no look-ahead, attention, embeddings, heads, published sizes."""

import pytest
import torch

from dalle.config import PriorModel
from dalle.layout import attention_mask
from dalle.models.attention import attention, reference_attention
from dalle.models.prior import Prior
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


@pytest.mark.parametrize("kind", ["row", "column", "conv", "dense"])
def test_fused_attention_is_the_reference_forward_and_backward(kind):
    mask_SS = attention_mask(kind, 7, 5, 3)
    qkv = torch.randn(3, 2, 3, 32, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(2, 3, 32, 8, generator=torch.Generator().manual_seed(1))
    outputs, gradients = [], []
    for function in (attention, reference_attention):
        output = function(*qkv, mask_SS)
        outputs.append(output)
        gradients.append(torch.autograd.grad((output * weight).sum(), qkv)[0])
    # fp32 sums of at most 32 terms in another order
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize(("width", "heads", "billions"), [(3968, 62, 12.0), (2688, 42, 5.6), (1920, 30, 2.8)])
def test_published_sizes(width, heads, billions):
    """64·12·D² weights in the resblocks' matrices (appendix B.1); nothing is allocated."""
    with torch.device("meta"):
        model = Prior(PriorModel(width=width, heads=heads))
    matrices = sum(p.numel() for n, p in model.named_parameters() if n.startswith("layers") and p.ndim == 2)
    assert matrices == 64 * 12 * width**2
    # the paper's names are round: 2.8 B is 2.83
    assert matrices / 1e9 == pytest.approx(billions, rel=0.02)


def test_identity_path_and_logits_stay_fp32_under_autocast():
    model = _model()
    with torch.autocast("cpu", torch.bfloat16):
        states = model.states(*_inputs())
        text, image = model(*_inputs())
    assert states.dtype == text.dtype == image.dtype == torch.float32
