"""What judged pictures come to, against numbers worked out by hand."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from dalle.data.shapes import Claim, ClaimedObject
from dalle.evaluation.compositional.atoms import Atom, atoms
from dalle.evaluation.compositional.results import Result, figures, judge, judge_images
from dalle.evaluation.compositional.section import compositional_section
from dalle.evaluation.compositional.skills import skill_captions
from dalle.evaluation.layout import read_layout, sample_path, write_prompt
from tests.evaluation.compositional.scenes import picture, things

RED_CIRCLE = Claim((ClaimedObject("circle", "red"),))


def _result(kinds, truths, skill=None, right=None):
    right_N = None if right is None else np.array(right, bool)
    return Result("p", tuple(Atom(kind, kind) for kind in kinds), np.array(truths, bool), skill, right_N, ())


def test_figures_by_hand():
    found = figures(
        [
            # atom means 1, 1/2, 1/2
            _result(("object", "count", "colour"), [[1, 1, 0], [1, 0, 1]], "colors", [0, 1]),
            # 1, 0, 1, 1, 1, 1
            _result(("object", "count", "colour", "size", "position", "relation"), [[1, 0, 1, 1, 1, 1]]),
            # 3/4, 1, 1
            _result(("object", "count", "colour"), [[1, 1, 1]] * 3 + [[0, 1, 1]], "colors", [1, 1, 1, 0]),
            _result(("object", "object", "count"), [[1, 0, 1], [1, 0, 1]], "two_object", [0, 0]),
        ]
    )
    assert found["images"] == 9
    # a caption's atoms count once, however many pictures it has
    assert found["atoms"] == {
        "object": {"mean": pytest.approx((1 + 1 + 0.75 + 1 + 0) / 5), "atoms": 5},
        "count": {"mean": pytest.approx((0.5 + 0 + 1 + 1) / 4), "atoms": 4},
        "colour": {"mean": pytest.approx((0.5 + 1 + 1) / 3), "atoms": 3},
        "size": {"mean": 1.0, "atoms": 1},
        "position": {"mean": 1.0, "atoms": 1},
        "relation": {"mean": 1.0, "atoms": 1},
    }
    assert found["all_atoms"] == {"mean": pytest.approx((2 + 5 + 2.75 + 2) / 15), "atoms": 15}
    first, third = 0.25 ** (1 / 3), 0.75 ** (1 / 3)
    assert found["captions"] == {
        "captions": 4,
        "arithmetic": pytest.approx((2 / 3 + 5 / 6 + 2.75 / 3 + 2 / 3) / 4),
        "geometric": pytest.approx((first + 0 + third + 0) / 4),
        "whole": pytest.approx((0 + 0 + 0.75 + 0) / 4),
    }
    assert found["by_number_of_atoms"] == {
        "3": {
            "captions": 3,
            "arithmetic": pytest.approx((2 / 3 + 2.75 / 3 + 2 / 3) / 3),
            "geometric": pytest.approx((first + third) / 3),
            "whole": pytest.approx(0.25),
        },
        "6": {"captions": 1, "arithmetic": pytest.approx(5 / 6), "geometric": 0.0, "whole": 0.0},
    }
    # as GenEval has it: pictures count once, then skills do
    assert found["skills"] == {
        "two_object": {"captions": 1, "images": 2, "right": 0.0},
        "colors": {"captions": 2, "images": 6, "right": pytest.approx(4 / 6)},
    }
    assert found["skills_mean"] == pytest.approx(1 / 3)
    json.dumps(found, allow_nan=False)


def test_captions_of_no_skill_have_no_skills():
    found = figures([_result(("object",), [[1]])])
    assert found["skills"] == {} and found["skills_mean"] is None
    assert set(found["atoms"]) == {"object"}


def test_numbers_of_atoms_are_in_their_order():
    results = [_result(["object"] * count, [[1] * count]) for count in (11, 3, 9)]
    assert list(figures(results)["by_number_of_atoms"]) == ["3", "9", "11"]


def test_images_of_one_caption():
    metadata = {"prompt": "a red circle", "scene": RED_CIRCLE.to_json(), "tag": "colors"}
    images = [picture(things(RED_CIRCLE)), picture([["circle", "blue", 0.5, 0.5]]), picture([])]
    result = judge_images(metadata, images)
    assert result.truths_NA.tolist() == [[True] * 3, [True, True, False], [False] * 3]
    assert (result.skill, result.right_N) == (None, None)  # a tag without rules is no skill of ours
    metadata["include"] = [{"class": "circle", "count": 1, "color": "red"}]
    assert judge_images(metadata, images).right_N.tolist() == [True, False, False]
    assert judge_images({**metadata, "tag": "spatial"}, images).skill is None
    with pytest.raises(ValueError, match="not a claim of the drawn data set"):
        judge_images({**metadata, "scene": {}}, images)


@pytest.fixture
def folder(tmp_path):
    """Two of each skill, the first pictures right, of the second captions others that are blank; and one that is not drawn."""
    for number, line in enumerate(skill_captions(2)):
        write_prompt(tmp_path / "images", number, line)
        right = picture(things(Claim.from_json(line["scene"])))
        for place, image in enumerate([right, np.full_like(right, 250)][: 1 + number % 2]):
            Image.fromarray(image).save(sample_path(tmp_path / "images", number, place))
    write_prompt(tmp_path / "images", 12, {"prompt": "a photo of a bench"})
    Image.new("RGB", (40, 40)).save(sample_path(tmp_path / "images", 12, 0))
    return tmp_path


def test_a_folder_and_its_section(folder):
    told = []
    results = judge(read_layout(folder / "images"), told.append)
    assert told == [1, 2] * 6
    assert [len(result.truths_NA) for result in results] == [1, 2] * 6
    assert [result.atoms for result in results] == [atoms(Claim.from_json(line["scene"])) for line in skill_captions(2)]
    section = compositional_section(results, folder / "page")
    assert section.figures == figures(results)
    assert section.figures["images"] == 18
    assert section.figures["captions"]["whole"] == pytest.approx(0.75)
    assert {of["right"] for of in section.figures["skills"].values()} == {2 / 3}
    page = section.html()
    assert "18 pictures of 12 captions" in page
    for text in ("colour attribution", "0.6667", "Missing: object", "Missing: relation", "mean of the skills"):
        assert text in page
    assert "Missing: size" not in page
    links = set(re.findall(r'src="([^"]+)"', page))
    assert links and all(link.startswith("../images/000") and link.endswith("0001.png") for link in links)
    assert all((folder / link.removeprefix("../")).is_file() for link in links)


def test_pictures_are_shown_for_what_they_lack(folder):
    section = compositional_section(judge(read_layout(folder / "images")), folder)
    line = skill_captions(2)[1]
    shape = line["scene"]["objects"][0]["shape"]
    assert f"{line['prompt']}; missing: a {shape}<" in section.body


def test_what_cannot_be_judged_is_refused(folder):
    entries = read_layout(folder / "images")
    with pytest.raises(ValueError, match="captions of the drawn data set"):
        judge(entries[12:])
    with pytest.raises(ValueError, match="captions of the drawn data set"):
        judge([])
    write_prompt(folder / "images", 3, {**skill_captions(2)[3], "include": [{"class": "bench", "count": 1}]})
    with pytest.raises(ValueError, match=r"prompt 3 in .*00003/samples: .*the classes circle"):
        judge(read_layout(folder / "images"))
    for place in range(2):
        Image.new("RGB", (16, 16)).save(sample_path(folder / "images", 1, place))
    with pytest.raises(ValueError, match=r"mixed sizes: .* has 32×32 px, .* has 16×16 px"):
        judge(read_layout(folder / "images"))
    with pytest.raises(ValueError, match=r"prompt 1 in .*at least 32 x 32"):
        judge(read_layout(folder / "images")[1:2])
