"""Decoding what people have, filtering, counting what cannot be used, the crops of the paper, resuming."""

import io
import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from dalle.config import Images, Run
from dalle.data import images
from dalle.data.captions import BadSample, read_captions
from dalle.data.decoding import Counts, Decoder, read_pairs
from dalle.data.loading import load
from dalle.data.pairs import PairBatches, PairLoader, PairPasses
from dalle.data.shards import read

# that there are more loader workers than this machine has cores
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


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


NO_CROP = Images(augmentation="none", shuffle_buffer=0)


def _loader(spec, config: Images, batch_size, ranks=1, workers=0, accumulation_steps=1, rank=0) -> PairLoader:
    run = Run(steps=1, batch_size=batch_size, accumulation_steps=accumulation_steps)
    return PairLoader(PairBatches(str(spec), config, 8, run, rank, ranks), workers)


def _take(loader: PairLoader, num_batches: int) -> list[dict]:
    return list(itertools.islice(loader, num_batches))


def _updates(loaders: list[PairLoader], steps: int) -> list[tuple[list[str], torch.Tensor]]:
    """Captions and images of whole batches, put together from those of all ranks."""
    of_ranks = [_take(loader, steps * loader.dataset.run.accumulation_steps) for loader in loaders]
    size = loaders[0].dataset.run.accumulation_steps
    updates = []
    for first in range(0, steps * size, size):
        batches = [batch for taken in of_ranks for batch in taken[first : first + size]]
        captions = [caption for batch in batches for caption in batch["captions"]]
        updates.append((captions, torch.cat([batch["images_BCYX"] for batch in batches])))
    return updates


def _check_same(updates, expected):
    assert [captions for captions, _ in updates] == [captions for captions, _ in expected]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(updates, expected, strict=True))


@pytest.fixture(scope="module")
def motley(tmp_path_factory):
    """16 shards of 12 samples, 9 of which decode; each image is another, its two captions say which."""
    folder, generator = tmp_path_factory.mktemp("motley"), np.random.default_rng(0)
    for shard in range(16):
        samples = []
        for i in range(12):
            wide = i == 3
            pixels = generator.integers(0, 256, (12, 40 if wide else 16, 3), dtype=np.uint8)
            captions = json.dumps({"captions": [f"{shard} {i} {way}" for way in ("one", "other")]}).encode()
            samples.append({"png": _bytes(Image.fromarray(pixels)), "json": captions})
        samples[5]["png"] = samples[5]["png"][:-200]  # the header tells nothing of it
        del samples[8]["json"]
        _write(folder / f"{shard:02d}.tar", samples)
    return folder


WORLDS = [(1, 2, 1), (1, 3, 1), (2, 0, 1), (2, 2, 2), (4, 1, 1), (4, 8, 1)]
"""(ranks, loader workers, accumulation steps)"""


@pytest.mark.parametrize("ranks_workers_accumulation", WORLDS, ids=str)
@pytest.mark.parametrize(("shards", "batch_size", "streams"), [("00", 8, 1), ("0[0-6]", 28, 7), ("*", 24, 8)])
def test_batches_are_the_same_whoever_makes_them(motley, shards, batch_size, streams, ranks_workers_accumulation):
    ranks, workers, accumulation_steps = ranks_workers_accumulation
    spec, config = f"{motley}/{shards}.tar", Images(augmentation="dvae", shuffle_buffer=20, max_bad_fraction=0.5)
    alone = _loader(spec, config, batch_size)
    assert alone.dataset.num_streams == streams
    others = [_loader(spec, config, batch_size, ranks, workers, accumulation_steps, rank) for rank in range(ranks)]
    _check_same(_updates(others, 6), _updates([alone], 6))


def test_parts_of_a_batch_are_put_together_in_channels_last_memory(motley):
    """As the training wants them; of one image alone, both orders of memory look alike."""
    for workers in (0, 2, 8):
        (batch,) = _take(_loader(f"{motley}/*.tar", Images(max_bad_fraction=0.5), 8, workers=workers), 1)
        assert batch["images_BCYX"].shape == (8, 3, 8, 8)
        assert batch["images_BCYX"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("shards", "batch_size"), [("00", 8), ("0[0-6]", 28), ("*", 24)])
def test_resumed_with_other_processes_and_workers_is_uninterrupted(motley, shards, batch_size):
    """Twice, and without an update between, which must not bring back what a rank knew of another's streams."""
    spec, config = f"{motley}/{shards}.tar", Images(augmentation="dvae", shuffle_buffer=20, max_bad_fraction=0.5)
    whole = _updates([_loader(spec, config, batch_size)], 10)
    state, updates = {}, []
    for ranks, workers, accumulation_steps, steps in (
        (2, 2, 2, 3),
        (4, 0, 1, 3),
        (1, 1, 1, 0),
        (2, 0, 1, 2),
        (1, 3, 2, 2),
    ):
        loaders = [_loader(spec, config, batch_size, ranks, workers, accumulation_steps, rank) for rank in range(ranks)]
        for loader in loaders if state else []:
            loader.load_state_dict(state)
        if steps:
            updates += _updates(loaders, steps)
        states = [json.loads(json.dumps(loader.state_dict())) for loader in loaders]
        state = {name: value for one in states for name, value in one.items()}
    _check_same(updates, whole)


def test_each_usable_sample_comes_once_an_epoch(motley, tmp_path):
    """One that does not decode leaves its row to the next that does; it is not counted here."""
    for shard in range(4):
        samples = [s for i, s in enumerate(read([f"{motley}/{shard:02d}.tar"])) if i != 5]
        _write(tmp_path / f"{shard}.tar", [{k: v for k, v in s.items() if not k.startswith("__")} for s in samples])
    # 9 usable samples in each of 4 shards, in rows of 2: two epochs are 36 updates
    loaders = [_loader(f"{tmp_path}/*.tar", Images(max_bad_fraction=0.5), 4, 2, 1, rank=rank) for rank in range(2)]
    keys = [[c.rsplit(" ", 1)[0] for c in captions] for captions, _ in _updates(loaders, 18)]
    epochs = [sorted(itertools.chain.from_iterable(part)) for part in (keys[:9], keys[9:])]
    assert (
        epochs[0] == epochs[1] == sorted(f"{shard} {i}" for shard in range(4) for i in range(12) if i not in (3, 5, 8))
    )
    assert keys[:9] != keys[9:]


def test_what_does_not_decode_is_stood_in_for_by_what_comes_next(tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for name in "abcdefg":
        image = _bytes(Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)))
        samples.append({"png": image[:-200] if name in "bcf" else image, "txt": name.encode()})
    del samples[4]["txt"]
    _write(tmp_path / "some.tar", samples)
    config = replace(NO_CROP, max_bad_fraction=1.0)
    for ranks in (1, 2, 4):
        loaders = [_loader(tmp_path / "some.tar", config, 4, ranks, rank=rank) for rank in range(ranks)]
        # the rows are a b c d | f g a b | c d f g
        captions = [captions for captions, _ in _updates(loaders, 3)]
        assert captions == [["a", "d", "d", "d"], ["g", "g", "a", "d"], ["d", "d", "g", "g"]]
        if ranks == 1:
            assert loaders[0].num_bad == {0: 8}  # b c e f in either epoch, c and d of the second looked at once
            assert _take(_loader(tmp_path / "some.tar", config, 2), 2)[1]["captions"] == ["d", "d"]


def test_what_takes_no_row_is_counted_once_over_all_readers(tmp_path):
    good, bad = {"png": _bytes(_gradient()), "txt": b"fine"}, {"png": _bytes(_gradient())}
    _write(tmp_path / "some.tar", [good, good, bad, good, bad, bad, good, bad] * 5)
    for ranks, workers in ((1, 0), (1, 3), (2, 2), (4, 1)):
        config = replace(NO_CROP, max_bad_fraction=0.9)
        loaders = [_loader(tmp_path / "some.tar", config, 4, ranks, workers, rank=rank) for rank in range(ranks)]
        _updates(loaders, 5)
        # those before a last one that no row comes after
        assert sum(sum(loader.num_bad.values()) for loader in loaders) == 5 * 4 - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"streams": 8}, r"images\.streams 8: .* written with 64"),
        ({"shuffle_buffer": 7}, r"images\.shuffle_buffer 7: .* written with 1000"),
        ({}, r"number of shards 15: .* written with 16"),
    ],
)
def test_what_changes_the_order_is_refused_by_name(motley, change, message):
    state = _loader(f"{motley}/*.tar", Images(), 16).state_dict()
    _loader(f"{motley}/*.tar", Images(), 16, ranks=2, workers=3, accumulation_steps=2).load_state_dict(state)
    spec = f"{motley}/*.tar" if change else f"{motley}/{{00..14}}.tar"
    with pytest.raises(ValueError, match=message):
        _loader(spec, Images(**change), 16).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_nothing_of_can_be_used_ends(motley, tmp_path, workers):
    for spec in (f"{motley}/00.tar", f"{motley}/*.tar"):
        with pytest.raises(ValueError, match=r"^every sample of .*\.tar … is bad or filtered out"):
            _take(_loader(spec, Images(min_caption_chars=1000, max_bad_fraction=0.5), 16, workers=workers), 1)
    _write(tmp_path / "bad.tar", [{"txt": b"no image"}] * 3)
    with pytest.raises(ValueError, match=r"^(\d+) of \1 samples cannot be used \(\1 × no image\)"):
        _take(_loader(tmp_path / "bad.tar", NO_CROP, 4, workers=workers), 1)


def test_shards_that_are_filtered_out_as_a_whole_are_passed_over(tmp_path):
    good, wide = ({"png": _bytes(_gradient(width, 12)), "txt": b"fine"} for width in (12, 100))
    for shard in range(4):
        _write(tmp_path / f"{shard}.tar", [good if shard < 2 else wide] * 3)
    loader = _loader(f"{tmp_path}/*.tar", Images(), 4)
    assert loader.dataset.num_streams == 4
    # half of the shards: 8 epochs without a usable one have a chance of 1 in 256, in each of 4 streams; the seed is fixed
    assert len(_take(loader, 20)) == 20


def test_the_cache_changes_nothing_when_images_are_small(motley):
    config = Images(augmentation="dvae", shuffle_buffer=8, max_bad_fraction=0.5)
    cached = [_loader(f"{motley}/0*.tar", replace(config, cache_bytes=10**9), 8, 2, rank=rank) for rank in range(2)]
    _check_same(_updates(cached, 30), _updates([_loader(f"{motley}/0*.tar", config, 8)], 30))


def test_the_cache_spares_decoding(motley, monkeypatch):
    decoded = []
    monkeypatch.setattr(images, "decode", lambda data, decode=images.decode: decoded.append(data) or decode(data))
    config = Images(max_bad_fraction=0.5, cache_bytes=10**9)
    _take(_loader(f"{motley}/00.tar", config, 5), 10)  # 10 rows an epoch, one of which never decodes
    assert len(set(decoded)) == 10
    assert len(decoded) == 9 + 5 + 1 - 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 6, 7])
def test_loader_resumes_exactly(shapes_folder, workers, taken):
    def loader():
        return _loader(f"{shapes_folder}/train-*.tar", Images(augmentation="prior", shuffle_buffer=8), 8, 1, workers)

    whole, first, resumed = _updates([loader()], taken + 4), loader(), loader()
    _updates([first], taken)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    _check_same(_updates([resumed], 4), whole[taken:])
