"""The BPE vocabulary: what may merge, lossless decoding, seeded dropout."""

import numpy as np
import pytest

from dalle.text import PAD, Tokenizer, pad

CAPTIONS = ["A small red circle, left of 12 blue squares!", "two red circles - above a blue square", "red red red"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, vocabulary=320)


@pytest.mark.parametrize("text", [*CAPTIONS[:3], "Café ÄÖÜ — 北京 👍 1,234.5", "don't  stop", "ﬁ"])
def test_decoding_gives_back_the_lower_cased_text(tokenizer, text):
    import unicodedata

    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text).lower()


def test_only_letters_merge(tokenizer):
    tokens = [tokenizer.decode([i]) for i in tokenizer.encode("red  12 squares!!")]
    assert tokens == ["red", " ", " ", "1", "2", " ", "squares", "!", "!"]
    for token in range(256, tokenizer.vocabulary):
        assert tokenizer.decode([token]).isalpha()


def test_dropout_is_seeded_lossless_and_off_at_zero(tokenizer):
    text = "two red circles above a blue square"
    draws = [tokenizer.encode_with_dropout(text, 0.3, np.random.default_rng(7)) for _ in range(2)]
    assert draws[0] == draws[1] != tokenizer.encode(text)
    assert tokenizer.decode(draws[0]) == text
    generator = np.random.default_rng(0)
    assert len({tuple(tokenizer.encode_with_dropout(text, 0.3, generator)) for _ in range(20)}) > 10
    assert tokenizer.encode_with_dropout(text, 0.0, generator) == tokenizer.encode(text)


def test_our_merging_without_dropped_merges_is_the_librarys(tokenizer):
    """A dropout too small to ever fire leaves the greedy order of merges, which the library computes on its own."""
    for text in (*CAPTIONS[:3], "squares circle ab 北京 redred"):
        assert tokenizer.encode_with_dropout(text, 1e-12, np.random.default_rng(0)) == tokenizer.encode(text)


def test_file_round_trip_and_hash(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.json")
    again = Tokenizer.load(tmp_path / "t.json")
    assert again.hash == tokenizer.hash
    assert again.encode(CAPTIONS[0]) == tokenizer.encode(CAPTIONS[0])
    assert Tokenizer.train(CAPTIONS[:1], vocabulary=300).hash != tokenizer.hash


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such tokenizer file"):
        Tokenizer.load(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer file"):
        Tokenizer.load(tmp_path / "bad.json")


def test_pad_cuts_and_fills():
    assert pad([[1, 2, 3], [4]], 2).tolist() == [[1, 2], [4, PAD]]
