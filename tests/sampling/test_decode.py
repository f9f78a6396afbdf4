"""The token loop against the full forward pass, and the sampler against exact probabilities."""

import pytest
import torch

from dalle.config import PriorModel, Sampling
from dalle.models.prior import InputMajorLinear, Prior
from dalle.sampling.decode import TokenLoop, choose
from dalle.text import PAD


def _prior(attention="paper", grid=4, depth=6):
    torch.manual_seed(0)
    config = PriorModel(
        text_slots=6, grid=grid, text_vocabulary=20, codebook_size=11, width=24, depth=depth, heads=2,
        attention=attention, conv_kernel=3,
    )  # fmt: skip
    model = Prior(config)
    for name, parameter in model.named_parameters():  # large enough that what a slot sees shows in its logits
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if "tokens" in name else 0.3)
    return model.eval()


TEXT = torch.tensor([[1, 2, 3, 4, 5], [7, 8, PAD, PAD, PAD], [9, PAD, PAD, PAD, PAD]])


@pytest.mark.parametrize(("attention", "grid", "depth"), [("paper", 4, 6), ("paper", 3, 1), ("dense", 4, 2)])
def test_cached_logits_are_those_of_the_full_forward(attention, grid, depth):
    prior = _prior(attention, grid, depth)
    codes = torch.randint(0, 11, (3, 2, grid**2), generator=torch.Generator().manual_seed(1))
    loop = TokenLoop(prior, "fp32")
    for num_given in (0, 1, grid, grid**2 - 1):
        codes[:, :, :num_given] = codes[:, :1, :num_given]  # of an image prompt, the same for both candidates
        with torch.no_grad():
            cached = torch.stack(list(loop.logits(TEXT, codes, num_given)), dim=2)
            for candidate in range(2):
                _, expected = prior(TEXT, codes[:, candidate])
                # fp32; sums of at most 96 terms in another order, through six layers
                torch.testing.assert_close(cached[:, candidate], expected[:, num_given:], atol=5e-4, rtol=1e-4)


def test_only_matrices_of_another_precision_are_copied():
    prior = _prior().train()
    matrices = {n for n, m in prior.named_modules() if isinstance(m, torch.nn.Linear | InputMajorLinear)}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        held = TokenLoop(prior, precision).prior
        own = {n for n, t in held.named_parameters() if t.data_ptr() != prior.get_parameter(n).data_ptr()}
        assert own == {f"{n}.{t}" for n in matrices for t in ("weight", "bias") if precision == "bf16"}
        assert all(held.get_submodule(n).weight.dtype == dtype for n in matrices)
        assert held.masked["row"].mask_SS.data_ptr() == prior.masked["row"].mask_SS.data_ptr()
    assert prior.training and all(p.dtype == torch.float32 and p.requires_grad for p in prior.parameters())


def test_greedy_decoding_is_that_of_the_full_forward():
    prior = _prior()
    loop = TokenLoop(prior, "fp32")
    found = loop.codes(TEXT, torch.zeros(3, 1, dtype=torch.int64), Sampling(top_k=1))
    codes = torch.zeros(3, 16, dtype=torch.int64)
    with torch.no_grad():
        for slot in range(16):
            codes[:, slot] = prior(TEXT, codes)[1][:, slot].argmax(dim=-1)
    assert torch.equal(found[:, 0], codes)


def test_a_candidate_depends_on_its_seed_alone():
    loop = TokenLoop(_prior(), "fp32")
    seeds = torch.tensor([[5, 6, 7, 8]])
    whole = loop.codes(TEXT[:1], seeds, Sampling())
    shuffled = loop.codes(TEXT[:1], seeds[:, [2, 0, 3, 1]], Sampling())
    assert torch.equal(whole[:, [2, 0, 3, 1]], shuffled)
    assert len({tuple(row.tolist()) for row in whole[0]}) == 4


def test_given_codes_are_kept_and_matter():
    loop = TokenLoop(_prior(), "fp32")
    seeds = torch.tensor([[1, 2]])
    given = torch.tensor([[3, 1, 4, 1, 5]])
    codes = loop.codes(TEXT[:1], seeds, Sampling(temperature=0.5), given)
    assert codes[0, :, :5].tolist() == [[3, 1, 4, 1, 5]] * 2
    other = loop.codes(TEXT[:1], seeds, Sampling(temperature=0.5), torch.tensor([[9, 9, 9, 9, 9]]))
    assert not torch.equal(codes[..., 5:], other[..., 5:])


def test_given_codes_are_what_was_drawn_before():
    """Keeping the first codes of a drawing, the same seed draws the same rest."""
    loop = TokenLoop(_prior(), "fp32")
    seeds = torch.tensor([[3], [4], [5]])
    whole = loop.codes(TEXT, seeds, Sampling())
    for num_given in (1, 8, 15):
        assert torch.equal(loop.codes(TEXT, seeds, Sampling(), whole[:, 0, :num_given]), whole)


def test_choose_draws_the_softmax():
    """Chi-squared over 50,000 draws, 9 degrees of freedom: a right sampler passes 33.7 once in 10,000 seeds."""
    logits = torch.randn(10, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(50_000, generator=torch.Generator().manual_seed(1))
    chosen = choose(logits.expand(50_000, 10), uniform, Sampling(temperature=0.7))
    expected = 50_000 * (logits / 0.7).softmax(0)
    counts = torch.bincount(chosen, minlength=10)
    assert ((counts - expected) ** 2 / expected).sum() < 33.7


def test_filters_keep_what_they_say():
    logits = torch.log(torch.tensor([0.4, 0.05, 0.3, 0.05, 0.2])).expand(5000, 5)
    uniform = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    assert set(choose(logits, uniform, Sampling(top_k=2)).tolist()) == {0, 2}
    assert set(choose(logits, uniform, Sampling(top_p=0.7)).tolist()) == {0, 2}
    assert set(choose(logits, uniform, Sampling(top_p=0.71)).tolist()) == {0, 2, 4}
    assert set(choose(logits, uniform, Sampling(top_p=1e-6)).tolist()) == {0}
    assert set(choose(logits, uniform, Sampling(top_k=100)).tolist()) == set(range(5))


def test_choose_never_takes_an_impossible_code():
    logits = torch.tensor([[0.0, 1.0, -float("inf"), -float("inf")]] * 2)
    assert choose(logits, torch.tensor([0.0, 1 - 2**-24]), Sampling()).tolist() == [0, 1]
