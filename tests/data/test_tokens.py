"""Token shards: round trip, a complete and reproducible order, one global batch for any number of ranks."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from dalle.data.counts import Broken, Counts
from dalle.data.tokens import Meta, TokenBatches, TokenLoader, TokenShards, TokenWriter
from dalle.text import PAD, Tokenizer, pad


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> TokenShards:
    folder = tmp_path_factory.mktemp("tokens")
    writer = TokenWriter(folder, Meta(grid=2, codebook_size=1000, dvae_hash="abc"), pairs_per_shard=7)
    for i in range(40):
        writer.add(np.arange(4) + 20 * i, [f"caption {i}", f"ünïcode {i}"])
    writer.close()
    return TokenShards(folder)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["caption unicode"], vocabulary=270)


def test_round_trip(shards):
    assert shards.meta == Meta(2, 1000, "abc", (7, 7, 7, 7, 7, 5))
    assert len(shards) == 40
    codes, captions = shards.pair(3, 2)
    assert codes.tolist() == [460, 461, 462, 463]
    assert captions == ["caption 23", "ünïcode 23"]


def test_an_epoch_shows_every_pair_once_in_an_order_of_its_own(shards):
    epochs = [[shards.place(number, seed=5) for number in range(40 * e, 40 * e + 40)] for e in range(2)]
    for epoch, places in enumerate(epochs):
        assert {place[0] for place in places} == {epoch}
        assert {place[1:] for place in places} == {
            (s, r) for s, n in enumerate(shards.meta.shard_sizes) for r in range(n)
        }
    assert [p[1:] for p in epochs[0]] != [p[1:] for p in epochs[1]]


def test_groups_of_shards_cover_everything(shards, monkeypatch):
    monkeypatch.setattr("dalle.data.tokens._SHARDS_TOGETHER", 2)
    fresh = TokenShards(shards.folder)
    places = [fresh.place(number, seed=1)[1:] for number in range(40)]
    assert len(set(places)) == 40
    assert len({shard for shard, _ in places[:12]}) == 2, "the first pairs come from two shards"


def _batches(shards, tokenizer, size, rank=0, world_size=1):
    dropouts = {"bpe_dropout": 0.2, "caption_dropout": 0.3}
    return TokenBatches(shards, tokenizer, 15, size, seed=3, **dropouts, rank=rank, world_size=world_size)


def test_the_global_batch_is_the_same_for_any_number_of_ranks(shards, tokenizer):
    whole = _batches(shards, tokenizer, 12)
    parts = [_batches(shards, tokenizer, 4, rank, 3) for rank in range(3)]
    for number in (0, 1, 5):
        for name in ("text_BU", "codes_BI"):
            joined = np.concatenate([part[number][name] for part in parts])
            assert np.array_equal(whole[number][name], joined)


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_resumes_also_with_another_batch_size(shards, tokenizer, workers):
    first = TokenLoader(_batches(shards, tokenizer, 8), workers)
    stream = iter(first)
    seen = [next(stream) for _ in range(5)]
    resumed = TokenLoader(_batches(shards, tokenizer, 4), workers)
    resumed.load_state_dict(first.state_dict())
    later = iter(resumed)
    following = next(stream)
    halves = [next(later) for _ in range(2)]
    for name in ("text_BU", "codes_BI"):
        assert np.array_equal(following[name], np.concatenate([half[name] for half in halves]))
    assert not np.array_equal(seen[0]["codes_BI"], following["codes_BI"])


def _whole(shards, tokenizer, caption_dropout):
    """A batch of 2,000: 50 epochs of the 40 pairs."""
    batch = TokenBatches(shards, tokenizer, 15, 2000, 3, bpe_dropout=0.2, caption_dropout=caption_dropout)[0]
    return {name: tensor.numpy() for name, tensor in batch.items()}


def test_without_caption_dropout_captions_are_what_they_were(shards, tokenizer):
    """Spelled out: what drew a batch's tokens before there was caption dropout."""
    texts = []
    for place in range(2000):
        epoch, shard, row = shards.place(place, 3)
        captions = shards.pair(shard, row)[1]
        generator = np.random.default_rng([3, epoch, shard, row])
        caption = captions[generator.integers(len(captions))]
        texts.append(tokenizer.encode_with_dropout(caption, 0.2, generator))
    assert np.array_equal(_whole(shards, tokenizer, 0.0)["text_BU"], pad(texts, 15))


def test_caption_dropout_takes_whole_captions_at_its_rate_and_leaves_the_rest(shards, tokenizer):
    before, after = (_whole(shards, tokenizer, rate) for rate in (0.0, 0.3))
    assert np.array_equal(before["codes_BI"], after["codes_BI"])
    dropped_B = (after["text_BU"] == PAD).all(axis=1)
    assert np.array_equal(before["text_BU"][~dropped_B], after["text_BU"][~dropped_B])
    # 600 with a standard deviation of 20.5: a right rate is farther off than this once in 16,000 seeds
    assert abs(dropped_B.sum() - 600) < 82
    # each pair has 50 epochs: dropping the same ones in all of them would make these 0 or 50. 15 ± 3.2
    per_pair = np.bincount(after["codes_BI"][dropped_B, 0] // 20, minlength=40)
    assert 1 < per_pair.min() <= per_pair.max() < 32
    more = (_whole(shards, tokenizer, 0.6)["text_BU"] == PAD).all(axis=1)
    assert (more | ~dropped_B).all(), "a higher rate drops these as well"


def test_captions_that_are_cut_are_counted(shards, tokenizer):
    """Also those that are dropped: what is told is a property of the data. By the loader, not in what is trained on."""
    dropouts = {"bpe_dropout": 0.2, "caption_dropout": 0.5}
    batches = TokenBatches(shards, tokenizer, 9, 500, seed=3, **dropouts)
    whole = TokenBatches(shards, tokenizer, 99, 500, seed=3, bpe_dropout=0.2)
    expected = [((batch["text_BU"] != PAD).sum(axis=1) > 9).sum().item() for batch in (whole[0], whole[1])]
    assert 50 < expected[0] < 450
    loader = TokenLoader(batches)
    for number, batch in zip(range(2), loader, strict=False):
        assert batch.keys() == {"text_BU", "codes_BI"}
        assert (loader.cuts.captions, loader.cuts.cut) == (500 * (number + 1), sum(expected[: number + 1]))
    assert loader.cuts.limit == 9


def test_batches_can_be_sent_to_a_spawned_worker(shards, tokenizer):
    batches = _batches(shards, tokenizer, 8)
    sent = pickle.loads(pickle.dumps(batches))
    assert all(np.array_equal(sent[3][name], batches[3][name]) for name in ("text_BU", "codes_BI"))


def test_what_fails_midway_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), TokenWriter(tmp_path / "tokens", Meta(2, 10, "x"), 1) as writer:
        writer.add(np.arange(4), ["a"])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_became_of_the_samples_is_kept(tmp_path):
    counts = Counts()
    counts.add({"__key__": "a", "__url__": "x.tar"}, Broken("no image"))
    with TokenWriter(tmp_path / "tokens", Meta(2, 10, "x"), 1) as writer:
        writer.add(np.arange(4), ["a"])
        assert writer.close(counts).counts == counts
    assert TokenShards(tmp_path / "tokens").meta.counts == counts


def test_one_process_looks_for_the_shards_and_the_others_find_out_when_they_open_them(shards, tmp_path, monkeypatch):
    """With 1,024 processes and 15,000 shards, looking would be 15 million calls."""
    folder = tmp_path / "tokens"
    shutil.copytree(shards.folder, folder)
    (folder / "tokens-00001.safetensors").unlink()
    (folder / "tokens-00002.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"tokens-00001\.safetensors is missing"):
        TokenShards(folder)
    asked = []
    monkeypatch.setattr(Path, "is_file", lambda path, ask=Path.is_file: asked.append(path.name) or ask(path))
    other = pickle.loads(pickle.dumps(TokenShards(folder, look=False)))
    assert asked == ["meta.json"] * 2
    assert other.pair(0, 0)[1] == shards.pair(0, 0)[1]
    for shard, message in ((1, "is missing"), (2, "cannot be read")):
        with pytest.raises(ValueError, match=rf"token shard .*tokens-0000{shard}\.safetensors {message}"):
            other.pair(shard, 0)


def test_an_incomplete_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no token shards"):
        TokenShards(tmp_path)
    writer = TokenWriter(tmp_path, Meta(2, 10, "x"), 7)
    with pytest.raises(ValueError, match="no pair"):
        writer.close()
