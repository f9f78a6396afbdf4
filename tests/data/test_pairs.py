"""Decoding what people have, filtering, counting what cannot be used, the crops of the paper, resuming."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from dalle.config import Images
from dalle.data import images
from dalle.data.captions import BadSample, read_captions
from dalle.data.loading import load
from dalle.data.pairs import Counts, Decoder, PairBatches, PairLoader, PairPasses, read_pairs


def _bytes(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _gradient(width=40, height=40) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, x * 0 + 80], -1).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
    if mode == "I;16":
        data = _bytes(Image.fromarray(np.full((8, 8), 32768, np.uint16)))
        expected = 128
    else:
        source = Image.new("RGB", (8, 8), (200, 200, 200))
        source = source.quantize() if mode == "P" else source.convert(mode)
        data = _bytes(source, "TIFF" if mode == "CMYK" else "PNG")
        expected = 255 if mode == "1" else 200  # dithering a flat 200 gives mostly white
    decoded = images.decode(data)
    assert decoded.mode == "RGB"
    assert abs(np.asarray(decoded).astype(int).max() - expected) <= 2


def test_transparency_is_laid_over_white():
    decoded = images.decode(_bytes(Image.new("RGBA", (4, 4), (255, 0, 0, 0))))
    assert np.asarray(decoded).min() == 255


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = images.decode(_bytes(Image.new("RGB", (8, 4)), "JPEG", exif=exif))
    assert decoded.size == (4, 8)


@pytest.mark.parametrize("data", [b"", b"not an image", _bytes(_gradient(200, 200))[:150]])
def test_what_does_not_decode_is_one_error(data):
    with pytest.raises(ValueError, match="does not decode"):
        images.decode(data)


def test_dvae_crop_sizes_and_flip():
    """A.2 for t = 32: squares between 1.125 and 1.5 times the crop, so a crop shows 2/3 to 8/9 of the side."""
    picture = _gradient(300, 200)
    spans, flips = [], 0
    for seed in range(200):
        crop = np.asarray(images.dvae_crop(picture, 32, np.random.default_rng(seed))).astype(int)
        assert crop.shape == (32, 32, 3)
        spans.append((crop[-1, 0, 1] - crop[0, 0, 1]) / 255)
        flips += crop[0, 0, 0] > crop[0, -1, 0]
    assert 2 / 3 - 0.06 < min(spans) < 0.72
    assert 0.82 < max(spans) < 8 / 9 + 0.02
    # binomial(200, 1/2): outside 70..130 once in 30,000 seeds; these seeds are fixed
    assert 70 < flips < 130
    never = [images.dvae_crop(picture, 32, np.random.default_rng(s), flip=False) for s in range(20)]
    assert all(np.asarray(c)[0, 0, 0] < np.asarray(c)[0, -1, 0] for c in never)


def test_prior_crop_stays_central_and_never_flips():
    """B.2: the square's offset lies in [3Δ/8, 5Δ/8)."""
    picture = _gradient(400, 200)
    for seed in range(100):
        crop = np.asarray(images.prior_crop(picture, 32, np.random.default_rng(seed))).astype(int)
        middle = (crop[:, 15, 0].mean() + crop[:, 16, 0].mean()) / 2 / 255
        assert crop[0, 0, 0] < crop[0, -1, 0]
        assert 0.5 - 200 / 8 / 400 - 0.04 < middle < 0.5 + 200 / 8 / 400 + 0.04


@pytest.mark.parametrize("crop", [images.dvae_crop, images.prior_crop])
def test_small_images_are_enlarged(crop):
    assert crop(_gradient(10, 12), 32, np.random.default_rng(0)).size == (32, 32)
    assert images.centre_crop(_gradient(10, 12), 32).size == (32, 32)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"txt": b"   "}, "no caption"),
        ({}, "no caption"),
        ({"txt": b"\xff\xfe\xfa"}, "not text"),
        ({"json": b"{bad"}, "not text"),
        ({"json": b'{"captions": [1, 2]}'}, "not text"),
        ({"json": b'{"captions": []}', "txt": b"x"}, "no caption"),
    ],
)
def test_bad_captions(files, reason):
    with pytest.raises(BadSample, match=reason):
        read_captions({"__key__": "0", "__url__": "u", **files})


def test_captions_of_the_json_come_first():
    sample = {"json": b'{"captions": [" a  b ", "c"]}', "txt": b"d"}
    assert read_captions(sample)[0] == ["a b", "c"]
    assert read_captions({"json": b"{}", "txt": "ä".encode()})[0] == ["ä"]


def _write(path, samples):
    with wds.TarWriter(str(path)) as tar:
        for i, files in enumerate(samples):
            tar.write({"__key__": f"{i:04d}", **files})


def test_bad_samples_are_skipped_and_counted_up_to_the_limit(tmp_path):
    good = {"png": _bytes(_gradient()), "txt": b"fine"}
    wide = {"png": _bytes(_gradient(100, 40)), "txt": b"wide"}
    bad = {"png": b"broken", "txt": b"bad"}
    _write(tmp_path / "some.tar", [good] * 50 + [bad] * 2 + [wide] + [{"txt": b"no image"}] + [good] * 50)
    decoder = Decoder(Images(augmentation="none"), 16, seed=0)
    from dalle.data.shards import read

    pairs = [pair for s in read([str(tmp_path / "some.tar")]) if (pair := decoder(s, 0))]
    assert len(pairs) == 100
    assert decoder.counts.filtered == 1
    assert decoder.counts.bad == {"image does not decode": 2, "no image": 1}
    _write(tmp_path / "many.tar", [good, bad] * 100)
    with pytest.raises(ValueError, match=r"cannot be used .*image does not decode.*max_bad_fraction"):
        list(read_pairs(str(tmp_path / "many.tar"), Images(), 16))
    _write(tmp_path / "all.tar", [bad] * 30)
    with pytest.raises(ValueError, match="20 of 20 samples"):
        list(read_pairs(str(tmp_path / "all.tar"), Images(), 16))


def test_passes_in_a_worker_keep_order_and_counts(tmp_path, shapes_folder):
    wide = {"png": _bytes(_gradient(100, 40)), "txt": b"wide"}
    _write(tmp_path / "last.tar", [{"png": b"broken", "txt": b"bad"}, *[wide] * 3])
    spec, config = f"{shapes_folder}/train-*.tar {tmp_path}/last.tar", Images(augmentation="prior")
    *batches, counts = load(PairPasses(spec, config, 32, batch_size=48, passes=2, seed=1), workers=1)
    expected = [pair for epoch in range(2) for pair in read_pairs(spec, config, 32, seed=1, epoch=epoch)]
    assert [len(batch["captions"]) for batch in batches] == [48, 48, 32]
    assert [c for batch in batches for c in batch["captions"]] == [pair.captions for pair in expected]
    images = np.concatenate([batch["images_BCYX"] for batch in batches])
    assert np.array_equal(images, np.stack([pair.image.transpose(2, 0, 1) for pair in expected]))
    assert counts == Counts(read=136, filtered=6, bad={"image does not decode": 2})


def test_moving_the_data_changes_no_crop(tmp_path, shapes_folder):
    shutil.copy(shapes_folder / "train-000.tar", tmp_path)
    crops = [
        np.stack([pair.image for pair in read_pairs(f"{folder}/train-000.tar", Images(augmentation="prior"), 16)])
        for folder in (shapes_folder, tmp_path)
    ]
    assert np.array_equal(*crops)


def test_the_cache_changes_nothing_when_images_are_small(shapes_folder):
    config = Images(augmentation="dvae", shuffle_buffer=8)
    streams = []
    for cache_bytes in (0, 10**9):
        dataset = PairBatches(f"{shapes_folder}/train-*.tar", replace(config, cache_bytes=cache_bytes), 32, 16, 0, 0, 1)
        loader = iter(PairLoader(dataset, workers=0))
        streams.append([next(loader)["images_BCYX"].numpy() for _ in range(10)])
    assert np.array_equal(*streams)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 6, 7])
def test_loader_resumes_exactly(shapes_folder, workers, taken):
    def loader():
        config = Images(augmentation="prior", shuffle_buffer=8)
        return PairLoader(PairBatches(f"{shapes_folder}/train-*.tar", config, 32, 8, 0, 0, 1), workers)

    whole = [batch for batch, _ in zip(loader(), range(taken + 4), strict=False)]
    first = loader()
    for _ in zip(range(taken), first, strict=False):
        pass
    state = json.loads(json.dumps(first.state_dict()))
    resumed = loader()
    resumed.load_state_dict(state)
    for expected, batch in zip(whole[taken:], resumed, strict=False):
        assert batch["captions"] == expected["captions"]
        assert np.array_equal(batch["images_BCYX"], expected["images_BCYX"])


def test_resuming_with_another_number_of_processes_or_workers_is_refused(shapes_folder):
    def loader(world_size, workers):
        batches = PairBatches(f"{shapes_folder}/train-*.tar", Images(), 32, 8, 0, 0, world_size)
        return PairLoader(batches, workers)

    state = json.loads(json.dumps(loader(2, 1).state_dict()))
    loader(2, 1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"1 process.* written with 2"):
        loader(1, 1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"run\.loader_workers 3: .* written with 1"):
        loader(2, 3).load_state_dict(state)
