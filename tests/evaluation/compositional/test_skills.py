"""The six skills: captions that a model of the drawn data set can read, and what decides of each."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from dalle.cli.data.draw_shapes import draw_shapes
from dalle.config import DrawShapes
from dalle.data.shapes import COLOURS, SHAPES, Claim, Reading, captions, read, sample_scene, shows
from dalle.data.shapes.check import stands
from dalle.evaluation.compositional.skills import SKILLS, is_right, skill_captions
from dalle.sampling.captioning import read_prompts_file
from tests.evaluation.compositional.scenes import picture, random_seen, things


@pytest.fixture(scope="module")
def lines():
    return skill_captions()


def test_there_are_enough_of_each_and_all_differ(lines):
    assert Counter(line["tag"] for line in lines) == dict.fromkeys(SKILLS, 50)
    assert list(dict.fromkeys(line["tag"] for line in lines)) == list(SKILLS)
    assert len({line["prompt"] for line in lines}) == 300
    assert lines == skill_captions(50, 0)
    assert lines != skill_captions(50, 1)
    assert len(skill_captions(100)) == 600
    for wrong in (0, 101):
        with pytest.raises(ValueError, match=f"skill_captions {wrong}: must be from 1 to 100"):
            skill_captions(wrong)


def test_a_caption_has_words_and_length_of_the_training_captions(lines):
    rng = np.random.default_rng(0)
    met = {text for _ in range(1200) for text in captions(sample_scene(rng), rng)}
    words = {word for text in met for word in text.split()}
    for line in lines:
        assert set(line["prompt"].split()) <= words, line["prompt"]
        assert len(line["prompt"].split()) <= max(len(text.split()) for text in met)


def test_a_line_says_what_its_caption_does(lines):
    counts = Counter()
    for line in lines:
        claim = Claim.from_json(line["scene"])
        words = line["prompt"].replace(",", " ").replace(":", " ").split()
        assert sorted(w for w in words if w in SHAPES) == sorted(o.shape for o in claim.objects)
        assert sorted(w for w in words if w in COLOURS) == sorted(o.colour for o in claim.objects)
        assert {o.size for o in claim.objects} == {None} and claim.position is None
        shapes, colours = [o.shape for o in claim.objects], [o.colour for o in claim.objects]
        include = line["include"]
        assert set(line) == {"tag", "include", "prompt", "scene"} | (
            {"exclude"} if line["tag"] == "counting" else set()
        )
        if line["tag"] == "counting":
            assert len(set(shapes)) == 1 and len(set(colours)) == len(colours)
            assert include == [{"class": shapes[0], "count": len(shapes)}]
            assert line["exclude"] == [{"class": shapes[0], "count": len(shapes) + 1}]
            counts[len(shapes)] += 1
            continue
        assert [item["class"] for item in include] == shapes and {item["count"] for item in include} == {1}
        assert len(shapes) == (1 if line["tag"] in ("single_object", "colors") else 2) == len(set(shapes))
        coloured = line["tag"] in ("colors", "color_attr")
        assert [item.get("color") for item in include] == (colours if coloured else [None] * len(shapes))
        if line["tag"] == "color_attr":
            assert len(set(colours)) == 2
        related = {"left of": "right of", "above": "below"}
        expected = [related[claim.arrangement], 0] if line["tag"] == "position" else None
        assert "position" not in include[0] and include[-1].get("position") == expected
    assert counts == {2: 25, 3: 25}
    for skill in ("two_object", "position", "color_attr"):
        assert {line["scene"]["arrangement"] for line in lines if line["tag"] == skill} == {"left of", "above"}


def test_a_drawing_of_a_caption_is_right_by_its_skill(lines):
    for line in lines[::2]:
        claim = Claim.from_json(line["scene"])
        image = picture(things(claim))
        assert shows(image, claim) and is_right(read(image), line), line["prompt"]
        assert not is_right(read(picture([])), line)


RED_CIRCLE, BLUE_SQUARE, GREEN_CROSS = ["circle", "red"], ["square", "blue"], ["cross", "green"]
LEFT, RIGHT, TOP, BOTTOM, MIDDLE = (0.25, 0.5), (0.75, 0.5), (0.5, 0.25), (0.5, 0.75), (0.5, 0.5)
SINGLE = {"include": [{"class": "circle", "count": 1}]}
TWO = {"include": [{"class": "circle", "count": 1}, {"class": "square", "count": 1}]}
COUNT = {"include": [{"class": "circle", "count": 2}], "exclude": [{"class": "circle", "count": 3}]}
COLOUR = {"include": [{"class": "circle", "count": 1, "color": "red"}]}
BELOW = {"include": [{"class": "circle", "count": 1}, {"class": "square", "count": 1, "position": ["below", 0]}]}
RIGHT_OF = {"include": [{"class": "circle", "count": 1}, {"class": "square", "count": 1, "position": ["right of", 0]}]}
ATTRIBUTION = {
    "include": [{"class": "circle", "count": 1, "color": "red"}, {"class": "square", "count": 1, "color": "blue"}]
}


@pytest.mark.parametrize(
    ("rules", "drawn", "right"),
    [
        (SINGLE, [[*RED_CIRCLE, *MIDDLE]], True),
        (SINGLE, [["circle", "blue", *MIDDLE]], True),  # the colour is not asked for
        (SINGLE, [[*RED_CIRCLE, *LEFT], [*BLUE_SQUARE, *RIGHT]], True),  # nor is it to be alone
        (SINGLE, [["cross", "red", *MIDDLE]], False),
        (TWO, [[*RED_CIRCLE, *LEFT], [*BLUE_SQUARE, *RIGHT]], True),
        (TWO, [["square", "green", *LEFT], ["circle", "black", *RIGHT]], True),  # neither colours nor places
        (TWO, [[*RED_CIRCLE, *LEFT], ["circle", "blue", *RIGHT]], False),
        (TWO, [[*RED_CIRCLE, *LEFT]], False),
        (COUNT, [[*RED_CIRCLE, *LEFT], ["circle", "blue", *RIGHT]], True),
        (COUNT, [["circle", "green", *TOP], ["circle", "green", *BOTTOM]], True),
        (COUNT, [[*RED_CIRCLE, *LEFT]], False),
        (
            COUNT,
            [["circle", "red", 0.5, 0.2], ["circle", "blue", *LEFT[:1], 0.75], ["circle", "black", 0.75, 0.75]],
            False,
        ),
        (COUNT, [[*RED_CIRCLE, *LEFT], [*BLUE_SQUARE, *RIGHT]], False),
        # another shape beside the two is not one too many
        (
            COUNT,
            [["circle", "red", 0.5, 0.2], ["circle", "blue", *LEFT[:1], 0.75], ["cross", "black", 0.75, 0.75]],
            True,
        ),
        (COLOUR, [[*RED_CIRCLE, *MIDDLE]], True),
        (COLOUR, [["circle", "blue", *MIDDLE]], False),
        (COLOUR, [["square", "red", *MIDDLE]], False),
        (COLOUR, [["square", "red", *LEFT], ["circle", "blue", *RIGHT]], False),  # red is there, on another shape
        (BELOW, [[*RED_CIRCLE, *TOP], [*BLUE_SQUARE, *BOTTOM]], True),
        (BELOW, [["circle", "black", *TOP], ["square", "green", *BOTTOM]], True),
        (BELOW, [[*BLUE_SQUARE, *TOP], [*RED_CIRCLE, *BOTTOM]], False),
        (BELOW, [[*RED_CIRCLE, *LEFT], [*BLUE_SQUARE, *RIGHT]], False),
        (RIGHT_OF, [[*RED_CIRCLE, *LEFT], [*BLUE_SQUARE, *RIGHT]], True),
        (RIGHT_OF, [[*BLUE_SQUARE, *LEFT], [*RED_CIRCLE, *RIGHT]], False),
        # of two circles either may be the one that is meant
        (BELOW, [["circle", "red", 0.25, 0.75], ["circle", "blue", 0.75, 0.2], ["square", "green", 0.75, 0.75]], True),
        (ATTRIBUTION, [[*RED_CIRCLE, *LEFT], [*BLUE_SQUARE, *RIGHT]], True),
        (ATTRIBUTION, [[*BLUE_SQUARE, *TOP], [*RED_CIRCLE, *BOTTOM]], True),
        (ATTRIBUTION, [["circle", "blue", *LEFT], ["square", "red", *RIGHT]], False),
        (ATTRIBUTION, [[*RED_CIRCLE, *LEFT], ["square", "red", *RIGHT]], False),
    ],
)
def test_what_decides(rules, drawn, right):
    assert is_right(read(picture(drawn)), rules) is right


def _plain(seen, include, exclude):
    """Every choice of objects for two single things at most, written out."""
    relations = {
        "left of": lambda a, b: stands(a, "left of", b),
        "above": lambda a, b: stands(a, "above", b),
        "right of": lambda a, b: stands(b, "left of", a),
        "below": lambda a, b: stands(b, "above", a),
    }
    found = False
    for numbers in product(range(len(seen)), repeat=len(include)):
        if len(set(numbers)) < len(numbers):
            continue
        fits = True
        for number, item in zip(numbers, include, strict=True):
            fits = fits and seen[number].shape == item["class"]
            if "color" in item:
                fits = fits and seen[number].colour == item["color"]
            if "position" in item:
                relation, target = item["position"]
                fits = fits and relations[relation](seen[number], seen[numbers[target]])
        found = found or fits
    for item in exclude:
        if len([thing for thing in seen if thing.shape == item["class"]]) >= item["count"]:
            found = False
    return found


def test_any_choice_of_objects_will_do():
    rng, verdicts = np.random.default_rng(0), Counter()
    for _ in range(3000):
        include = []
        for number in range(int(rng.integers(1, 4))):
            item = {"class": str(rng.choice(["circle", "square"])), "count": 1}
            if rng.random() < 0.5:
                item["color"] = str(rng.choice(["red", "blue"]))
            if number and rng.random() < 0.5:
                relation = str(rng.choice(["left of", "right of", "above", "below"]))
                item["position"] = [relation, int(rng.integers(number))]
            include.append(item)
        exclude = [{"class": "circle", "count": int(rng.integers(1, 4))}] if rng.random() < 0.3 else []
        seen = random_seen(rng, int(rng.integers(6)))
        verdict = is_right(Reading(seen), {"include": include, "exclude": exclude})
        assert verdict == _plain(seen, include, exclude)
        verdicts[verdict] += 1
    assert min(verdicts.values()) > 300
    pairs = [{"class": "circle", "count": 2, "color": "red"}]
    for _ in range(500):
        seen = random_seen(rng, 5)
        enough = sum((thing.shape, thing.colour) == ("circle", "red") for thing in seen) >= 2
        assert is_right(Reading(seen), {"include": pairs}) == enough


def test_a_group_is_related_as_a_whole():
    """Both circles have to be above the square."""
    rules = {"include": [{"class": "square", "count": 1}, {"class": "circle", "count": 2, "position": ["above", 0]}]}
    above, beside = ["circle", "red", 0.5, 0.2], ["square", "blue", 0.5, 0.75]
    assert not is_right(read(picture([above, beside, ["circle", "green", 0.1, 0.75, 0.25]])), rules)
    assert is_right(
        read(picture([["circle", "red", 0.3, 0.2, 0.3], ["circle", "green", 0.7, 0.2, 0.3], beside])), rules
    )


@pytest.mark.parametrize(
    "rules",
    [
        {"include": [{"class": "bench", "count": 1}]},
        {"include": [{"class": "circle", "count": 1, "color": "pink"}]},
        {"include": [{"class": "circle", "count": 0}]},
        {"include": [{"class": "circle"}]},
        {"include": [{"class": "circle", "count": 1, "position": ["above", 0]}]},
        {"include": [{"class": "circle", "count": 1}, {"class": "circle", "count": 1, "position": ["near", 0]}]},
        {"include": [{"class": "circle", "count": 1}], "exclude": [{"class": "bench", "count": 1}]},
        {"include": 5},
        {"include": [{"class": ["circle"], "count": 1}]},
        {"include": ["circle"]},
    ],
)
def test_rules_about_something_else_are_refused(rules):
    with pytest.raises(ValueError, match=r"the classes circle, square|no rules about drawn shapes"):
        is_right(read(picture([])), rules)


def test_the_command_writes_what_the_others_read(tmp_path, capsys, lines):
    path = tmp_path / "skills.jsonl"
    draw_shapes(["--skills", str(path)])
    assert f"300 captions for 6 skills: {path}" in capsys.readouterr().out
    assert read_prompts_file(path) == lines
    assert [file.name for file in tmp_path.iterdir()] == ["skills.jsonl"]
    with pytest.raises(ValueError, match=r"skills\.jsonl is there already"):
        draw_shapes(["--skills", str(path)])
    draw_shapes(["--skills", str(path), "--overwrite", "true", "--skill_captions", "2", "--seed", "3"])
    assert read_prompts_file(path) == skill_captions(2, 3)
    with pytest.raises(ValueError, match="output: is missing"):
        DrawShapes()
    with pytest.raises(ValueError, match=r"skills list\.txt: must end in \.jsonl"):
        draw_shapes(["--skills", "list.txt"])
