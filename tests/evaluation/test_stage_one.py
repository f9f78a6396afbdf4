"""Figures of stage one against their definitions, on a small dVAE that was never trained."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dalle.config import DVAEModel
from dalle.evaluation import stage_one as stage_one_file
from dalle.evaluation.features.images import extra
from dalle.evaluation.measures import lpips as lpips_file
from dalle.evaluation.measures.comparison import compare
from dalle.evaluation.measures.lpips import FILES, find_lpips
from dalle.evaluation.stage_one import section, stage_one
from dalle.models.dvae import DVAE
from tests.evaluation.tiny_features import TinyFeatures, pictures


@pytest.fixture(scope="module")
def dvae():
    torch.manual_seed(0)
    sizes = dict(width_multipliers=(1, 2), blocks_per_group=1, decoder_input_width=8, encoder_width=8)
    return DVAE(DVAEModel(image_size_px=32, codebook_size=16, init="he", logit_norm_gain=3, **sizes)).eval()


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty folder of torch hub's, into which nothing is fetched."""

    def refuse(url, *_, **__):
        raise AssertionError(f"fetched {url}")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


IMAGES = pictures(20, side_px=32)


def found_of(dvae, images=IMAGES, features=None):
    return stage_one(dvae, [images[:17], images[17:]], len(images), features or TinyFeatures(classes=3))


def test_figures_are_those_of_their_definitions(dvae):
    """In float64 from the 8-bit pictures, in batches of which one is larger than goes through at a time."""
    codes = dvae.encode(torch.tensor(IMAGES).permute(0, 3, 1, 2))
    back = (dvae.decode(codes) * 255).round().permute(0, 2, 3, 1).numpy().astype(np.float64) / 255
    real = IMAGES / 255
    found = found_of(dvae)
    psnr_B = -10 * np.log10(((back - real) ** 2).mean(axis=(1, 2, 3)))
    assert psnr_B.std() > 0.01  # a mean over images is not that over pixels
    assert found.psnr_db == pytest.approx(psnr_B.mean(), rel=1e-6)  # torchmetrics sums in fp32
    assert found.ssim == pytest.approx(np.mean([_ssim(*pair) for pair in zip(back, real, strict=True)]), abs=1e-5)
    shares_K = np.bincount(codes.flatten().numpy(), minlength=16) / codes.numel()
    assert found.codes_used == (shares_K > 0).sum() > 1
    entropy = -sum(share * math.log(share) for share in shares_K if share)
    assert found.perplexity == pytest.approx(math.exp(entropy), rel=1e-5)  # in fp32
    assert (found.codebook_size, found.num_images) == (16, 20)


def _ssim(picture_YX3: np.ndarray, other_YX3: np.ndarray) -> float:
    """Wang et al. 2004: windows of 11×11 under a Gaussian of 1.5 px, mirrored about the outermost pixels."""

    def smooth(values_YX):
        return gaussian_filter(values_YX, 1.5, radius=5, mode="mirror")

    maps = []
    for x, y in ((picture_YX3[..., c], other_YX3[..., c]) for c in range(3)):
        mx, my = smooth(x), smooth(y)
        vx, vy, together = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
        c1, c2 = 0.01**2, 0.03**2
        maps.append((2 * mx * my + c1) * (2 * together + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(maps))


def test_distances_are_of_the_reconstructions_from_the_images(dvae, monkeypatch):
    fid, network = extra("torch_fidelity.metric_fid"), TinyFeatures(classes=3)
    asked = []
    monkeypatch.setattr(stage_one_file, "compare", lambda *sets: asked.append(sets) or compare(*sets))
    found = found_of(dvae).distances
    back = dvae.decode(dvae.encode(torch.tensor(IMAGES).permute(0, 3, 1, 2)))
    back = (back * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    told = [fid.fid_features_to_statistics(torch.tensor(network(x).features_BE).double()) for x in (back, IMAGES)]
    expected = fid.fid_statistics_to_metric(*told, verbose=False)[fid.KEY_METRIC_FID]
    assert [at.radius_px for at in found.at] == [0]
    assert found.at[0].frechet_distance == pytest.approx(expected, rel=1e-5)
    ((images, reference),) = asked  # in this order: recall is the other's precision
    for collector, pictures_BYX3 in ((images, back), (reference, IMAGES)):
        mean_E = network(pictures_BYX3).features_BE.mean(axis=0)
        np.testing.assert_allclose(collector.collected.at[0].moments.mean_E, mean_E, rtol=1e-5)


def test_the_section_and_its_figures(dvae):
    found = found_of(dvae)
    part = section(found)
    assert part.figures == json.loads(json.dumps(part.figures))
    assert part.figures["lpips"] is None and part.figures["distances"]["num_images"] == 20
    used = f"{found.codes_used} of 16 ({100 * found.codes_used / 16:.3g}%)"
    for text in (f"{found.psnr_db:.4g}", f"{found.ssim:.4g}", used, "Fréchet distance (tiny) of reconstructions", "—"):
        assert text in part.body
    assert part.notes == found.notes


def test_equal_pictures_have_a_hundred_decibels(dvae, monkeypatch):
    monkeypatch.setattr(type(dvae), "decode", lambda self, codes: torch.tensor(IMAGES[:2]).permute(0, 3, 1, 2) / 255)
    found = stage_one(dvae, [IMAGES[:2]], 2, TinyFeatures())
    assert found.psnr_db == pytest.approx(100) and found.ssim == pytest.approx(1)
    assert found.distances.at[0].frechet_distance == pytest.approx(0, abs=1e-4)  # roots of eigenvalues near 0


def test_too_few_images_and_wrong_ones_are_refused(dvae):
    for batches, count, message in (
        ([IMAGES[:1]], 1, "at least 2"),
        ([IMAGES[:4]], 5, "only 4 of 5"),
        ([IMAGES[:4]], 3, "images 0 to 3 of 3"),
        ([IMAGES[:4] / 255], 4, "float64: they must be uint8"),
        ([pictures(4, side_px=7)], 4, "multiples of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            stage_one(dvae, batches, count, TinyFeatures())


# ---- LPIPS


def test_lpips_says_which_file_is_missing(dvae, hub):
    found = found_of(dvae)
    (note,) = [note for note in found.notes if "LPIPS" in note]
    assert FILES["alex"] in note and str(hub) in note
    assert found.lpips is found.lpips_trunk is None


@pytest.fixture
def squeeze(hub, monkeypatch):
    """Random weights of the smallest trunk where torchvision looks for them."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(2)
    trunk = squeezenet1_1()
    path = hub / FILES["squeeze"]
    torch.save(trunk.state_dict(), path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return trunk, path, digits


def test_lpips_with_damaged_weights_is_refused(squeeze):
    with pytest.raises(ValueError, match=rf"{FILES['squeeze']} is damaged: its SHA-256 begins with {squeeze[2]}"):
        find_lpips()


def test_lpips_is_used_where_its_weights_are(dvae, squeeze, monkeypatch):
    """And weighs the trunk's own activations: by hand for one layer after another, from torchvision's network."""
    trunk = squeeze[0]
    monkeypatch.setattr(lpips_file, "_digits", lambda path: FILES["squeeze"].split("-")[1][:8])
    lpips, note = find_lpips()
    assert (lpips.trunk, note) == ("squeeze", "")
    a, b = (torch.tensor(IMAGES[i : i + 2]).permute(0, 3, 1, 2) / 255 for i in (0, 2))
    found_B = lpips(a, b)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    expected_B, (x, y) = torch.zeros(2), ((2 * v - 1 - shift) / scale for v in (a, b))
    ends = [1, 4, 7, 9, 10, 11, 12]  # of torchmetrics' slices in torchvision's list of layers
    with torch.no_grad():
        layers = iter(lpips.network.lins)
        for index, layer in enumerate(trunk.eval().features):
            x, y = layer(x), layer(y)
            if index in ends:
                unit = [v / (v.square().sum(dim=1, keepdim=True).sqrt() + 1e-8) for v in (x, y)]
                expected_B += next(layers)((unit[0] - unit[1]).square()).mean(dim=(1, 2, 3))
    torch.testing.assert_close(found_B, expected_B, rtol=1e-4, atol=1e-6)
    assert found_B.min() > 0

    found = found_of(dvae)
    back = dvae.decode(dvae.encode(torch.tensor(IMAGES).permute(0, 3, 1, 2)))
    back = (back * 255).round() / 255
    assert found.lpips == pytest.approx(
        float(lpips(back, torch.tensor(IMAGES).permute(0, 3, 1, 2) / 255).mean()), rel=1e-4
    )
    assert found.lpips_trunk == "squeeze" and not any("LPIPS" in note for note in found.notes)
    assert "LPIPS (squeeze)" in section(found).body

    small = stage_one(dvae, [pictures(4, side_px=16)], 4, TinyFeatures())
    assert small.lpips is None and "at least 32 px" in " ".join(small.notes)


def test_lpips_prefers_the_trunks_in_the_order_of_its_paper():
    assert list(FILES) == ["alex", "vgg", "squeeze"]
    assert stage_one_file.LEAST_PX == 32
