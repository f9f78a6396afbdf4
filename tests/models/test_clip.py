"""The reranker: our small CLIP, and any open_clip architecture with a local checkpoint."""

import json

import pytest
import torch

from dalle.config import CLIPModel
from dalle.models.clip import CLIP, load_clip
from dalle.text import Tokenizer

SMALL = CLIPModel(
    image_size_px=16, patch_px=8, vision_width=64, vision_layers=1, text_width=64, text_layers=1, text_slots=8,
    embedding_width=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a red circle"], vocabulary=260)


def test_tokens_are_framed_cut_and_padded(tokenizer):
    clip = CLIP(SMALL, tokenizer)
    start, end, fill = tokenizer.vocabulary + 1, tokenizer.vocabulary + 2, tokenizer.vocabulary
    short, long = clip.tokens(["ab", "1234567890"]).tolist()
    assert short[0] == start and short[1 + len(tokenizer.encode("ab"))] == end and short[-1] == fill
    assert long == [start, *tokenizer.encode("1234567890")[:6], end]


def test_embeddings_are_unit_vectors_of_any_image_size(tokenizer):
    clip = CLIP(SMALL, tokenizer).eval()
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    for vectors in (clip.embed_images(images), clip.embed_texts(clip.tokens(["a", "b"]))):
        assert vectors.shape == (2, 12)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(clip.embed_images(images), clip.embed_images(images.float() / 255))


def test_a_small_clip_needs_our_tokenizer_and_a_named_one_brings_its_own(tokenizer):
    with pytest.raises(ValueError, match="needs a tokenizer"):
        CLIP(SMALL)
    with pytest.raises(ValueError, match="brings its own tokenizer"):
        CLIP(CLIPModel(architecture="ViT-B-32"), tokenizer)
    with pytest.raises(ValueError, match="cannot make"):
        CLIP(CLIPModel(architecture="no-such-architecture"))
    with pytest.raises(ValueError, match="no such reranker"):
        load_clip("nowhere")


def test_a_named_architecture_with_a_local_checkpoint(tmp_path):
    import open_clip

    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "layers": 1, "heads": 2}
    (tmp_path / "tiny-clip.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    original = open_clip.create_model("tiny-clip").eval()
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    clip = load_clip(f"tiny-clip:{tmp_path}/weights.pt")
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - clip.mean) / clip.std
    with torch.no_grad():
        expected = original.encode_image(normalised, normalize=True)
        assert torch.allclose(clip.embed_images(images), expected, atol=1e-6)
        tokens = clip.tokens(["a red circle", "x"])
        assert tokens.shape == (2, 77)
        assert torch.allclose(clip.embed_texts(tokens), original.encode_text(tokens, normalize=True), atol=1e-6)
    weights = original.state_dict()
    weights["visual.proj"][0, 0] = float("nan")
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(
        ValueError, match=r"the reranker tiny-clip:.*weights\.pt: the weights net\.visual\.proj are not finite"
    ):
        load_clip(f"tiny-clip:{tmp_path}/weights.pt")
