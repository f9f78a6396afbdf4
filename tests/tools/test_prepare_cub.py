"""CUB-200-2011 in its own layout, drawn small: birds that fill their crops, captions and classes in the json, and one clear line for
what is missing."""

import sys

import numpy as np
import pytest
from PIL import Image

from dalle.config import Images
from dalle.data.captions import json_values
from dalle.data.samples import read_pairs
from dalle.data.shards import read
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import prepare_cub

CLASSES = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
SIZES = [(500, 375), (300, 400), (120, 100), (500, 200)]
BOXES = [(120, 110, 200, 160), (20, 300, 100, 99), (30, 10, 40, 60), (10, 20, 450, 150)]
PX = 64


def _draw(folder, count=24):
    """A data set in which a bird is what is red, on blue."""
    lines: dict[str, list[str]] = {name: [] for name in ("images", "bounding_boxes", "image_class_labels", "classes")}
    lines["classes"] = [f"{n + 1} {name}" for n, name in enumerate(CLASSES)]
    for number in range(count):
        kind = number % len(CLASSES)
        name = f"{CLASSES[kind]}/Bird_{number:04d}"
        (width, height), (x, y, w, h) = SIZES[number % 4], BOXES[number % 4]
        pixels = np.zeros((height, width, 3), np.uint8) + np.uint8([0, 0, 200])
        pixels[y : y + h, x : x + w] = [200, 0, 0]
        path = folder / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=95)
        text = folder / "text_c10" / f"{name}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("".join(f"bird {number}, caption {n} .\n" for n in range(10)))
        lines["images"].append(f"{number + 1} {name}.jpg")
        lines["bounding_boxes"].append(f"{number + 1} {x}.0 {y}.0 {w}.0 {h}.0")
        lines["image_class_labels"].append(f"{number + 1} {kind + 1}")
    for name, rows in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def cub(tmp_path):
    return _draw(tmp_path / "CUB_200_2011")


def _prepare(*arguments) -> None:
    prepare_cub.main([*map(str, arguments), "--size_px", str(PX)])


def _refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as left:
        _prepare(*arguments)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("prepare_cub: ") and said.count("\n") == 1
    return said


def test_shards_of_what_is_distributed(cub, tmp_path, capsys):
    _prepare(cub, tmp_path / "out")
    told = capsys.readouterr().out
    assert told == "23 images to train with and 1 to test, drawn with seed 0, of 2 classes, each with 10 captions\n"
    assert sorted(p.name for p in (tmp_path / "out").glob("*")) == [".prepare_cub", "test-000.tar", "train-000.tar"]
    spec = f"{tmp_path}/out/train-000.tar {tmp_path}/out/test-000.tar"
    pairs = list(read_pairs(spec, Images(augmentation="none"), PX))
    samples = list(read([f"{tmp_path}/out/{name}-000.tar" for name in ("train", "test")]))
    seen = set()
    for pair, sample in zip(pairs, samples, strict=True):
        about, _ = json_values(sample)
        number = int(about["image"][-8:-4])
        seen.add(number)
        assert about["class"] == CLASSES[number % 2] == about["image"].split("/")[0]
        assert pair.captions == [f"bird {number}, caption {n} ." for n in range(10)]
        assert pair.image.shape == (PX, PX, 3)
        assert 0.75 < about["object_ratio"] <= 1
        red_YX = pair.image[..., 0] > 100
        ys, xs = np.flatnonzero(red_YX.any(axis=1)), np.flatnonzero(red_YX.any(axis=0))
        rows, columns = len(ys), len(xs)
        # a pixel of the crop for each edge that falls between two
        assert abs(max(rows, columns) / PX - about["object_ratio"]) <= 2 / PX
        if number % 4 != 3:  # the last is too long for its picture, and squeezed
            w, h = BOXES[number % 4][2:]
            assert rows / columns == pytest.approx(h / w, rel=0.08)
        if number % 4 == 0:  # far from every edge: in the middle
            assert abs(xs.mean() - (PX - 1) / 2) < 1 and abs(ys.mean() - (PX - 1) / 2) < 1
    assert seen == set(range(24))


@pytest.mark.parametrize(
    ("size", "box", "window", "ratio"),
    [
        # 150 / 0.75 is 200, of which the share would be 0.75 and no more
        ((500, 400), (100, 100, 250, 200), (76, 50, 275, 249), 150 / 199),
        ((500, 400), (0, 0, 150, 100), (0, 0, 199, 199), 150 / 199),
        ((500, 400), (400, 350, 500, 400), (367, 267, 500, 400), 100 / 133),
        # the picture's shorter side is all that there is
        ((500, 200), (100, 0, 280, 100), (90, 0, 290, 200), 180 / 200),
        # no square holds the bird: both sides of the picture's height
        ((500, 200), (10, 20, 460, 170), (10, 0, 460, 200), 1.0),
        ((50, 50), (10.5, 10.5, 11.5, 11.5), (10, 10, 11, 11), 1.0),
    ],
)
def test_the_window_around_a_box(size, box, window, ratio):
    assert prepare_cub.crop_window(size, box) == (window, pytest.approx(ratio))


def test_windows_of_any_box_hold_it_and_are_filled_by_it():
    generator = np.random.default_rng(0)
    for _ in range(2000):
        size = tuple(int(n) for n in generator.integers(40, 500, 2))
        (left, right), (top, bottom) = (np.sort(generator.uniform(0, n, 2)) for n in size)
        if max(right - left, bottom - top) < 3:
            continue
        window, ratio = prepare_cub.crop_window(size, (left, top, right, bottom))
        assert 0.75 < ratio <= 1
        assert 0 <= window[0] < window[2] <= size[0] and 0 <= window[1] < window[3] <= size[1]
        # a window's edge is at a whole pixel
        assert window[0] <= left + 1 and window[1] <= top + 1 and window[2] >= right - 1 and window[3] >= bottom - 1
        width, height = window[2] - window[0], window[3] - window[1]
        assert width == height or max(right - left, bottom - top) > min(size)


def test_the_documents_split():
    birds = [prepare_cub.Bird(str(number), "c", (0, 0, 1, 1), ["x"]) for number in range(11_788)]
    train, test = prepare_cub.split(birds, seed=0)
    assert (len(train), len(test)) == (11_199, 589)
    names = [bird.name for bird in train + test]
    assert len(set(names)) == 11_788
    for part in (train, test):  # classes lie side by side in images.txt, and are not to in the shards
        numbers = np.array([int(bird.name) for bird in part])
        assert abs(np.corrcoef(numbers, np.arange(len(part)))[0, 1]) < 0.15
    assert [b.name for b in prepare_cub.split(birds, 0)[1]] == [b.name for b in test]
    assert {b.name for b in prepare_cub.split(birds, 1)[1]} != {b.name for b in test}


def _edit(path, change) -> None:
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: _edit(f / "bounding_boxes.txt", lambda t: t.replace("5 120.0 110.0 200.0 160.0\n", "")),
         "bounding_boxes.txt has no box for image 5, 001.Black_footed_Albatross/Bird_0004.jpg, in "),
        (lambda f: _edit(f / "bounding_boxes.txt", lambda t: ""), ", nor for 23 others"),
        (lambda f: _edit(f / "bounding_boxes.txt", lambda t: t.replace("5 120.0 110.0", "5 60.0 x")), "the box of image 5"),
        (lambda f: _edit(f / "bounding_boxes.txt", lambda t: t.replace("5 120.0", "5 nan")),
         "bounding_boxes.txt: the box of image 5, 'nan 110.0 200.0 160.0', has no finite place and size above 0"),
        (lambda f: _edit(f / "bounding_boxes.txt", lambda t: t.replace("5 120.0 110.0 200.0", "5 120.0 110.0 inf")), "no finite place"),
        (lambda f: _edit(f / "bounding_boxes.txt", lambda t: t.replace("5 120.0 110.0 200.0", "5 120.0 110.0 -2")), "no finite place"),
        (lambda f: _edit(f / "bounding_boxes.txt", lambda t: t.replace("5 120.0 110.0 200.0", "5 120.0 110.0 0")), "no finite place"),
        (lambda f: _edit(f / "bounding_boxes.txt", lambda t: t.replace("5 120.0 110.0", "5 900.0 110.0")),
         "Bird_0004.jpg: its box, (900.0, 110.0, 200.0, 160.0), lies outside of its 500×375 pixels"),
        (lambda f: _edit(f / "image_class_labels.txt", lambda t: t.replace("6 2\n", "")), "has no class for image 6"),
        (lambda f: _edit(f / "classes.txt", lambda t: t.splitlines()[0]), "no name of the class for image 2, "),
        (lambda f: (f / "images" / CLASSES[1] / "Bird_0003.jpg").unlink(), "there is no file for image 4, "),
        (lambda f: (f / "text_c10" / CLASSES[1] / "Bird_0003.txt").unlink(), "there are no captions for image 4, "),
        (lambda f: (f / "text_c10" / CLASSES[1] / "Bird_0003.txt").write_text("\n \n"),
         "Bird_0003.txt holds 0 captions of 10; copy it once more"),
        (lambda f: _edit(f / "text_c10" / CLASSES[1] / "Bird_0003.txt", lambda t: t.splitlines()[0]),
         "Bird_0003.txt holds 1 captions of 10; copy it once more"),
        (lambda f: f.rename(f.parent / "elsewhere"), "there is no folder "),
        (lambda f: (f / "images" / CLASSES[1] / "Bird_0003.jpg").write_bytes(b"x"), "Bird_0003.jpg: image does not decode"),
        (lambda f: (f / "classes.txt").unlink(), "there is no classes.txt in "),
        (lambda f: (f / "images.txt").write_text(""), "images.txt names no image"),
        (lambda f: (f / "images.txt").write_text("1\n"), "the line '1' has a number and nothing else"),
        (lambda f: (f / "text_c10").rename(f / "captions"), "no folder of captions "),
    ],
)  # fmt: skip
def test_what_is_missing_is_one_line_and_leaves_nothing(cub, tmp_path, capsys, spoil, message):
    spoil(cub)
    assert message in _refused(capsys, cub, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("[!.]*"))


def test_captions_may_lie_elsewhere_and_outputs_are_not_written_over(cub, tmp_path, capsys):
    (cub / "text_c10").rename(tmp_path / "captions")
    _prepare(cub, tmp_path / "out", "--captions", tmp_path / "captions")
    first = (tmp_path / "out/train-000.tar").read_bytes()
    _prepare(cub, tmp_path / "out", "--captions", tmp_path / "captions", "--seed", "1")
    assert (tmp_path / "out/train-000.tar").read_bytes() != first
    _prepare(cub, tmp_path / "out", "--captions", tmp_path / "captions")
    assert (tmp_path / "out/train-000.tar").read_bytes() == first  # the same bytes for the same seed
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    assert "is not empty" in _refused(capsys, cub, tmp_path / "mine", "--captions", tmp_path / "captions")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["file"]
