"""Embeddings on disk: each caption computed once, whoever asks and however often, and never taken for another encoder's."""

import hashlib
import multiprocessing
import os

import pytest
import torch

from dalle.models.text_encoders import EmbeddingCache, TextEncoder
from dalle.models.text_encoders import cache as cache_file
from dalle.models.weights import write_weights

WIDTH = 5


def _vector(caption: str, salt: str) -> list[float]:
    digest = hashlib.sha256((salt + caption).encode()).digest()
    return [byte / 7 for byte in digest[:WIDTH]]


def _encoder(salt: str = "a") -> tuple[TextEncoder, list[str]]:
    """An encoder, and the captions that it was given."""
    given: list[str] = []

    def read(captions):
        given.extend(dict.fromkeys(captions))  # it is filled up with the last
        return torch.tensor([_vector(caption, salt) for caption in captions])

    return TextEncoder(f"test:{salt}", WIDTH, salt * 64, torch.device("cpu"), read), given


def _expected(captions: list[str], salt: str = "a") -> torch.Tensor:
    return torch.tensor([_vector(caption, salt) for caption in captions])


def _captions(count: int) -> list[str]:
    return [f"caption {number} of {count}" for number in range(count)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(cache_file, "_CHUNK", 4)


def test_each_caption_is_computed_once(tmp_path):
    encoder, given = _encoder()
    cache = EmbeddingCache(tmp_path / "x.embeddings", encoder)
    asked = ["b", "a much longer one", "b", "c"]
    found_BE = cache.embed(asked)
    assert torch.equal(found_BE, _expected(asked)) and found_BE.dtype == torch.float32 and found_BE.is_contiguous()
    assert given == ["b", "a much longer one", "c"]
    assert torch.equal(cache.embed(["d", "b"]), _expected(["d", "b"])) and given[3:] == ["d"]
    assert len(cache) == 4 and not (tmp_path / "x.embeddings").exists()
    assert cache.embed([]).shape == (0, WIDTH)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 13])
def test_what_was_saved_is_not_computed_again(tmp_path, count):
    """Over whole chunks and parts of them, in several rounds."""
    path, captions = tmp_path / "deep" / "x.embeddings", _captions(count)
    for end in sorted({1, count // 2 + 1, count}):
        encoder, given = _encoder()
        cache = EmbeddingCache(path, encoder)
        known = len(cache)
        assert torch.equal(cache.embed(captions[:end]), _expected(captions[:end]))
        assert len(given) == end - known
        cache.save()
        assert len(cache) == end
        assert torch.equal(cache.embed(captions[:end][::-1]), _expected(captions[:end][::-1]))
        assert len(given) == end - known
    encoder, given = _encoder()
    again = EmbeddingCache(path, encoder)
    assert torch.equal(again.embed(captions), _expected(captions)) and not given and len(again) == count
    before = path.stat().st_mtime_ns
    again.save()  # nothing is new
    assert path.stat().st_mtime_ns == before


def test_two_that_save_keep_what_both_computed(tmp_path):
    path = tmp_path / "x.embeddings"
    (first, _), (second, _) = _encoder(), _encoder()
    one, two = EmbeddingCache(path, first), EmbeddingCache(path, second)
    one.embed(["a", "both"])
    two.embed(["b", "both"])
    one.save()
    two.save()
    encoder, given = _encoder()
    found = EmbeddingCache(path, encoder)
    assert torch.equal(found.embed(["a", "b", "both"]), _expected(["a", "b", "both"])) and not given
    assert len(found) == len(two) == 3
    # the first still reads the file that it has seen
    assert torch.equal(one.embed(["both", "a"]), _expected(["both", "a"]))
    assert [p.name for p in tmp_path.iterdir()] == ["x.embeddings"]


def test_processes_that_save_at_once_lose_nothing(tmp_path):
    path = tmp_path / "x.embeddings"

    def rounds(name: str) -> None:
        for number in range(15):
            cache = EmbeddingCache(path, _encoder()[0])
            cache.embed([f"{name} {number} {n}" for n in range(20)])
            cache.save()

    context = multiprocessing.get_context("fork")  # a new interpreter takes seconds
    processes = [context.Process(target=rounds, args=name) for name in "pqr"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    encoder, given = _encoder()
    cache = EmbeddingCache(path, encoder)
    cache.embed([f"{name} {number} {n}" for name in "pqr" for number in range(15) for n in range(20)])
    assert len(cache) == 900 and not given


def test_a_file_of_another_encoder_is_refused(tmp_path):
    path = tmp_path / "x.embeddings"
    cache = EmbeddingCache(path, _encoder()[0])
    cache.embed(["a"])
    cache.save()
    message = r"x\.embeddings holds embeddings of test:a \(aaaaaaaa…\), not of test:b \(bbbbbbbb…\): name another file"
    with pytest.raises(ValueError, match=message) as refused:
        EmbeddingCache(path, _encoder("b")[0])
    assert "\n" not in str(refused.value)
    # one that was put there meanwhile
    (tmp_path / "y").mkdir()
    other = EmbeddingCache(tmp_path / "y" / "x.embeddings", _encoder("b")[0])
    other.embed(["a"])
    path.rename(tmp_path / "y" / "x.embeddings")
    with pytest.raises(ValueError, match="holds embeddings of test:a"):
        other.save()


def test_a_damaged_file_is_refused_by_name(tmp_path):
    path = tmp_path / "x.embeddings"
    cache = EmbeddingCache(path, _encoder()[0])
    cache.embed(_captions(9))
    cache.save()
    whole = path.read_bytes()
    for number, damage in enumerate(
        (
            whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],  # the last chunk
            whole[: -9 * 4 * WIDTH - 4] + bytes([whole[-9 * 4 * WIDTH - 4] ^ 1]) + whole[-9 * 4 * WIDTH - 3 :],  # a key
            whole[:-8],
            whole[:4],
            b"",
            whole.replace(b"test:a", b"test:c"),
        )
    ):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"x\.embeddings") as refused:
            EmbeddingCache(path, _encoder()[0])
        assert "\n" not in str(refused.value), number
    path.write_bytes(whole)
    encoder = _encoder()[0]
    wider = TextEncoder(encoder.name, WIDTH + 1, encoder.hash, encoder.device, None)  # whose rows these cannot be
    with pytest.raises(ValueError, match=r"x\.embeddings is damaged: remove it"):
        EmbeddingCache(path, wider)
    write_weights(path, {"weight": torch.ones(2)}, {"kind": "dvae"})
    with pytest.raises(ValueError, match=r"x\.embeddings is no file of embeddings"):
        EmbeddingCache(path, _encoder()[0])


def test_a_file_that_cannot_be_written_is_left_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "x.embeddings"
    cache = EmbeddingCache(path, _encoder()[0])
    cache.embed(["a"])
    cache.save()
    whole = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache.embed(["b"])
    with pytest.raises(OSError, match="No space left"):
        cache.save()
    assert path.read_bytes() == whole and [p.name for p in tmp_path.iterdir()] == ["x.embeddings"]
    monkeypatch.undo()
    cache.save()
    assert len(EmbeddingCache(path, _encoder()[0])) == 2
