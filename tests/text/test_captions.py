"""What is read of captions: cut in one place, counted, and what is lost or unknown told."""

import warnings

import pytest

from dalle.text import PAD, CaptionWarning, Cuts, Tokenizer, caption_tokens, pad

CAPTIONS = ["a small red circle", "a blue square above a red circle", "北京 red"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, vocabulary=300, min_count=1)


def test_pad_cuts_and_fills():
    assert pad([[1, 2, 3], [4]], 2).tolist() == [[1, 2], [4, PAD]]


def test_cuts_are_counted():
    cuts = Cuts(limit=23)
    assert str(cuts) == "0 of 0 captions (0%) were cut to the 23 tokens that are read"
    cuts.add([True, False, False])
    cuts.add(length > 3 for length in (3, 4, 5))
    assert (cuts.captions, cuts.cut) == (6, 3)
    assert str(cuts) == "3 of 6 captions (50%) were cut to the 23 tokens that are read"
    assert (
        str(Cuts(255, 12_345_678, 1_234))
        == "1,234 of 12,345,678 captions (0.01%) were cut to the 255 tokens that are read"
    )


def _said(tokenizer, captions, limit=20) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        caption_tokens(tokenizer, captions, limit)
    assert all(warning.category is CaptionWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def test_what_is_lost_is_shown_of_one_caption_and_counted_of_several(tokenizer):
    assert _said(tokenizer, ["a red circle"]) == _said(tokenizer, ["a red circle"], 5) == []
    assert _said(tokenizer, ["a red circle"], 4) == ["the caption has 5 tokens, 4 are read; cut off: 'circle'"]
    (line,) = _said(tokenizer, ["a red", "a red circle", "a blue square above a"], 4)
    assert line == ("2 of 3 captions (66.7%) were cut to the 4 tokens that are read; the first of them loses 'circle'")
    assert caption_tokens(tokenizer, ["a red"], 6).tolist() == [[*tokenizer.encode("a red"), PAD, PAD, PAD]]


def test_of_a_caption_without_end_the_beginning_is_told(tokenizer):
    (line,) = _said(tokenizer, [1_000_000 * "x"], 2_000_000)
    assert line == f"'{200 * 'x'}…' was in no training caption"
    (line,) = _said(tokenizer, ["a red" + 1000 * " circle"], 4)
    assert line.startswith("the caption has ") and line.endswith("circ…'") and len(line) < 300
    with pytest.raises(ValueError, match="is no text") as raised:
        caption_tokens(tokenizer, ["a \ud83d cat" * 1000], 4)
    assert len(str(raised.value)) < 500


def test_words_of_no_training_caption_are_named(tokenizer):
    assert _said(tokenizer, ["An Orange RED circle"]) == ["'an' and 'orange' were in no training caption"]
    assert _said(tokenizer, ["a red circle", "an orange", "a zebra, 12 orange"], 99) == [
        "'an', 'orange' and 'zebra' were in no training caption"
    ]
    assert _said(tokenizer, ["orange, red"]) == ["'orange' was in no training caption"]


@pytest.mark.parametrize("caption", ["caf\udce9", "a \ud83d cat"])
def test_what_is_typed_and_no_text_is_refused(tokenizer, caption):
    with pytest.raises(ValueError, match=r"is no text: .* encoding") as raised:
        caption_tokens(tokenizer, [caption], 20)
    str(raised.value).encode()  # can be shown
    with pytest.raises(ValueError, match="the caption is empty"):
        caption_tokens(tokenizer, ["a", " "], 20)
