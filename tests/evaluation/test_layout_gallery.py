"""`dalle-sample --layout geneval`: folders that others read, resumed as a gallery is."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dalle.cli.sample import sample
from dalle.config import Sample
from dalle.evaluation.layout import read_layout
from dalle.evaluation.layout_gallery import LayoutGallery
from dalle.sampling import candidates
from dalle.sampling.drawing import Drawing, read_drawing

LINES = [
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a red  circle"},
    {"tag": "colors", "include": [{"class": "cross", "color": "blue"}], "prompt": "a blue cross"},
    {"tag": "colors", "include": [{"class": "circle", "color": "red"}], "prompt": "a red circle"},
]


def _drawings(caption, count, first=0, scored=False):
    return [
        Drawing(
            Image.new("RGB", (8, 8), (i * 20, 0, 0)),
            caption,
            i / 10 if scored else None,
            7 + i,
            1 + i - first,
            {"n": 4},
        )
        for i in range(first, first + count)
    ]


def _gallery(folder, prompts=LINES, keep=4, **options):
    return LayoutGallery(folder, "t", prompts=prompts, candidates=4, keep=keep, **options)


def _filled(folder, count=2):
    gallery = _gallery(folder)
    gallery.put("a red circle", _drawings("a red circle", count), 4)
    gallery.put("a blue cross", _drawings("a blue cross", count), 4)
    gallery.write()


def _seeds(folder):
    return [[read_drawing(path).seed for path in entry.samples] for entry in read_layout(folder)]


def test_each_line_has_its_folder_and_one_caption_the_same_images(tmp_path):
    gallery = _gallery(tmp_path)
    gallery.put("a red circle", _drawings("a red circle", 2, scored=True), 4)
    gallery.put("a blue cross", _drawings("a blue cross", 3), 4)
    gallery.write()
    assert [json.loads((tmp_path / f"0000{n}/metadata.jsonl").read_text()) for n in range(3)] == LINES
    assert [entry.prompt for entry in read_layout(tmp_path)] == ["a red  circle", "a blue cross", "a red circle"]
    assert _seeds(tmp_path) == [[8, 7], [7, 8, 9], [8, 7]]  # the best first, in the order of seeds without a score
    assert 'src="00001/samples/0002.png"' in (tmp_path / "index.html").read_text()
    assert _gallery(tmp_path).resume(4) == {"a red circle", "a blue cross"}


def test_what_came_often_is_there_as_often(tmp_path):
    one, often, last = _drawings("a red circle", 3)
    drawings = [one, replace(often, times=2), last]
    for keep, seeds in ((4, [7, 8, 8, 9]), (2, [7, 8]), (3, [7, 8, 8])):
        gallery = _gallery(tmp_path / str(keep), LINES[:1], keep=keep)
        gallery.put("a red circle", drawings, 4)
        gallery.write()
        assert _seeds(tmp_path / str(keep)) == [seeds]
        assert _gallery(tmp_path / str(keep), LINES[:1], keep=keep).resume(4) == {"a red circle"}


def test_a_prompt_is_written_when_it_is_whole_and_the_rest_is_missed(tmp_path):
    gallery = _gallery(tmp_path)
    gallery.put("a red circle", _drawings("a red circle", 2), 4)
    gallery.put("a blue cross", _drawings("a blue cross", 2), 3)
    gallery.write()
    with pytest.raises(ValueError, match="00001/samples: holds no image"):
        read_layout(tmp_path)
    assert _gallery(tmp_path).resume(4) == {"a red circle"}


def test_images_of_another_request_do_not_stay(tmp_path):
    _filled(tmp_path, 3)
    (tmp_path / "00000/samples/notes.txt").write_text("mine")
    gallery = _gallery(tmp_path, overwrite=True)
    gallery.put("a red circle", _drawings("a red circle", 2, first=5), 4)
    with pytest.raises(ValueError, match="00001/samples: holds no image"):
        read_layout(tmp_path)
    gallery.put("a blue cross", _drawings("a blue cross", 1), 4)
    assert _seeds(tmp_path) == [[12, 13], [7], [12, 13]]
    assert (tmp_path / "00000/samples/notes.txt").exists()


@pytest.mark.parametrize("lost", ["00000/samples/0001.png", "00002/samples/0000.png", "00002/metadata.jsonl"])
def test_what_was_lost_is_drawn_again(tmp_path, lost):
    _filled(tmp_path)
    (tmp_path / lost).unlink()
    assert _gallery(tmp_path).resume(4) == {"a blue cross"}


def test_other_prompts_are_refused(tmp_path):
    _filled(tmp_path)
    with pytest.raises(ValueError, match=r"00001/metadata\.jsonl: is of another prompt; .*--overwrite"):
        _gallery(tmp_path, [LINES[0], {**LINES[1], "tag": "position"}, LINES[2]])
    with pytest.raises(ValueError, match="holds 00002, which is none of these 2 prompts"):
        _gallery(tmp_path, LINES[:2], overwrite=True)
    (tmp_path / "1²").mkdir()
    with pytest.raises(ValueError, match="holds 1²"):
        _gallery(tmp_path)


def test_prompts_in_another_order_are_drawn_where_they_belong(tmp_path):
    """Also when that run is cut off, and the first one is asked for again."""
    lines = LINES[:2]
    gallery = _gallery(tmp_path, lines)
    for line in lines:
        caption = " ".join(line["prompt"].split())
        gallery.put(caption, _drawings(caption, 2), 4)
    gallery.write()
    with pytest.raises(ValueError, match="of another prompt"):
        _gallery(tmp_path, lines[::-1])
    other = _gallery(tmp_path, lines[::-1], overwrite=True)
    assert other.resume(4) == set()
    other.put("a blue cross", _drawings("a blue cross", 2), 4)  # and no page: the run is cut off here
    assert _gallery(tmp_path, lines, overwrite=True).resume(4) == set()
    assert read_drawing(tmp_path / "00000/samples/0000.png").caption == "a blue cross"
    assert not (tmp_path / "00001/samples/0000.png").exists()


FAST = ["--sampling.chunk", "4", "--sampling.precision", "fp32"]


def test_the_command_writes_it_and_goes_on(models, tmp_path, monkeypatch, capsys):
    captions, out = tmp_path / "evaluation_metadata.jsonl", tmp_path / "out"
    captions.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    arguments = ["--model", str(models), "--output", str(out), *FAST, "--captions", str(captions)]
    arguments += ["--layout", "geneval", "--n", "5", "--keep", "3", "--rerank"]
    whole = candidates.draw

    def interrupted(stop, pipeline, work, **more):
        for number, part in enumerate(whole(pipeline, work, **more)):
            if number == stop:
                raise KeyboardInterrupt
            yield part

    for stop in (1, 3):  # amid the first caption, and amid the second
        monkeypatch.setattr(candidates, "draw", lambda *a, stop=stop, **more: interrupted(stop, *a, **more))
        with pytest.raises(KeyboardInterrupt):
            sample(arguments)
        with pytest.raises(ValueError, match=rf"0000{stop // 3}/samples: holds no image"):
            read_layout(out)
        assert (out / "sheet.png").exists() == (stop == 3)
    monkeypatch.setattr(candidates, "draw", whole)
    capsys.readouterr()
    sample(arguments)
    said = capsys.readouterr()
    assert "1 of 2 captions are there already" in said.err
    assert "the best 3 of 5 for each of 2 captions: " in said.out
    entries = read_layout(out)
    assert [entry.metadata for entry in entries] == LINES
    for entry in entries:
        drawings = [read_drawing(path) for path in entry.samples]
        assert len(drawings) == 3
        assert [d.score for d in drawings] == sorted((d.score for d in drawings), reverse=True)
    same = [[np.asarray(Image.open(path)) for path in entries[n].samples] for n in (0, 2)]
    assert np.array_equal(same[0], same[1])
    # the gallery of the same request has the same drawings
    gallery = tmp_path / "gallery"
    sample([*arguments[:3], str(gallery), *arguments[4:], "--layout", "gallery"])

    def drawn(folder):
        lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        return dict.fromkeys((line["caption"], line["seed"], line["score"], line["rank"]) for line in lines)

    assert drawn(gallery) == drawn(out)
    # neither takes up the other, and a gallery of an earlier version is one still
    with pytest.raises(ValueError, match="layout was geneval, is gallery"):
        sample([*arguments, "--layout", "gallery"])
    with pytest.raises(ValueError, match="layout was gallery, is geneval"):
        sample([*arguments[:3], str(gallery), *arguments[4:]])
    request = json.loads((gallery / "request.json").read_text())
    assert request.pop("layout") == "gallery"
    (gallery / "request.json").write_text(json.dumps(request))
    sample([*arguments[:3], str(gallery), *arguments[4:], "--layout", "gallery"])


def test_another_request_is_over_before_its_images_are(models, tmp_path, monkeypatch):
    """Killed amid a run that writes over another one: that one, asked for again, must not take the new images for its own."""
    captions, out = tmp_path / "captions.txt", tmp_path / "out"
    captions.write_text("a red circle\na blue cross\n")
    arguments = ["--model", str(models), "--output", str(out), *FAST, "--captions", str(captions)]
    arguments += ["--layout", "geneval", "--n", "1", "--keep", "1"]
    sample(arguments)
    whole = candidates.draw

    class Killed(BaseException):
        pass

    def killed(pipeline, work, **more):
        for number, part in enumerate(whole(pipeline, work, **more)):
            if number:
                raise Killed
            yield part

    monkeypatch.setattr(candidates, "draw", killed)
    with pytest.raises(Killed):
        sample([*arguments, "--seed", "5", "--overwrite"])
    monkeypatch.setattr(candidates, "draw", whole)
    assert read_drawing(out / "00000/samples/0000.png").seed == 5
    with pytest.raises(ValueError, match="00001/samples: holds no image"):
        read_layout(out)
    sample(arguments)
    assert _seeds(out) == [[0], [0]]


def test_the_layout_is_of_a_file_of_captions():
    with pytest.raises(ValueError, match=r"layout geneval: .* give --captions FILE"):
        Sample("a red circle", layout="geneval")
    with pytest.raises(ValueError, match=r"layout geneval with n 32 and keep 16: .* set keep to n, or rank"):
        Sample(captions="c.txt", layout="geneval").check_unranked()  # where there is no reranker
    for options in ({"keep": 32}, {"rerank": True}, {"clip": "clip"}):
        assert Sample(captions="c.txt", layout="geneval", **options).layout == "geneval"
