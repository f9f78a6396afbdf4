"""What the loader makes of odd samples, the same batches for any number of readers, resuming."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.config import Images, Run
from dalle.data import images
from dalle.data.counts import Counts
from dalle.data.images import header_size
from dalle.data.pairs import PairBatches, PairLoader
from dalle.data.shards import read
from tests.data.pictures import check_enlarged_ramp, encoded, flat, gradient, small_ramp, write_shard

# that there are more loader workers than this machine has cores
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


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
            samples.append({"png": encoded(Image.fromarray(pixels)), "json": captions})
        samples[5]["png"] = samples[5]["png"][:-200]  # the header tells nothing of it
        del samples[8]["json"]
        write_shard(folder / f"{shard:02d}.tar", samples)
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


@pytest.mark.parametrize("workers", [0, 2])
def test_places_are_those_of_the_pictures_and_all_captions_are_met(motley, workers):
    """Also of the sample that stands in for one that does not decode."""
    met = {}
    for batch in _take(_loader(f"{motley}/0[0-3].tar", Images(max_bad_fraction=0.5), 36, workers=workers), 12):
        for (url, key), caption in zip(batch["places"], batch["captions"], strict=True):
            shard, number, way = caption.split()
            assert url.endswith(f"/{int(shard):02d}.tar") and key == f"{int(number):04d}"
            met.setdefault((shard, number), set()).add(way)
    assert len(met) == 36
    # an image is met in 12 epochs or so: one caption alone in all of them is one chance of 2,048, and these seeds are fixed
    assert all(ways == {"one", "other"} for ways in met.values())


def test_each_usable_sample_comes_once_an_epoch(motley, tmp_path):
    """One that does not decode leaves its row to the next that does; it is not counted here."""
    for shard in range(4):
        samples = [s for i, s in enumerate(read([f"{motley}/{shard:02d}.tar"])) if i != 5]
        write_shard(
            tmp_path / f"{shard}.tar", [{k: v for k, v in s.items() if not k.startswith("__")} for s in samples]
        )
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
        image = encoded(Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)))
        samples.append({"png": image[:-200] if name in "bcf" else image, "txt": name.encode()})
    del samples[4]["txt"]
    write_shard(tmp_path / "some.tar", samples)
    config = replace(NO_CROP, max_bad_fraction=1.0)
    for ranks in (1, 2, 4):
        loaders = [_loader(tmp_path / "some.tar", config, 4, ranks, rank=rank) for rank in range(ranks)]
        # the rows are a b c d | f g a b | c d f g
        captions = [captions for captions, _ in _updates(loaders, 3)]
        assert captions == [["a", "d", "d", "d"], ["g", "g", "a", "d"], ["d", "d", "g", "g"]]
        if ranks == 1:
            # of the first epoch alone; e, whose caption might come later, is its last
            assert loaders[0].counts.read == 7
            names = {reason: [key for _, key, _ in found.first] for reason, found in loaders[0].counts.broken.items()}
            assert names == {"image does not decode": ["0001", "0002", "0005"], "no caption": ["0004"]}
            assert _take(_loader(tmp_path / "some.tar", config, 2), 2)[1]["captions"] == ["d", "d"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Four shards of 20 samples: 12 good, 3 filtered out, 5 broken in three ways; and a file that is no sample."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(1)
    for shard in range(4):
        samples = []
        for i in range(20):
            pixels = rng.integers(0, 256, (16, 40 if i in (2, 3, 11) else 16, 3), dtype=np.uint8)
            samples.append({"png": encoded(Image.fromarray(pixels)), "txt": f"{shard} {i}".encode()})
        for i in (5, 6):
            samples[i]["png"] = samples[i]["png"][:-200]  # the header tells nothing of it
        samples[8]["png"] = b"broken"
        samples[9]["txt"] = b"\xff"
        del samples[19]["txt"]
        samples[0]["npy"] = b""
        write_shard(folder / f"{shard}.tar", samples)
    return folder


def _noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def _summed_up(counts: Counts) -> tuple:
    """All but the names, whose order depends on who reads."""
    return counts.read, *({reason: found.count for reason, found in kind.items()} for kind in counts.left_out())


MIXED = (
    80,
    {"longer than images.max_aspect_ratio 2 times its shorter side": 12},
    {"image does not decode": 12, "caption is not text": 4, "no caption": 4},
    {"another kind of file": 4},
)


@pytest.mark.parametrize("ranks_workers_accumulation", [(1, 0, 1), *WORLDS], ids=str)
def test_each_sample_counts_once_over_all_readers_and_epochs(mixed, ranks_workers_accumulation):
    """56 rows an epoch: 12 good ones and 2 whose pixels are broken of each shard. Two epochs and a little more."""
    ranks, workers, accumulation_steps = ranks_workers_accumulation
    spec, config = f"{mixed}/*.tar", Images(shuffle_buffer=20, max_bad_fraction=0.9)
    loaders = [_loader(spec, config, 8, ranks, workers, accumulation_steps, rank) for rank in range(ranks)]
    assert loaders[0].dataset.num_streams == 4
    _updates(loaders, 16)
    assert _summed_up(sum((loader.counts for loader in loaders), Counts())) == MIXED


def test_counts_go_on_after_a_resume_with_other_processes(mixed):
    spec, config, state = f"{mixed}/*.tar", Images(shuffle_buffer=20, max_bad_fraction=0.9), {}
    for ranks, workers, steps in ((2, 2, 2), (4, 0, 2), (1, 1, 0), (1, 0, 1), (2, 1, 11)):
        loaders = [_loader(spec, config, 8, ranks, workers, rank=rank) for rank in range(ranks)]
        for loader in loaders if state else []:
            loader.load_state_dict(state)
        if steps:
            _updates(loaders, steps)
        states = [json.loads(json.dumps(loader.state_dict())) for loader in loaders]
        state = {name: value for one in states for name, value in one.items()}
    assert _summed_up(sum((loader.counts for loader in loaders), Counts())) == MIXED


def test_images_that_all_do_not_decode_end_the_stream(tmp_path):
    """Their headers do, so that each takes a row, for which one that decodes is looked for."""
    broken = {"png": encoded(_noise())[:-200], "txt": b"fine"}
    assert header_size(broken["png"]) == (16, 16)
    write_shard(tmp_path / "some.tar", [broken] * 30)
    with pytest.raises(ValueError, match=r"samples cannot be used .*image does not decode"):
        _take(_loader(tmp_path / "some.tar", replace(NO_CROP, max_bad_fraction=1.0), 4), 1)


@pytest.mark.parametrize("header", [True, False])
def test_broken_samples_in_a_row_do_not_end_a_run_that_is_resumed_before_them(tmp_path, header):
    """The limit is a share of all that the run has read, but for data that are broken from the beginning."""
    good = {"png": encoded(_noise()), "txt": b"fine"}
    broken = {**good, "png": good["png"][:-200] if header else b"broken"}
    write_shard(tmp_path / "some.tar", [good] * 300 + [broken] * 45 + [good] * 50)
    config = replace(NO_CROP, max_bad_fraction=0.14)
    for ranks in (1, 2):
        loaders = [_loader(tmp_path / "some.tar", config, 100, rank=rank, ranks=ranks) for rank in range(ranks)]
        _updates(loaders, 3)
        state = {name: value for loader in loaders for name, value in loader.state_dict().items()}
        resumed = _loader(tmp_path / "some.tar", config, 100)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        _take(resumed, 2)
        assert (resumed.counts.read, resumed.counts.num_broken) == (395, 45)


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


@pytest.mark.parametrize(
    ("least", "expected", "num_filtered", "num_broken"),
    [
        (0, {"0": "", "1": "a b", "2": "", "3": "cccc", "4": ""}, 0, 1),
        (1, {"1": "a b", "3": "cccc"}, 0, 4),
        (3, {"1": "a b", "3": "cccc"}, 0, 4),
        (4, {"3": "cccc"}, 1, 4),
        (5, {}, None, None),
    ],
)
def test_pairs_without_a_caption_are_taken_where_none_is_asked_for(tmp_path, least, expected, num_filtered, num_broken):
    texts = [{}, {"txt": b" a  b"}, {"txt": b"\n"}, {"txt": b"cccc"}, {"json": b'{"caption": null}'}, {"txt": b"\xff"}]
    samples = [{"png": encoded(flat((i, 0, 0))), **text} for i, text in enumerate(texts)]
    write_shard(tmp_path / "some.tar", samples)
    loader = _loader(tmp_path / "some.tar", replace(NO_CROP, min_caption_chars=least), max(1, len(expected)))
    if not expected:
        with pytest.raises(ValueError, match="of 6 samples 0 were used, 2 filtered out, 4 broken"):
            _take(loader, 1)
        return
    batch, _ = _take(loader, 2)
    shown = [str(image[0, 0, 0].item()) for image in batch["images_BCYX"]]
    assert dict(zip(shown, batch["captions"], strict=True)) == expected
    assert (loader.counts.num_filtered, loader.counts.num_broken) == (num_filtered, num_broken)


@pytest.mark.parametrize("workers", [0, 1])
def test_odd_pictures_come_out_as_they_are_seen_and_broken_ones_are_counted(tmp_path, workers):
    exif = Image.Exif()
    exif[0x0112] = 6  # the right side as seen is the first row of the file
    turned = Image.fromarray(np.array([[[0, 0, 200]], [[200, 0, 0]]], np.uint8).repeat(16, 0).repeat(32, 1))
    odd = {
        "rotated": {"png": encoded(turned, exif=exif)},
        "CMYK": {"jpg": encoded(flat((0, 255, 255, 0), "CMYK"), "JPEG", quality=100)},
        "cut off": {"jpg": encoded(gradient(200, 200), "JPEG")[:2000]},
        "big-endian": {"tif": encoded(Image.fromarray(np.full((16, 16), 0x6450, ">u2")), "TIFF")},
        "float": {"tiff": encoded(Image.fromarray(np.full((16, 16), 0.5, np.float32)), "TIFF")},
        "no image": {"png": b"broken"},
        "grey": {"webp": encoded(flat(100, "L"), "WEBP", lossless=True)},
        "half transparent": {"png": encoded(flat((255, 0, 0, 128), "RGBA"))},
    }
    write_shard(tmp_path / "odd.tar", [{**files, "txt": name.encode()} for name, files in odd.items()])
    loader = _loader(tmp_path / "odd.tar", NO_CROP, 1, workers=workers)
    batches = _take(loader, 7)
    seen = {batch["captions"][0]: batch["images_BCYX"][0].permute(1, 2, 0).numpy() for batch in batches}
    assert (seen.pop("rotated") == np.array([[200, 0, 0], [0, 0, 200]], np.uint8).repeat(4, 0)).all()
    expected = {"CMYK": (255, 0, 0), "big-endian": (100,), "grey": (100,), "half transparent": (255, 127, 127)}
    assert seen.keys() == expected.keys()
    for name, colour in expected.items():
        assert np.abs(seen[name].astype(int) - colour).max() <= (1 if name == "CMYK" else 0), name  # JPEG rounds
    # a row of each whose header can be read; the two that fall out later are stood in for
    assert [batch["captions"][0] for batch in batches] == [
        *("rotated", "CMYK", "big-endian", "big-endian", "grey", "grey", "half transparent")
    ]
    assert loader.counts.broken["image does not decode"].count == loader.counts.num_broken == 3


@pytest.mark.parametrize("augmentation", ["none", "dvae", "prior"])
def test_small_images_are_enlarged_by_the_loader(tmp_path, augmentation):
    write_shard(tmp_path / "small.tar", [{"png": encoded(small_ramp()), "txt": b"small"}] * 2)
    for cache_bytes in (0, 10**6):
        config = replace(NO_CROP, augmentation=augmentation, flip=False, cache_bytes=cache_bytes)
        for batch in _take(_loader(tmp_path / "small.tar", config, 2), 2):
            for image in batch["images_BCYX"]:
                check_enlarged_ramp(image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_nothing_of_can_be_used_ends(motley, tmp_path, workers):
    for spec in (f"{motley}/00.tar", f"{motley}/*.tar"):
        with pytest.raises(ValueError, match=r"^no sample of .*\.tar … can be used: of .* caption shorter than"):
            _take(_loader(spec, Images(min_caption_chars=1000, max_bad_fraction=0.5), 16, workers=workers), 1)
    write_shard(tmp_path / "bad.tar", [{"txt": b"no image"}] * 3)
    with pytest.raises(ValueError, match=r"^(\d+) of \1 samples cannot be used \(\1 × no image: 0000"):
        _take(_loader(tmp_path / "bad.tar", NO_CROP, 4, workers=workers), 1)


def test_shards_that_are_filtered_out_as_a_whole_are_passed_over(tmp_path):
    good, wide = ({"png": encoded(gradient(width, 12)), "txt": b"fine"} for width in (12, 100))
    for shard in range(4):
        write_shard(tmp_path / f"{shard}.tar", [good if shard < 2 else wide] * 3)
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


def test_a_batch_tells_what_its_pairs_are_about_where_it_is_asked(motley):
    config = Images(augmentation="none", shuffle_buffer=0, max_bad_fraction=1.0)
    run = Run(steps=1, batch_size=4)

    def told(sample, captions):
        return (sample["__key__"], *captions)

    batches = PairLoader(PairBatches(f"{motley}/0*.tar", config, 8, run, 0, 1, told), 0)
    for batch in _take(batches, 3):
        assert [found[0] for found in batch["concepts"]] == [key for _, key in batch["places"]] != []
        assert all(caption in found[1:] for caption, found in zip(batch["captions"], batch["concepts"], strict=True))
    assert _take(_loader(f"{motley}/0*.tar", config, 4), 1)[0]["concepts"] == []
