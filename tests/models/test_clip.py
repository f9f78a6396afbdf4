"""The reranker: our small CLIP, and any open_clip architecture with a local checkpoint."""

import itertools
import json
import warnings
from dataclasses import replace

import pytest
import torch

from dalle.config import CLIPModel
from dalle.models.clip import CLIP, CodePatches, _ask_for_weights, _open_clip, _wants_quick_gelu, load_clip
from dalle.objectives.clip import CLIPObjective
from dalle.text import Cuts, Tokenizer

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
    cuts = Cuts(clip.caption_tokens)
    short, long = clip.tokens(["ab", "1234567890"], cuts).tolist()
    clip.tokens(["123456"], cuts)  # fits
    assert str(cuts) == "1 of 3 captions (33.3%) were cut to the 6 tokens that are read"
    assert short[0] == start and short[1 + len(tokenizer.encode("ab"))] == end and short[-1] == fill
    assert long == [start, *tokenizer.encode("1234567890")[:6], end]


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_open_clips_weights_are_one_short_line(monkeypatch, tmp_path, caplog, capfd, offline):
    """Its own library tries for a minute, and tells of each attempt."""

    def wait(seconds):
        raise AssertionError("it is waited for another attempt")

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", wait)
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
    template = nobody + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(ValueError) as told:
        load_clip("ViT-B-32:openai")
    why = "open_clip's ViT-B-32:openai: the Hub cannot be reached for timm/vit_base_patch32_clip_224.openai"
    assert str(told.value).replace(", which is not whole in the cache", "") == (
        f"{why}; see whether there is a network, or name a folder of dalle-train-clip"
    )
    with pytest.raises(ValueError, match=r"open_clip cannot make ViT-B-32: .*'no-such' is not a known tag"):
        load_clip("ViT-B-32:no-such")
    assert not caplog.records and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_weights_in_the_cache_are_not_asked_for(monkeypatch, tmp_path, name):
    """Whichever of the files it is that open_clip would take."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--timm--vit_base_patch32_clip_224.openai"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs/main").write_text("c0ffee")
    with pytest.raises(ValueError, match="the Hub cannot be reached"):
        _ask_for_weights("ViT-B-32", "openai")
    (kept / "snapshots/c0ffee").mkdir(parents=True)
    (kept / "snapshots/c0ffee" / name).touch()
    _ask_for_weights("ViT-B-32", "openai")


def test_the_scale_of_the_logits_stops_at_100(tokenizer):
    """As in the paper of CLIP (2.5): without it training has been seen to become unstable. The loss is that at 100, and nothing
    pushes the scale on."""
    torch.manual_seed(0)
    clip = CLIP(SMALL, tokenizer)
    batch = {
        "images_BCYX": torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8),
        "clip_tokens_BU": clip.tokens(["a", "b", "c", "d"]),
        "identities_BK": torch.arange(4)[:, None],
    }
    images_BE, texts_BE = clip.embed_images(batch["images_BCYX"]), clip.embed_texts(batch["clip_tokens_BU"])

    def expected(scale: float) -> torch.Tensor:
        logits_BB, right = scale * images_BE @ texts_BE.T, torch.arange(4)
        return (
            torch.nn.functional.cross_entropy(logits_BB, right) + torch.nn.functional.cross_entropy(logits_BB.T, right)
        ) / 2

    for scale, used in ((20.0, 20.0), (99.0, 99.0), (300.0, 100.0)):
        clip.net.logit_scale.data.fill_(torch.tensor(scale).log())
        clip.zero_grad()
        loss, metrics = CLIPObjective(clip)(batch)
        loss.backward()
        assert metrics["scale"].item() == pytest.approx(used, rel=1e-5)  # through a logarithm in fp32
        torch.testing.assert_close(loss, expected(used), rtol=1e-5, atol=1e-5)
        assert (clip.net.logit_scale.grad.item() == 0) == (scale > 100)


def test_embeddings_are_unit_vectors_of_any_image_size(tokenizer):
    clip = CLIP(SMALL, tokenizer).eval()
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    for vectors in (clip.embed_images(images), clip.embed_texts(clip.tokens(["a", "b"]))):
        assert vectors.shape == (2, 12)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(clip.embed_images(images), clip.embed_images(images.float() / 255))


CODES = replace(SMALL, reads="codes", image_size_px=4, patch_px=2, codebook_size=9)


def test_the_embeddings_of_a_patchs_codes_lie_side_by_side():
    torch.manual_seed(0)
    patches = CodePatches(CODES)
    codes_BYX = torch.randint(0, 9, (3, 4, 4))
    vectors_BDYX = patches(codes_BYX)
    assert vectors_BDYX.shape == (3, 64, 2, 2)
    for image, y, x in itertools.product(range(3), range(2), range(2)):
        of_patch = codes_BYX[image, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten()
        expected_DP = patches.embedding.weight[of_patch].T  # D / 4 numbers of each of the four
        assert torch.equal(vectors_BDYX[image, :, y, x].reshape(16, 4), expected_DP)


def test_a_reader_of_codes_tells_images_by_code_and_place(tokenizer):
    torch.manual_seed(0)
    clip = CLIP(CODES, tokenizer).eval()
    codes_BI = torch.randint(0, 9, (2, 16))
    codes_BI[1] = codes_BI[0]
    codes_BI[1, [3, 12]] = codes_BI[0, [12, 3]]
    assert (codes_BI[0] != codes_BI[1]).sum() == 2
    vectors_BE = clip.embed_codes(codes_BI)
    assert vectors_BE.shape == (2, 12) and vectors_BE.dtype == torch.float32
    torch.testing.assert_close(vectors_BE.norm(dim=-1), torch.ones(2))
    assert (vectors_BE[0] - vectors_BE[1]).abs().max() > 1e-2  # of two codes that changed places
    # what of a batch it takes
    images_BCYX = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert torch.equal(clip.embed_batch({"codes_BI": codes_BI, "images_BCYX": images_BCYX}), vectors_BE)
    pixels = CLIP(SMALL, tokenizer).eval()
    found_BE = pixels.embed_batch({"codes_BI": codes_BI, "images_BCYX": images_BCYX})
    assert torch.equal(found_BE, pixels.embed_images(images_BCYX))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"architecture": "ViT-B-32"}, "architecture ViT-B-32: reads pixels"),
        ({"image_size_px": 6, "patch_px": 3}, "patch_px 3: its 9 codes must share vision_width 64 evenly"),
        ({"patch_px": 3}, "image_size_px 4: must be a multiple of patch_px 3"),
        ({"codebook_size": 1}, "codebook_size 1: must be at least 2"),
    ],
)
def test_sizes_that_a_reader_of_codes_cannot_have(sizes, message):
    with pytest.raises(ValueError, match=message):
        replace(CODES, **sizes)


def test_a_small_clip_needs_our_tokenizer_and_a_named_one_brings_its_own(tokenizer):
    with pytest.raises(ValueError, match="needs a tokenizer"):
        CLIP(SMALL)
    with pytest.raises(ValueError, match="brings its own tokenizer"):
        CLIP(CLIPModel(architecture="ViT-B-32"), tokenizer)
    with pytest.raises(ValueError, match="cannot make"):
        CLIP(CLIPModel(architecture="no-such-architecture"))
    with pytest.raises(ValueError, match="no such reranker"):
        load_clip("nowhere")


def _architecture(folder, name, **more):
    """A tiny one, known to open_clip by this name."""
    open_clip = _open_clip()

    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "layers": 1, "heads": 2}
    sizes = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text, **more}
    (folder / f"{name}.json").write_text(json.dumps(sizes))
    open_clip.add_model_config(folder / f"{name}.json")


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("tag", [{}, {"quick_gelu": True}])
@pytest.mark.parametrize("said", ["the tag", "The-Tag"])
def test_pretrained_weights_run_with_the_activation_that_their_tag_says(tmp_path, monkeypatch, quick, tag, said):
    """Or, where it says none, with the architecture's own. Without a network: the weights are a file."""
    open_clip = _open_clip()

    for name, activation in (("tiny-clip", quick), ("tiny-clip-quickgelu", True), ("tiny-clip-gelu", False)):
        _architecture(tmp_path, name, quick_gelu=activation)
    torch.manual_seed(0)
    wanted = "tiny-clip-quickgelu" if quick or tag else "tiny-clip-gelu"
    original = open_clip.create_model(wanted).eval()
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    key = "the_tag" if said == "The-Tag" else said
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", {key: tag | {"url": "x"}})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(tmp_path / "weights.pt"))
    with warnings.catch_warnings():
        if tag or not quick:  # open_clip says where its tables contradict each other
            warnings.filterwarnings("error", message="QuickGELU mismatch")
        clip = load_clip(f"tiny-clip:{said}")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = original.encode_image((images - clip.mean) / clip.std, normalize=True)
        assert torch.allclose(clip.embed_images(images), expected, atol=1e-6)
        tokens = clip.tokens(["a red circle", "x"])
        assert torch.allclose(clip.embed_texts(tokens), original.encode_text(tokens, normalize=True), atol=1e-6)


def test_the_published_weights_are_known_to_want_quick_gelu():
    for architecture, tag, quick in (
        ("ViT-B-32", "openai", True),
        ("ViT-L/14", "openai", True),
        ("ViT-B-32", "metaclip-400m", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-32", None, False),
        ("ViT-B-32", "weights.pt", False),
    ):
        assert _wants_quick_gelu(architecture, tag) == quick


def test_a_named_architecture_with_a_local_checkpoint(tmp_path):
    open_clip = _open_clip()

    _architecture(tmp_path, "tiny-clip")
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
