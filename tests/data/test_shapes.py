"""The drawn data set: its captions say what is drawn, its hold-out holds, and its checker is right and strict."""

import importlib
import itertools
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dalle.data.shapes import (
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Claim,
    Scene,
    SceneObject,
    captions,
    check,
    draw,
    is_held_out,
    is_pair_held_out,
    is_place_held_out,
    read,
    sample_scene,
    shows,
    write_shards,
)
from dalle.data.shapes.outline import coverage


def _scenes(count, seed, held_out=False):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, held_out) for _ in range(count)]


def _look(scene):
    return scene.objects[0].colour, scene.objects[0].shape


def _blurred(image, rng, radius=0.5, noise=4):
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(radius))).astype(float)
    return Image.fromarray(np.clip(soft + rng.normal(0, noise, soft.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("size_px", "count"), [(32, 600), (64, 400), (128, 60)])
def test_checker_is_right_on_drawings(size_px, count):
    scenes = _scenes(count // 2, 1) + _scenes(count // 2, 2, held_out=True)
    right = [shows(draw(scene, size_px), Claim.of(scene)) for scene in scenes]
    assert np.mean(right) >= 0.99


def test_edges_are_rounded_and_not_cut(monkeypatch):
    """An edge that covers 0.3 of each pixel: red on white is 253 − 14.4, 253 − 68.4, 253 − 65.4."""
    module = importlib.import_module("dalle.data.shapes.draw")  # the package's `draw` is the function
    monkeypatch.setattr(
        module, "coverage", lambda shape, x_px, y_px, diameter_px: np.full((len(y_px), len(x_px)), 0.3, np.float32)
    )
    red = SceneObject("square", "red", "large", True, diameter=0.5, x=0.5, y=0.5)
    assert draw(Scene((red,), "alone", "centre", True, "white"), 32).getpixel((16, 16)) == (239, 185, 188)


def test_checker_forgives_the_blur_of_a_good_reconstruction():
    rng = np.random.default_rng(0)
    scenes = _scenes(300, 3)
    right = [shows(_blurred(draw(scene, 32), rng), Claim.of(scene)) for scene in scenes]
    assert np.mean(right) >= 0.97


def test_checker_refuses_drawings_of_another_caption():
    scenes = _scenes(400, 4)
    wrong = accepted = 0
    for scene, other in zip(scenes, scenes[1:] + scenes[:1], strict=True):
        claim = Claim.of(other)
        # a caption that leaves sizes open may be true of another drawing with the same objects
        if sorted((o.shape, o.colour) for o in claim.objects) != sorted((o.shape, o.colour) for o in scene.objects):
            wrong += 1
            accepted += shows(draw(scene, 32), claim)
    assert wrong > 380
    assert accepted == 0


def _edits(claim: Claim):
    """Claims that differ from this one in a single fact, with what was changed."""
    objects = claim.objects
    for i, thing in enumerate(objects):
        colour = next(c for c in COLOURS if c not in {o.colour for o in objects})
        shape = next(s for s in SHAPES if s not in {o.shape for o in objects})
        for name, new in (("colour", replace(thing, colour=colour)), ("shape", replace(thing, shape=shape))):
            yield name, replace(claim, objects=(*objects[:i], new, *objects[i + 1 :]))
        if thing.size:
            other = next(s for s in SIZES if s != thing.size)
            yield "size", replace(claim, objects=(*objects[:i], replace(thing, size=other), *objects[i + 1 :]))
    if claim.arrangement in ("left of", "above"):
        yield "order", replace(claim, objects=objects[::-1])
        yield "relation", replace(claim, arrangement={"left of": "above", "above": "left of"}[claim.arrangement])
        yield "number", Claim(objects[:1])
    if claim.arrangement == "one above two":
        yield "relation", replace(claim, arrangement="one below two")
    if claim.position:
        opposite = {"top left": "bottom right", "centre": "top left"}.get(claim.position, "centre")
        yield "position", replace(claim, position=opposite)


def test_one_wrong_fact_is_enough():
    refused: dict[str, list[bool]] = {}
    for scene in _scenes(200, 5):
        image = draw(scene, 32)
        for name, claim in _edits(Claim.of(scene)):
            refused.setdefault(name, []).append(not shows(image, claim))
    assert set(refused) == {"colour", "shape", "size", "order", "relation", "number", "position"}
    for name, results in refused.items():
        assert np.mean(results) >= 0.99, name


def _mixture(first: str, second: str, colours_YXC=COLOURS["red"]):
    """32 px: one shape laid half over another of the same size, on a pale background."""
    centres = np.arange(32) - 15.5
    alpha = (coverage(first, centres, centres, 14) + coverage(second, centres, centres, 14))[..., None] / 2
    return (240 * (1 - alpha) + alpha * np.asarray(colours_YXC)).round().astype(np.uint8)


def _halves(first: str, second: str):
    """32 px: a square, its left half of one colour and its right half of another."""
    left = np.arange(32)[None, :, None] < 16
    return _mixture("square", "square", np.where(left, COLOURS[first], COLOURS[second]))


def _named(image) -> bool:
    return any(seen.shape and seen.colour for seen in read(image).objects)


def test_what_is_half_one_thing_and_half_another_is_not_named():
    assert _named(_mixture("circle", "circle"))
    for first, second in itertools.combinations(SHAPES, 2):
        assert not _named(_mixture(first, second)), (first, second)
    for first, second in itertools.permutations(COLOURS, 2):
        assert not _named(_halves(first, second)), (first, second)


@pytest.mark.parametrize(
    ("threshold", "off", "images"),
    [
        ("MIN_LEAD", 0.0, [_mixture(*pair) for pair in itertools.combinations(SHAPES, 2)]),
        ("MIN_CONFIDENCE", 0.0, [_mixture(*pair) for pair in itertools.combinations(SHAPES, 2)]),
        ("MAX_PATCHINESS", 9.0, [_halves(*pair) for pair in itertools.permutations(COLOURS, 2)]),
    ],
)
def test_every_threshold_is_needed(monkeypatch, threshold, off, images):
    monkeypatch.setattr(check, threshold, off)
    assert any(_named(image) for image in images)


def test_nothing_is_seen_where_nothing_is():
    rng = np.random.default_rng(0)
    blank = np.full((32, 32, 3), 240, np.uint8)
    noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert not read(blank).objects
    assert not any(seen.shape and seen.colour for seen in read(noise).objects)
    with pytest.raises(ValueError, match="uint8"):
        read(blank.astype(float))


def test_hold_out():
    train, valid = _scenes(3000, 6), _scenes(1500, 7, held_out=True)
    for scene in train:
        assert not is_held_out(scene)
        things = [(o.colour, o.shape) for o in scene.objects]
        assert not any(is_pair_held_out(a, b) for i, a in enumerate(things) for b in things[:i])
        assert len(things) > 1 or not is_place_held_out(*things[0], scene.position)
    for scene in valid:
        assert is_held_out(scene)
        if len(scene.objects) == 1:
            (thing,) = scene.objects
            assert scene.position_stated and is_place_held_out(thing.colour, thing.shape, scene.position)
        else:
            things = [(o.colour, o.shape) for o in scene.objects]
            assert any(is_pair_held_out(a, b) for i, a in enumerate(things) for b in things[:i])
    seen = {(o.colour, o.shape) for scene in train for o in scene.objects}
    assert seen == {(c, s) for c in COLOURS for s in SHAPES}, "every coloured shape is met in training"
    alone = {(*_look(scene), scene.position) for scene in train if scene.position}
    assert {place[:2] for place in alone} == seen, "and met alone"
    assert {place[1:] for place in alone} == {(s, p) for s in SHAPES for p in POSITIONS}, (
        "every shape at every position"
    )


VERTICAL = {"above", "over", "below", "under", "top", "bottom"}
RELATION_WORDS = {
    "alone": set(),
    "left of": {"left", "right"},
    "above": VERTICAL,
    "one above two": VERTICAL,
    "one below two": VERTICAL,
}


def test_captions_say_what_is_drawn():
    rng = np.random.default_rng(0)
    for scene in _scenes(400, 8):
        claim = Claim.of(scene)
        for text in captions(scene, rng):
            words = text.replace("sky blue", "sky").replace(",", " ").replace(":", " ").split()
            assert text == text.lower() and len(words) <= 14
            assert sorted(w for w in words if w in SHAPES) == sorted(o.shape for o in claim.objects)
            assert sorted(w for w in words if w in COLOURS) == sorted(o.colour for o in claim.objects)
            for thing in claim.objects:
                before = words[words.index(thing.colour) - 1] if words.count(thing.colour) == 1 else None
                if before is not None:
                    small, large = before in ("small", "little"), before in ("large", "big")
                    assert (small, large) == (thing.size == "small", thing.size == "large")
            assert RELATION_WORDS[claim.arrangement] & set(words) or claim.arrangement == "alone"


def test_shards_are_the_same_bytes_for_any_number_of_workers(tmp_path):
    one = write_shards(tmp_path / "one", 30, 10, size_px=32, num_workers=1, shard_size=10)
    two = write_shards(tmp_path / "two", 30, 10, size_px=32, num_workers=2, shard_size=10)
    assert [p.name for p in one] == ["train-000.tar", "train-001.tar", "train-002.tar", "valid-000.tar"]
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes()
    other = write_shards(tmp_path / "other", 30, 10, size_px=32, seed=1, shard_size=10)
    assert other[0].read_bytes() != one[0].read_bytes()


def test_a_folder_with_other_shards_is_refused(tmp_path):
    write_shards(tmp_path, 30, 10, size_px=32, shard_size=10)
    write_shards(tmp_path, 40, 10, size_px=32, shard_size=10)
    with pytest.raises(ValueError, match=r"train-003\.tar"):
        write_shards(tmp_path, 30, 10, size_px=32, shard_size=10, seed=1)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_caption_can_be_judged_from_the_shard_alone(tmp_path):
    (path,) = write_shards(tmp_path, 0, 20, size_px=32)
    with tarfile.open(path) as tar:
        files = {m.name: tar.extractfile(m) for m in tar.getmembers()}
        assert len(files) == 60
        for name in [n for n in files if n.endswith(".json")]:
            about = json.load(files[name])
            assert about["captions"][0] == files[name.replace(".json", ".txt")].read().decode()
            image = Image.open(files[name.replace(".json", ".png")])
            assert shows(image, Claim.from_json(about["scene"]))
    with pytest.raises(ValueError, match="not a claim"):
        Claim.from_json({"objects": 3})
