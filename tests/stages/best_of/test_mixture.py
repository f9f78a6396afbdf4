"""Real pairs and kept candidates in one batch: the right share, the same for any number of processes, and each folder's
pairs as they would come alone."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from dalle.data.tokens import Meta, TokenBatches, TokenLoader, TokenShards, TokenWriter
from dalle.stages.best_of.mixture import Mixture
from dalle.text import Tokenizer

TOKENIZER = Tokenizer.train(["caption real kept"], vocabulary=270)


def _folder(folder, name: str, count: int, first_code: int) -> TokenShards:
    with TokenWriter(folder, Meta(grid=2, codebook_size=1000, dvae_hash="abc"), pairs_per_shard=7) as writer:
        for i in range(count):
            writer.add(np.full(4, first_code + i), [f"{name} {i}", f"{name} caption {i}"])
        writer.close()
    return TokenShards(folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> TokenShards:
    return _folder(tmp_path_factory.mktemp("real"), "real", 40, 0)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> TokenShards:
    return _folder(tmp_path_factory.mktemp("kept"), "kept", 9, 500)


def _batches(shards, size, rank=0, world_size=1, **dropouts):
    return TokenBatches(shards, TOKENIZER, 15, size, seed=3, **dropouts, rank=rank, world_size=world_size)


def _codes(shards, count: int) -> list[int]:
    """The first code of each of the first pairs."""
    return _batches(shards, count)[0]["codes_BI"][:, 0].tolist()


@pytest.mark.parametrize("share", [0.5, 0.25, 0.3, 1 / 3, 0.9, 1.0])
def test_of_the_first_n_pairs_the_share_is_kept_ones_for_every_n(real, kept, share):
    codes = _codes(Mixture(real, kept, share), 400)
    counts = list(itertools.accumulate(code >= 500 for code in codes))
    exact = Fraction(share).limit_denominator(1000)
    assert counts == [n * exact.numerator // exact.denominator for n in range(1, 401)]


def test_each_folder_comes_in_its_own_order_over_several_epochs(real, kept):
    codes = _codes(Mixture(real, kept, 0.4), 300)
    # 0.4 · 300 pairs of 9 are thirteen epochs, 180 of 40 four and a half
    assert [code for code in codes if code >= 500] == _codes(kept, 120)
    assert [code for code in codes if code < 500] == _codes(real, 180)


def test_real_pairs_are_read_with_the_dropouts_that_they_have_without_the_mixture(real, kept):
    dropouts = {"bpe_dropout": 0.3, "caption_dropout": 0.3}
    mixed, alone = (_batches(s, n, **dropouts)[0] for s, n in ((Mixture(real, kept, 0.5), 80), (real, 40)))
    is_real = mixed["codes_BI"][:, 0] < 500
    assert torch.equal(mixed["text_BU"][is_real], alone["text_BU"])
    assert torch.equal(mixed["codes_BI"][is_real], alone["codes_BI"])
    # and kept ones of the same shards and rows not with the same random numbers
    of_kept = _batches(kept, 40, **dropouts)[0]
    assert not torch.equal(mixed["text_BU"][~is_real], of_kept["text_BU"])


def test_the_global_batch_is_the_same_for_any_number_of_ranks_and_after_a_resume(real, kept):
    mixture = Mixture(real, kept, 0.3)
    whole = _batches(mixture, 12, bpe_dropout=0.2)
    for rank, number in itertools.product(range(3), (0, 1, 5)):
        part = _batches(mixture, 4, rank, 3, bpe_dropout=0.2)[number]
        for name in ("text_BU", "codes_BI"):
            assert torch.equal(whole[number][name][4 * rank : 4 * rank + 4], part[name])
    loader = TokenLoader(_batches(mixture, 4))
    loader.load_state_dict({"pairs_taken": 24})
    assert torch.equal(next(iter(loader))["codes_BI"], whole[2]["codes_BI"][:4])


def test_it_names_the_files_of_both(real, kept):
    mixture = Mixture(real, kept, 0.5)
    assert mixture.paths() == real.paths() + kept.paths()
    assert len(mixture) == 49


def test_a_share_of_next_to_nothing_is_the_training_without_it(real, kept):
    """The first kept pair is number 99,999: what stands before it is what the data alone are, to the bit."""
    dropouts = {"bpe_dropout": 0.2, "caption_dropout": 0.2}
    mixed, alone = (_batches(s, 50, **dropouts) for s in (Mixture(real, kept, 1e-5), real))
    for number in range(3):
        assert all(torch.equal(mixed[number][name], alone[number][name]) for name in ("text_BU", "codes_BI"))
    assert _batches(Mixture(real, kept, 1e-5), 1)[99_999]["codes_BI"][0, 0] >= 500
