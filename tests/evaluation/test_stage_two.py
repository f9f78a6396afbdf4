"""Held-out losses of a prior against plain cross-entropies of its full logits, image by image."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dalle.cli.data.tokenize import tokenize
from dalle.config import DVAEModel, PriorModel
from dalle.config import PriorObjective as PriorObjectiveConfig
from dalle.data.tokens import Meta, TokenShards, TokenWriter
from dalle.evaluation import stage_two
from dalle.evaluation.held_out_pairs import image_pairs, token_pairs
from dalle.evaluation.measures.moments import Moments
from dalle.evaluation.stage_two import held_out_loss, held_out_losses, section
from dalle.models.dvae import DVAE
from dalle.models.folder import load_prior, save_weights
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective
from dalle.text import PAD, Tokenizer, pad

CAPTIONS = ["a red circle", "a red circle above a blue square, and a green cross beside it", "!", "blue"]
GRID, CODES, PAIRS = 4, 11, 23
WEIGHT = 0.3


def _save_prior(folder, seed, dvae_hash, tokenizer, text_slots=16):
    torch.manual_seed(seed)
    sizes = PriorModel(
        text_slots=text_slots, grid=GRID, text_vocabulary=290, codebook_size=CODES, width=16, depth=3, heads=2, conv_kernel=3
    )  # fmt: skip
    prior = Prior(sizes)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_weights(folder, "prior", prior.state_dict(), sizes, {"dvae_hash": dvae_hash, "tokenizer_hash": tokenizer.hash})
    tokenizer.save(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dVAE, two priors of its codes and one of another's, and token shards of uneven sizes."""
    folder = tmp_path_factory.mktemp("stage_two")
    torch.manual_seed(0)
    sizes = DVAEModel(
        image_size_px=32, codebook_size=CODES, encoder_width=8, width_multipliers=(1, 2, 2, 2), blocks_per_group=1,
        decoder_input_width=8, init="he",
    )  # fmt: skip
    dvae = DVAE(sizes)
    # so that no code is the likeliest everywhere
    with torch.no_grad():
        pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        dvae.encoder.blocks.output.conv.bias -= dvae.logits(pixels).mean((0, 2, 3))
    dvae_hash = save_weights(folder / "dvae", "dvae", dvae.state_dict(), sizes, {})
    tokenizer = Tokenizer.train(CAPTIONS, vocabulary=290, min_count=1)
    _save_prior(folder / "prior", 1, dvae_hash, tokenizer)
    _save_prior(folder / "second", 2, dvae_hash, tokenizer)
    _save_prior(folder / "foreign", 3, "f" * 64, tokenizer)
    _save_tokens(folder / "tokens", PAIRS, dvae_hash)
    return folder


def _save_tokens(folder, count, dvae_hash, captions=CAPTIONS, precision="fp32", request=None):
    generator = np.random.default_rng(0)
    with TokenWriter(folder, Meta(GRID, CODES, dvae_hash, precision=precision), 10, request) as writer:
        for number in range(count):
            # the rows of the grid differ in how many codes they have, and so in their losses
            most = np.repeat([2, 4, 8, CODES], GRID)
            writer.add(generator.integers(0, most), [captions[number % len(captions)], "another caption"])
        writer.close()


def _reference(folder, name, pairs, precision="fp32"):
    """Nats of each caption token and each code, image by image, by PyTorch's own cross-entropy of the full logits."""
    tokenizer, prior = Tokenizer.load(folder / name / "tokenizer.json"), load_prior(folder / name, precision=precision)
    texts, images = [], []
    for codes_BI, captions in pairs.batches():
        for codes_I, caption in zip(codes_BI, captions, strict=True):
            ids = tokenizer.encode(caption)[: prior.config.caption_tokens]
            text_1U = torch.tensor([ids + [PAD] * (prior.config.caption_tokens - len(ids))])
            codes_1I = torch.from_numpy(codes_I)[None]
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                text_logits, image_logits = prior(text_1U, codes_1I)
            nats = F.cross_entropy(text_logits[0, : len(ids)], text_1U[0, : len(ids)], reduction="none")
            texts.append(nats.double().tolist())
            images.append(F.cross_entropy(image_logits[0], codes_1I[0], reduction="none").double().tolist())
    return texts, images


def test_losses_are_the_plain_cross_entropies(folder):
    pairs = token_pairs(folder / "tokens")
    found = held_out_loss(folder / "prior", pairs, batch_size=7, text_weight=WEIGHT, device="cpu")
    texts, images = _reference(folder, "prior", pairs)
    assert found.images == len(images) == PAIRS
    assert found.caption_tokens == sum(map(len, texts))
    assert {len(text) for text in texts} == {1, 5, 15}  # a mean over captions would be another
    text = sum(map(sum, texts)) / sum(map(len, texts))
    image = sum(map(sum, images)) / (PAIRS * GRID**2)
    # means of hundreds of fp32 numbers from products of another shape
    assert found.text.nats == pytest.approx(text, rel=1e-5)
    assert found.image.nats == pytest.approx(image, rel=1e-5)
    assert found.weighted.nats == pytest.approx(WEIGHT * text + (1 - WEIGHT) * image, rel=1e-5)
    assert found.text.bits == pytest.approx(text / math.log(2), rel=1e-5)
    assert found.image.perplexity == pytest.approx(math.exp(image), rel=1e-4)
    assert len(found.rows) == GRID
    for row in range(GRID):
        total = 0.0
        for nats_I in images:
            for column in range(GRID):
                total += nats_I[row * GRID + column]
        assert found.rows[row].nats == pytest.approx(total / (PAIRS * GRID), rel=1e-5)
    by_row = [row.nats for row in found.rows]
    assert max(by_row) > min(by_row) + 0.1


def test_errors_are_over_images(folder):
    """Of the image loss the textbook's; of text and both, which are ratios, what leaving out one image at a time gives."""
    pairs = token_pairs(folder / "tokens")
    found = held_out_loss(folder / "prior", pairs, batch_size=7, text_weight=WEIGHT, device="cpu")
    texts, images = _reference(folder, "prior", pairs)
    by_image = np.array([np.mean(nats) for nats in images])
    assert found.image.error == pytest.approx(by_image.std(ddof=1) / math.sqrt(PAIRS), rel=1e-4)
    for row, loss in enumerate(found.rows):
        means = np.array([np.mean(nats[row * GRID : (row + 1) * GRID]) for nats in images])
        assert loss.error == pytest.approx(means.std(ddof=1) / math.sqrt(PAIRS), rel=1e-4)

    def without(left_out):
        some = [i for i in range(PAIRS) if i != left_out]
        text = sum(sum(texts[i]) for i in some) / sum(len(texts[i]) for i in some)
        return text, WEIGHT * text + (1 - WEIGHT) * by_image[some].mean()

    for number, loss in enumerate((found.text, found.weighted)):
        left = np.array([without(i)[number] for i in range(PAIRS)])
        jackknife = math.sqrt((PAIRS - 1) / PAIRS * ((left - left.mean()) ** 2).sum())
        # both are first-order forms of one thing: they differ by terms of 1/N, here 1/23
        assert loss.error == pytest.approx(jackknife, rel=0.08)


def test_the_loss_is_that_of_training(folder):
    """As the objective has it, of one batch of all pairs."""
    pairs = token_pairs(folder / "tokens")
    found = held_out_loss(folder / "prior", pairs, device="cpu")
    tokenizer, prior = Tokenizer.load(folder / "prior/tokenizer.json"), load_prior(folder / "prior")
    codes, captions = zip(*pairs.batches(), strict=True)
    ids = [tokenizer.encode(caption) for caption in itertools.chain(*captions)]
    text_BU = torch.from_numpy(pad(ids, prior.config.caption_tokens))
    batch = {"text_BU": text_BU, "codes_BI": torch.from_numpy(np.concatenate(codes))}
    batch["text_targets"] = (text_BU >= 0).sum().float()
    with torch.no_grad():
        loss, metrics = PriorObjective(prior, PriorObjectiveConfig())(batch)
    assert found.weighted.nats == pytest.approx(loss.item(), rel=1e-5)
    assert found.text.nats == pytest.approx(metrics["text_nats"].item(), rel=1e-5)


def test_any_batch_gives_the_same_and_twice_the_very_same(folder):
    pairs = token_pairs(folder / "tokens")
    whole = held_out_loss(folder / "prior", pairs, batch_size=PAIRS, device="cpu")
    for batch_size in (1, 5, 64):
        done = []
        other = held_out_loss(folder / "prior", pairs, batch_size=batch_size, device="cpu", progress=done.append)
        assert other.pairs_hash == whole.pairs_hash
        assert done[-1] == other.images == PAIRS
        assert len(done) == math.ceil(PAIRS / batch_size)
        for name in ("text", "image", "weighted"):
            # sums in float64; the products round by their shapes
            assert getattr(other, name).nats == pytest.approx(getattr(whole, name).nats, rel=1e-6)
            assert getattr(other, name).error == pytest.approx(getattr(whole, name).error, rel=1e-4)
    assert held_out_loss(folder / "prior", pairs, batch_size=PAIRS, device="cpu") == whole


def test_batches_have_one_width(folder, monkeypatch):
    widths = []
    ln_p = Prior.ln_p

    def recorded(self, text_BU, codes_BI):
        widths.append((len(text_BU), len(codes_BI)))
        return ln_p(self, text_BU, codes_BI)

    monkeypatch.setattr(Prior, "ln_p", recorded)
    held_out_loss(folder / "prior", token_pairs(folder / "tokens"), batch_size=9, device="cpu")
    assert widths == [(9, 9)] * 3


def test_sums_are_exact_where_errors_are_small(folder):
    """Deviations of a millionth beside means of a thousand, in batches: as NumPy has it for all at once."""
    rows_BV = 1000 + 1e-3 * np.random.default_rng(0).standard_normal((1000, 4))
    moments = Moments(4)
    for first in range(0, 1000, 77):
        moments.add(rows_BV[first : first + 77])
    # 1,000 rows of which each has lost 1e-13 of its 1e-3 to float64
    expected = rows_BV[:, 1].std(ddof=1) / math.sqrt(1000)
    assert stage_two._error(moments, np.eye(4)[1]) == pytest.approx(expected, rel=1e-8)
    assert stage_two._error(Moments(4), np.eye(4)[1]) is None


def test_precision_is_that_of_the_products(folder):
    pairs = token_pairs(folder / "tokens")
    fp32 = held_out_loss(folder / "prior", pairs, device="cpu")
    bf16 = held_out_loss(folder / "prior", pairs, precision="bf16", device="cpu")
    assert (fp32.precision, bf16.precision) == ("fp32", "bf16")
    _, images = _reference(folder, "prior", pairs, "bf16")
    assert bf16.image.nats != fp32.image.nats
    # products in bf16 whose shapes differ: a last bit is 0.4%, of which means over hundreds leave little
    assert bf16.image.nats == pytest.approx(np.mean(images), rel=2e-3)


def test_images_are_encoded_as_by_dalle_tokenize(folder, shapes_folder, tmp_path):
    shards = f"{shapes_folder}/valid-000.tar"
    tokenize(["--data", shards, "--dvae", str(folder / "dvae"), "--output", str(tmp_path / "tokens")])
    written, read = token_pairs(tmp_path / "tokens"), image_pairs(shards, folder / "dvae", device="cpu", workers=0)
    assert written.dvae_hash == read.dvae_hash
    (codes, captions), (codes_read, captions_read) = (next(pairs.batches()) for pairs in (written, read))
    assert len(np.unique(codes)) > 2
    np.testing.assert_array_equal(codes, codes_read)
    assert captions == captions_read
    losses = [held_out_loss(folder / "prior", pairs, device="cpu") for pairs in (written, read)]
    assert losses[0].pairs_hash == losses[1].pairs_hash
    assert (losses[0].text, losses[0].image, losses[0].rows) == (losses[1].text, losses[1].image, losses[1].rows)
    assert losses[0].images == len(TokenShards(tmp_path / "tokens")) == 24


def test_a_prior_of_another_dvae_is_refused_before_anything_is_read(folder, monkeypatch):
    pairs = token_pairs(folder / "tokens")
    monkeypatch.setattr(stage_two, "load_prior", None)  # not reached
    with pytest.raises(ValueError, match=rf"foreign: expected {'f' * 16}…, found {pairs.dvae_hash[:16]}…"):
        held_out_losses([folder / "prior", folder / "foreign"], pairs)
    with pytest.raises(ValueError, match="holds a dvae, not a prior"):
        held_out_losses([folder / "dvae"], pairs)
    Tokenizer.train(["others"], vocabulary=260, min_count=1).save(folder / "foreign/tokenizer.json")
    with pytest.raises(ValueError, match="foreign was trained with another tokenizer"):
        held_out_loss(folder / "foreign", token_pairs_of(folder, "f" * 64))


def token_pairs_of(folder, dvae_hash):
    path = folder / f"tokens-{dvae_hash[:4]}"
    _save_tokens(path, 2, dvae_hash)
    return token_pairs(path)


def test_one_plot_has_a_line_for_each_prior(folder):
    pairs = token_pairs(folder / "tokens")
    first, second = held_out_losses([folder / "prior", folder / "second"], pairs, device="cpu")
    made = section([first, second])
    told = json.loads(json.dumps(made.figures))
    assert list(told["priors"]) == [str(folder / "prior"), str(folder / "second")]
    assert told["priors"][first.name]["image"]["nats"] == first.image.nats
    assert told["priors"][second.name]["rows"][3] == second.rows[3].to_json()
    assert told["priors"][first.name]["prior_hash"] != told["priors"][second.name]["prior_hash"]
    assert f"{second.image.nats:.4g}" in made.body
    assert made.body.count("●") == 2  # in the legend
    alone = section([first])
    assert (made.body.count("<path"), made.body.count("<use")) > (alone.body.count("<path"), alone.body.count("<use"))
    assert not alone.notes[1:]
    other = held_out_loss(folder / "second", token_pairs_of(folder, first.dvae_hash), device="cpu")
    with pytest.raises(ValueError, match="measured on other pairs"):
        section([first, other])
    with pytest.raises(ValueError, match="each once"):
        section([first, first])


def test_what_a_reader_should_know_is_noted(folder, tmp_path):
    dvae_hash = token_pairs(folder / "tokens").dvae_hash
    # the second caption has more tokens than the 15 that are read
    plain = held_out_loss(folder / "prior", token_pairs(folder / "tokens"), device="cpu")
    assert plain.cut_captions == 6
    assert plain.notes == (f"{folder / 'prior'}: 6 of 23 captions (26.1%) were cut to the 15 tokens that are read",)
    _save_tokens(tmp_path / "crops", 3, dvae_hash, ["a"], "bf16", {"crops": 2})
    notes = held_out_loss(folder / "prior", token_pairs(tmp_path / "crops"), device="cpu").notes
    assert len(notes) == 2
    assert "found in bf16" in notes[0]
    assert "2 crops of each image" in notes[1]
    tokenizer = Tokenizer.train(["something else"], vocabulary=280, min_count=1)
    _save_prior(tmp_path / "other", 4, dvae_hash, tokenizer)
    both = held_out_losses([folder / "prior", tmp_path / "other"], token_pairs(folder / "tokens"), device="cpu")
    assert "different tokenizers" in section(both).notes[-1]


def test_edges(folder, tmp_path):
    dvae_hash = token_pairs(folder / "tokens").dvae_hash
    _save_tokens(tmp_path / "one", 1, dvae_hash, [""])
    one = held_out_loss(folder / "prior", token_pairs(tmp_path / "one"), device="cpu")
    assert (one.images, one.caption_tokens, one.text.nats) == (1, 0, 0.0)
    assert one.image.error is None
    assert one.weighted.nats == pytest.approx(7 / 8 * one.image.nats)
    assert "—" in section([one]).body
    with pytest.raises(ValueError, match="batch_size 0"):
        held_out_loss(folder / "prior", token_pairs(folder / "tokens"), batch_size=0)
    with pytest.raises(ValueError, match="text_weight 2"):
        held_out_loss(folder / "prior", token_pairs(folder / "tokens"), text_weight=2)


def test_broken_logits_are_named(folder, monkeypatch):
    load = stage_two.load_prior

    def broken(*args):
        prior = load(*args)
        prior.image_head.weight.data[5] = math.nan
        return prior

    monkeypatch.setattr(stage_two, "load_prior", broken)
    with pytest.raises(ValueError, match=r"logits of the prior .*prior are not finite"):
        held_out_loss(folder / "prior", token_pairs(folder / "tokens"), device="cpu")
