"""The folder of an evaluation's images: what is written is read again, and what is wrong with it is one line."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from dalle.evaluation.layout import load, prompt_folder, read_layout, sample_path, write_prompt


def _picture(path, colour=(255, 0, 0), size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two prompts, of two images and one."""
    for number, (metadata, colours) in enumerate(
        (
            ({"prompt": "a red dot", "tag": "colors"}, [(255, 0, 0), (0, 255, 0)]),
            ({"prompt": "ein grünes"}, [(0, 0, 255)]),
        )
    ):
        write_prompt(tmp_path, number, metadata)
        for place, colour in enumerate(colours):
            _picture(sample_path(tmp_path, number, place), colour)
    return tmp_path


def test_what_is_written_is_read(folder):
    (folder / ".dalle-sample").write_text("{}")
    (folder / "request.json").write_text("{}")
    _picture(folder / "sheet.png")
    _picture(folder / "00000/grid.png")
    _picture(folder / ".checkpoints/7.png")
    _picture(folder / "00000/samples/.9.png")
    assert json.loads((folder / "00001/metadata.jsonl").read_text()) == {"prompt": "ein grünes"}
    first, second = read_layout(folder)
    assert (first.number, first.prompt, first.metadata) == (0, "a red dot", {"prompt": "a red dot", "tag": "colors"})
    assert first.samples == (folder / "00000/samples/0000.png", folder / "00000/samples/0001.png")
    assert (second.number, second.prompt, len(second.samples)) == (1, "ein grünes", 1)
    samples = list(load([first, second]))
    assert [(s.prompted.number, s.place, s.path) for s in samples] == [
        (0, 0, first.samples[0]), (0, 1, first.samples[1]), (1, 0, second.samples[0]),
    ]  # fmt: skip
    assert all(s.image_YX3.dtype == np.uint8 and s.image_YX3.shape == (4, 6, 3) for s in samples)
    assert [tuple(s.image_YX3[0, 0]) for s in samples] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert [s.place for s in load([first, second], most=1)] == [0, 0]


def test_order_is_that_of_the_numbers(tmp_path):
    """GenEval writes samples with five digits; others with none to fill up."""
    for number in ("2", "10", "00001"):
        (tmp_path / number).mkdir()
        (tmp_path / number / "metadata.jsonl").write_text(json.dumps({"prompt": number}))
        for name in ("10.png", "2.jpg", "00001.webp", "0.png", *(f"{place}.png" for place in range(3, 10))):
            _picture(tmp_path / number / "samples" / name)
        (tmp_path / number / "samples" / "notes.txt").touch()
    found = read_layout(tmp_path)
    assert [entry.number for entry in found] == [1, 2, 10]
    names = [path.name for path in found[0].samples]
    assert (names[:4], names[-1], len(names)) == (["0.png", "00001.webp", "2.jpg", "3.png"], "10.png", 11)
    assert prompt_folder(tmp_path, 12345).name == "12345"


def test_a_flat_folder_is_an_image_for_each_caption(tmp_path):
    for name, suffix in (("b", "jpg"), ("a", "png"), ("c.1", "webp")):
        _picture(tmp_path / f"{name}.{suffix}")
        (tmp_path / f"{name}.txt").write_text(f"\ufeffof  {name}\n", encoding="utf-8")
    found = read_layout(tmp_path)
    assert [(entry.number, entry.prompt, [path.name for path in entry.samples]) for entry in found] == [
        (0, "of a", ["a.png"]), (1, "of b", ["b.jpg"]), (2, "of c.1", ["c.1.webp"]),
    ]  # fmt: skip
    assert found[0].metadata == {"prompt": "of a"}
    assert len(list(load(found))) == 3


def _same_number(folder):
    (folder / "00001").rename(folder / "0")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "cats").mkdir(), r"cats is not named by a number; lay it out as DIR/00000/metadata\.jsonl"),
        (lambda f: (f / "²").mkdir(), "² is not named by a number"),
        (_same_number, "0 and 00000 have one number"),
        (lambda f: _picture(f / "one.png"), r"holds both folders and one\.png"),
        (lambda f: (f / "00001/metadata.jsonl").unlink(), r"00001/metadata\.jsonl: No such file"),
        (lambda f: (f / "00001/metadata.jsonl").write_text("{"), r"00001/metadata\.jsonl: must be a JSON object"),
        (lambda f: (f / "00001/metadata.jsonl").write_text("[]"), r"00001/metadata\.jsonl: must be a JSON object"),
        (lambda f: (f / "00001/metadata.jsonl").write_text('{"prompt": 5}'), r"metadata\.jsonl: must be a JSON object"),
        (
            lambda f: (f / "00001/metadata.jsonl").write_text('{"prompt": " "}'),
            r"metadata\.jsonl: must be a JSON object",
        ),
        (lambda f: sample_path(f, 1, 0).unlink(), r"00001/samples: holds no image"),
        (lambda f: (sample_path(f, 1, 0).unlink(), (f / "00001/samples").rmdir()), "00001/samples: holds no image"),
        (
            lambda f: sample_path(f, 0, 0).unlink(),
            r"00000/samples: holds 0001\.png, and no image 0; images are numbered",
        ),
        (lambda f: _picture(sample_path(f, 0, 4)), r"00000/samples: holds 0004\.png, and no image 2; images are"),
        (lambda f: _picture(f / "00001/samples/best.png"), r"best\.png is not named by a number"),
        (lambda f: _picture(f / "00001/samples/0.png"), r"0\.png and 0000\.png have one number"),
    ],
)
def test_a_folder_of_another_layout_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message) as refusal:
        read_layout(folder)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="gone: is no folder"):
        read_layout(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no images; lay it out as"):
        read_layout(tmp_path)
    (tmp_path / "a.txt").write_text("a dot")
    with pytest.raises(ValueError, match="holds no images"):
        read_layout(tmp_path)


def test_a_flat_folder_needs_a_caption_for_each_image(tmp_path):
    _picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has no caption a\.txt beside it"):
        read_layout(tmp_path)
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"a\.txt: has no caption in it"):
        read_layout(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"a\.txt: cannot be read as UTF-8"):
        read_layout(tmp_path)
    (tmp_path / "a.txt").write_text("a dot")
    (tmp_path / "b.txt").write_text("a dot")
    with pytest.raises(ValueError, match=r"b\.txt has no image b\.png beside it"):
        read_layout(tmp_path)
    (tmp_path / "b.txt").unlink()
    _picture(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg and a\.png share one caption"):
        read_layout(tmp_path)


def test_images_that_cannot_be_read_or_compared_are_named(folder):
    entries = read_layout(folder)
    _picture(sample_path(folder, 1, 0), size=(4, 6))
    first, other = sample_path(folder, 0, 0), sample_path(folder, 1, 0)
    message = f"{re.escape(str(first))} has 6×4 px, {re.escape(str(other))} has 4×6 px"
    with pytest.raises(ValueError, match=message):
        list(load(entries))
    for content, words in ((b"%!PS no picture", "no image in PNG"), (b"", "does not decode")):
        sample_path(folder, 0, 1).write_bytes(content)
        with pytest.raises(ValueError, match=rf"0001\.png: .*{words}"):
            list(load(entries))
    sample_path(folder, 0, 1).unlink()
    with pytest.raises(ValueError, match=r"0001\.png: No such file"):
        list(load(entries))
