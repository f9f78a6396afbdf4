"""Counts of words: kept beside the tokenizer, bounded, and asked in the languages that set words apart and in those that do not."""

import json
from collections import Counter

import pytest

from dalle.text import Tokenizer
from dalle.text import words as module
from dalle.text.words import WordCounts, words

CAPTIONS = ["A red circle, red!", "a Circle", "Ünïcode हिन्दी"]


def test_words_are_runs_of_letters_and_characters_of_scripts_without_spaces():
    assert words("A Red12circle's, don't") == ["a", "red", "circle", "s", "don", "t"]
    assert words("हिन्दी 한국어 ÜBER") == ["हिन्दी", "한국어", "über"]
    assert words("红色abc鸟") == ["红", "色", "abc", "鸟"]
    assert words("\ud83d red 👍 12") == ["red"]
    assert words("cafe\u0301") == words("caf\xe9")


def test_counts_are_kept_beside_the_tokenizer(tmp_path):
    tokenizer = Tokenizer.train(CAPTIONS, vocabulary=270)
    assert tokenizer.words.counts == {"a": 2, "circle": 2, "red": 2, "ünïcode": 1, "हिन्दी": 1}
    assert tokenizer.words.fewer_than == 1
    tokenizer.save(tmp_path / "some.name.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.name.json", "some.name.words.json"]
    assert Tokenizer.load(tmp_path / "some.name.json").words == tokenizer.words
    assert tokenizer.files().keys() == {"tokenizer.json", "tokenizer.words.json"}


def test_counts_of_another_tokenizer_are_not_asked_and_damaged_ones_refused(tmp_path):
    path, counts = tmp_path / "tokenizer.json", tmp_path / "tokenizer.words.json"
    Tokenizer.train(CAPTIONS, vocabulary=270).save(path)
    written = json.loads(counts.read_text())
    Tokenizer.train(CAPTIONS, vocabulary=260).save(path)
    assert Tokenizer.load(path).words is not None
    counts.write_text(json.dumps(written))
    assert Tokenizer.load(path).words is None
    ours = written | {"tokenizer_hash": Tokenizer.load(path).hash}
    for damaged in (b"{", b"\xff", b"[]", b"{}", {"counts": [1]}, {"fewer_than": None}, {"counts": None}):
        data = damaged if isinstance(damaged, bytes) else json.dumps(ours | damaged).encode()
        counts.write_bytes(data)
        with pytest.raises(ValueError, match=r"tokenizer\.words\.json does not hold counts of words .*: remove it"):
            Tokenizer.load(path)


def test_the_rarest_words_are_left_out_of_very_many(monkeypatch):
    monkeypatch.setattr(module, "_MOST_WORDS", 3)
    found = WordCounts.of(Counter({"a": 9, "rare": 2, "b": 5, "often": 2, "c": 7, "once": 1}))
    assert found.counts == {"a": 9, "c": 7, "b": 5}
    assert found.unknown(["a rare b"]) == "'rare' was in fewer than 3 training captions"
    assert WordCounts.of(Counter("aab")).fewer_than == 1


def test_few_of_many_unknown_words_are_named():
    told = WordCounts({"a": 1}).unknown([f"a {'x' * n}" for n in range(1, 13)])
    assert told.startswith("'x', 'xx', ") and told.endswith("'xxxxxxxx' and 4 more were in no training caption")
