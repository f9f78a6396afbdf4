"""The BPE vocabulary: what may merge, lossless decoding, seeded dropout, and files of other makers."""

import hashlib
import json
import os
import pickle

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from dalle.text import Tokenizer
from dalle.text import tokenizer as module

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


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="the file that cannot be read is Linux's")
def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "t.json").symlink_to("/proc/self/mem")  # its first byte is an I/O error, whoever reads it
    with pytest.raises(ValueError, match=r"t\.json is not a tokenizer file: .*Input/output error; train one with"):
        Tokenizer.load(tmp_path / "t.json")


def foreign(captions=CAPTIONS, **model) -> tokenizers.Tokenizer:
    """As GPT-2's: bytes, no lower case, spaces that merge with words."""
    backend = tokenizers.Tokenizer(models.BPE(**model))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    backend.train_from_iterator(
        captions,
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    return backend


def _saved(backend: tokenizers.Tokenizer, path, **changes) -> Tokenizer:
    content = json.loads(backend.to_str())
    for name, value in changes.items():
        place = content["model"] if name in content["model"] else content
        place[name] = value
    path.write_text(json.dumps(content))
    return Tokenizer.load(path)


TEXTS = [*CAPTIONS[:3], "Café ÄÖÜ — 北京 👍 1,234.5", "a <|endoftext|> b", "  two  spaces ", "", "é́́", "word" * 40]


@pytest.mark.parametrize("own", [True, False])
def test_what_a_file_says_of_its_use_changes_nothing(tokenizer, tmp_path, own):
    """Dropout, special tokens around and in the text: training reads as sampling does, and both as
    without them."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.files()["tokenizer.json"]) if own else foreign()
    plain = _saved(backend, tmp_path / "plain.json")
    backend.add_special_tokens(["<|endoftext|>", "<start>"])
    backend.add_tokens(["red", "circle l"])
    start = backend.token_to_id("<start>")
    backend.post_processor = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", start)])
    backend.decoder = decoders.BPEDecoder()
    found = _saved(backend, tmp_path / "used.json", dropout=0.5)
    for text in TEXTS:
        assert found.encode(text) == plain.encode(text) == [i for i in plain.encode(text) if i < plain.vocabulary]
        for reader in (plain, found):
            # a dropout too small to ever fire: the way of training, with the result of sampling
            assert reader.encode_with_dropout(text, 1e-12, np.random.default_rng(0)) == reader.encode(text)
        assert found.decode(found.encode(text)) == plain.decode(plain.encode(text))
    assert len(found.encode(TEXTS[-1])) > 16 or own
    assert found.hash != plain.hash, "a prior that was trained with a file knows that very file"
    assert start < found.vocabulary, "no id is beyond the embeddings"


@pytest.mark.parametrize("setting", ["truncation", "padding"])
def test_a_file_that_cuts_or_fills_captions_is_refused(tokenizer, tmp_path, setting):
    """In one line that says how to switch it off; then it is read."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.files()["tokenizer.json"])
    backend.enable_truncation(4) if setting == "truncation" else backend.enable_padding(length=16)
    with pytest.raises(ValueError, match=rf"it has {setting} switched on.*\.no_{setting}\(\)") as refusal:
        _saved(backend, tmp_path / "used.json")
    assert "\n" not in str(refusal.value)
    getattr(backend, f"no_{setting}")()
    assert _saved(backend, tmp_path / "mended.json").encode("a red circle") == tokenizer.encode("a red circle")


def test_a_foreign_file_keeps_its_own_spelling(tmp_path):
    found = _saved(foreign(), tmp_path / "t.json")
    assert found.decode(found.encode("A Red circle")).strip() == "A Red circle"
    assert found.encode("Red") != found.encode("red")


def _marked():
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<end>", end_of_word_suffix="</w>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=290, end_of_word_suffix="</w>", special_tokens=["<end>"], show_progress=False
    )
    backend.train_from_iterator(CAPTIONS, trainer)
    return backend


def _few_bytes():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.train_from_iterator(CAPTIONS, trainers.BpeTrainer(vocab_size=100, show_progress=False))
    return backend


def _letters():
    backend = tokenizers.Tokenizer(models.BPE(unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(), pre_tokenizers.Metaspace()])
    return backend


@pytest.mark.parametrize(
    ("backend", "changes", "message"),
    [
        (_marked, {}, r"mark of their place in the word \(end_of_word_suffix '</w>'\)"),
        (foreign, {"continuing_subword_prefix": "##"}, r"continuing_subword_prefix '##'"),
        (foreign, {"ignore_merges": True}, "ignore_merges"),
        (_letters, {}, "does not spell words in bytes"),
        (foreign, {"pre_tokenizer": None}, "does not spell words in bytes"),
        (_few_bytes, {}, r"of the 256 bytes are no tokens of it"),
        (
            lambda: tokenizers.Tokenizer(models.WordLevel({"a": 0}, "a")),
            {},
            "its model is WordLevel, and BPE is needed",
        ),
    ],
)
def test_a_vocabulary_that_would_be_read_in_two_ways_is_refused_in_one_line(tmp_path, backend, changes, message):
    backend = backend()
    if "continuing_subword_prefix" in changes:  # which its tokens would have to bear
        backend.model = models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    with pytest.raises(ValueError, match=message) as raised:
        _saved(backend, tmp_path / "t.json", **changes)
    assert str(raised.value).startswith(f"the tokenizer {tmp_path}/t.json: ")
    assert "\n" not in str(raised.value) and str(raised.value).endswith("train one with dalle-train-tokenizer")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ids, last: ids | {last: 0}, r"its \d+ tokens do not have the ids 0 to \d+, each once"),
        (lambda ids, last: ids | {last: 2**31}, r"its \d+ tokens do not have the ids 0 to \d+, each once"),
        (lambda ids, last: {token: ids[token] for token in ids if token != last}, "out of vocabulary"),
        (lambda ids, last: ids | {last: -1}, "it is not a tokenizer file, says its library"),
    ],
)
def test_a_file_whose_ids_are_not_those_of_its_tokens_is_refused(tokenizer, tmp_path, change, said):
    ids = json.loads(tokenizer.to_json())["model"]["vocab"]
    with pytest.raises(ValueError, match=said) as raised:
        _saved(tokenizers.Tokenizer.from_str(tokenizer.to_json()), tmp_path / "t.json", vocab=change(ids, [*ids][-1]))
    assert str(raised.value).startswith(f"the tokenizer {tmp_path}/t.json: ")
    assert "\n" not in str(raised.value) and str(raised.value).endswith("train one with dalle-train-tokenizer")


def test_a_key_that_is_there_twice_is_refused(tokenizer, tmp_path):
    (tmp_path / "t.json").write_text(tokenizer.to_json().replace('"merges"', '"vocab": {}, "merges"', 1))
    said = r"^\S+/t.json is not a tokenizer file: .* key 'vocab' is there twice; train one with dalle-train-tokenizer$"
    with pytest.raises(ValueError, match=said):
        Tokenizer.load(tmp_path / "t.json")


def test_a_panic_of_the_library_is_an_error_of_the_file(tokenizer, tmp_path, monkeypatch, capfd):
    """Those that are known are found first, as Rust prints the panics that are caught, too."""
    marked = json.loads(tokenizer.to_json())
    marked["model"]["continuing_subword_prefix"] = "nan"
    (tmp_path / "t.json").write_text(json.dumps(marked))
    with pytest.raises(ValueError, match="mark of their place in the word"):
        Tokenizer.load(tmp_path / "t.json")
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(module, "_marked", lambda model: None)
    with pytest.raises(
        ValueError, match=r"says its library \(range end index .*; train one with dalle-train-tokenizer$"
    ):
        Tokenizer.load(tmp_path / "t.json")


def test_who_ends_the_program_ends_it(tokenizer, tmp_path, monkeypatch):
    class Interrupted:
        def from_str(self):
            raise KeyboardInterrupt

    tokenizer.save(tmp_path / "t.json")
    monkeypatch.setattr(tokenizers, "Tokenizer", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.load(tmp_path / "t.json")


def test_half_a_character_becomes_the_replacement_character(tokenizer):
    """No tokenizer, file or terminal takes a lone surrogate, which JSON may hold."""
    for broken, whole in (("a \ud83d cat", "a \ufffd cat"), ("x\udce9", "x\ufffd"), ("\ud83d\ude00", "\U0001f600")):
        assert tokenizer.decode(tokenizer.encode(broken)) == whole
        dropped = tokenizer.encode_with_dropout(broken, 0.5, np.random.default_rng(0))
        assert tokenizer.decode(dropped) == whole
    assert (
        Tokenizer.train(["red \ud83d red"] * 5, vocabulary=260).hash
        == Tokenizer.train(["red \ufffd red"] * 5, 260).hash
    )


def test_the_hash_is_that_of_the_vocabulary_alone(tokenizer, tmp_path):
    """Priors are linked by it: what it was before words were counted."""
    tokenizer.save(tmp_path / "t.json")
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))  # the library reads our file
    assert tokenizer.hash == hashlib.sha256(backend.to_str().encode()).hexdigest()
    assert (tmp_path / "t.json").read_text() == backend.to_str(pretty=True)
    (tmp_path / "t.words.json").unlink()
    without = Tokenizer.load(tmp_path / "t.json")
    assert without.hash == tokenizer.hash and without.words is None
    assert without.files() == {"tokenizer.json": tokenizer.files()["tokenizer.json"]}


def test_a_tokenizer_can_be_sent_to_a_worker(tokenizer):
    sent = pickle.loads(pickle.dumps(tokenizer))
    assert sent.hash == tokenizer.hash and sent.words == tokenizer.words
    assert sent.encode(CAPTIONS[0]) == tokenizer.encode(CAPTIONS[0])
