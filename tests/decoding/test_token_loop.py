"""The token loop against the full forward pass."""

import copy
import gc
import weakref

import pytest
import torch

from dalle.config import PriorModel, Sampling
from dalle.decoding import token_loop
from dalle.decoding.slot_model import Product
from dalle.decoding.token_loop import Given, TokenLoop, choose_chunk
from dalle.masks import predicting
from dalle.models.prior import Prior
from dalle.text import PAD

pytestmark = pytest.mark.usefixtures("two_threads")  # C++ and products share work among them


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


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    ("attention", "grid", "depth"),
    [("paper", 4, 6), ("paper", 3, 1), ("paper", 7, 3), ("paper", 1, 2), ("dense", 4, 2)],
)
def test_cached_logits_are_those_of_the_full_forward(attention, grid, depth, compile):
    prior = _prior(attention, grid, depth)
    codes = torch.randint(0, 11, (3, 2, grid**2), generator=torch.Generator().manual_seed(1))
    loop = TokenLoop(prior, "fp32", compile)
    for num_given in sorted({0, 1, grid, grid**2 - 1} - {grid**2}):
        codes[:, :, :num_given] = codes[:, :1, :num_given]  # of an image prompt, the same for both candidates
        with torch.no_grad():
            cached = torch.stack(list(loop.logits(TEXT, codes, num_given)), dim=2)
            for candidate in range(2):
                _, expected = prior(TEXT, codes[:, candidate])
                # fp32; sums of at most 96 terms in another order, through six layers
                torch.testing.assert_close(cached[:, candidate], expected[:, num_given:], atol=5e-4, rtol=1e-4)


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
    codes = loop.codes(TEXT[:1], seeds, Sampling(temperature=0.5), _first([[3, 1, 4, 1, 5]]))
    assert codes[0, :, :5].tolist() == [[3, 1, 4, 1, 5]] * 2
    other = loop.codes(TEXT[:1], seeds, Sampling(temperature=0.5), _first([[9, 9, 9, 9, 9]]))
    assert not torch.equal(codes[..., 5:], other[..., 5:])


def _first(codes, slots=16):
    given = torch.tensor(codes)
    return Given(torch.nn.functional.pad(given, (0, slots - given.shape[1])), torch.arange(slots) < given.shape[1])


def test_given_codes_are_what_was_drawn_before():
    """Keeping any codes of a drawing, the same seed draws the same rest: what is kept may lie before, between and after."""
    loop = TokenLoop(_prior(), "fp32")
    seeds = torch.tensor([[3], [4], [5]])
    whole = loop.codes(TEXT, seeds, Sampling())
    region = torch.ones(4, 4, dtype=torch.bool)
    region[1:3, 1:3] = False
    for kept in (
        torch.arange(16) < 1,
        torch.arange(16) < 8,
        torch.arange(16) < 15,
        region.flatten(),
        torch.arange(16) < 16,
    ):
        given = whole[:, 0].where(kept, 0)
        assert torch.equal(loop.codes(TEXT, seeds, Sampling(), Given(given, kept)), whole)
    changed = Given((whole[:, 0] + 1) % 11, region.flatten())
    codes = loop.codes(TEXT, seeds, Sampling(), changed)
    assert torch.equal(codes[:, 0, region.flatten()], changed.codes_CI[:, region.flatten()])
    assert not torch.equal(codes[:, 0, ~region.flatten()], whole[:, 0, ~region.flatten()])


def test_a_batch_is_used_again():
    """What an earlier caption, prompt or setting left in the tensors is not met again."""
    seeds = torch.tensor([[3, 4]])
    used, asked = TokenLoop(_prior(), "fp32"), [
        (TEXT[:1], Sampling(), None), (TEXT[1:2], Sampling(top_k=3), _first([[3, 1, 4, 1, 5]])),
        (TEXT[2:], Sampling(guidance=2.0), None), (TEXT[:1], Sampling(), None),
    ]  # fmt: skip
    for text, sampling, given in asked:
        fresh = TokenLoop(_prior(), "fp32").codes(text, seeds, sampling, given)
        assert torch.equal(used.codes(text, seeds, sampling, given), fresh)


def test_guidance_moves_logits_away_from_those_without_a_caption():
    """Greedy, against the full forward pass of both branches."""
    prior = _prior()
    found = TokenLoop(prior, "fp32").codes(TEXT, torch.zeros(3, 1, dtype=torch.int64), Sampling(top_k=1, guidance=3.0))
    codes = torch.zeros(3, 16, dtype=torch.int64)
    with torch.no_grad():
        for slot in range(16):
            captioned, free = (prior(text, codes)[1][:, slot] for text in (TEXT, torch.full_like(TEXT, PAD)))
            codes[:, slot] = (free + 3 * (captioned - free)).argmax(dim=-1)
    assert torch.equal(found[:, 0], codes)
    plain = TokenLoop(prior, "fp32").codes(TEXT, torch.zeros(3, 1, dtype=torch.int64), Sampling(top_k=1))
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_place_in_the_batch_changes_no_bit(precision):
    """At a size where kernels have blocks and tails: 64 candidates in another order, and with others beside them."""
    torch.manual_seed(0)
    prior = Prior(
        PriorModel(text_slots=40, grid=6, text_vocabulary=20, codebook_size=1000, width=192, depth=4, heads=3)
    )
    loop = TokenLoop(prior.eval(), precision)
    text, seeds = torch.randint(0, 20, (1, 39)), torch.arange(64)[None]
    whole = loop.codes(text, seeds, Sampling())
    order = torch.randperm(64)
    assert torch.equal(loop.codes(text, seeds[:, order], Sampling()), whole[:, order])
    assert torch.equal(loop.codes(text, seeds + 60, Sampling())[:, :4], whole[:, 60:])


def test_caches_hold_what_a_mask_can_see():
    paper = Prior(PriorModel(text_vocabulary=8, codebook_size=8, width=8, depth=8, heads=1))
    loop = TokenLoop(paper, "bf16")
    # row 33 places five times, column 1024 twice, conv 6 rows; 256 of the caption; k and v of 8 × 2 bytes
    assert loop.cache_bytes(1, 10) == (10 * (5 * 33 + 2 * 1024 + 192) + 8 * 256) * 2 * 8 * 2
    loop.codes(
        torch.zeros(1, 255, dtype=torch.int64), torch.zeros(1, 10, dtype=torch.int64), Sampling(), _most_given(1024)
    )
    held = [t for c in loop._batch.caches for t in (c.text_k_CHKT, c.text_v_CHTK, c.k_RHPK, c.v_RHPK)]
    assert sum(t.nbytes for t in held) == loop.cache_bytes(1, 10)


def _most_given(slots):
    return Given(torch.zeros(1, slots, dtype=torch.int64), torch.arange(slots) < slots - 1)


def test_bf16_logits_are_near_those_of_the_full_forward():
    """Of a model of ordinary weights, wide enough for oneDNN's products: bf16 keeps 8 bits, and errors of some 2⁻⁸ a layer add
    up over six. A missing GELU or norm, or a transposed weight, moves logits by as much as they are large."""
    torch.manual_seed(0)
    config = PriorModel(
        text_slots=6, grid=4, text_vocabulary=20, codebook_size=64, width=64, depth=6, heads=2, conv_kernel=3
    )
    prior = Prior(config).eval()
    for name, parameter in prior.named_parameters():
        if parameter.ndim > 1 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=1.0 if "tokens" in name else 0.15)
    codes = torch.randint(0, 64, (3, 2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack([prior(TEXT, codes[:, n])[1] for n in range(2)], dim=1)
    for compile in (False, True):
        found = torch.stack(list(TokenLoop(prior, "bf16", compile).logits(TEXT, codes)), dim=2)
        assert expected.std() > 1
        assert (found - expected).abs().mean() < 0.03 * expected.std()


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 192), (36, 20)])
def test_a_packed_product_is_the_plain_one(gelu, inputs, outputs):
    weight, bias, x = torch.randn(outputs, inputs), torch.randn(outputs), torch.randn(5, inputs)
    found = Product(weight, bias, torch.bfloat16, gelu)(x.bfloat16()).float()
    expected = torch.nn.functional.linear(x, weight, bias)
    expected = torch.nn.functional.gelu(expected) if gelu else expected
    # sums of 64 products rounded to 8 bits each
    assert (found - expected).abs().mean() < 0.01 * expected.std()


def test_memory_is_given_back_at_once():
    """Not when the cycle collector comes by: after running out of memory the next attempt needs it."""
    loop = TokenLoop(_prior(), "fp32")
    gc.collect()
    gc.disable()
    try:
        loop.codes(TEXT[:1], torch.zeros(1, 2, dtype=torch.int64), Sampling())
        first = weakref.ref(loop._batch)
        loop.codes(TEXT[:1], torch.zeros(1, 3, dtype=torch.int64), Sampling())
        second = weakref.ref(loop._batch)
        assert first() is None
        del loop
        assert second() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("broken", ["code 5", "a bias", "the last keys", "a resblock"])
def test_broken_weights_are_named(broken, value, precision):
    """Also those that spoil one column of the logits, of which no other would ever be drawn, and keys, which the C++
    kernels meet in their softmax alone."""
    prior = _prior()
    weights = {
        "code 5": prior.image_head.weight.data[5],
        "a bias": prior.image_head.bias.data[10:],
        "the last keys": prior.layers[-1].attention.qkv.bias.data[24:25],
        "a resblock": prior.layers[2].mlp.widen.weight.data[0, :1],
    }
    weights[broken].fill_(value)
    for options in ({}, {"guidance": 2.0}, {"top_k": 3}):
        with pytest.raises(ValueError, match="logits are not finite"):
            TokenLoop(prior, precision).codes(TEXT, torch.zeros(3, 1, dtype=torch.int64), Sampling(**options))


@pytest.mark.parametrize("compile", [False, True])
def test_a_caption_that_is_not_finite_leaves_nothing_with_the_next(compile):
    """The caches are kept from call to call, and a masked place that holds no number would still reach the sums. A call that is
    broken off is never asked whether it was finite."""
    prior = _prior()
    prior.text_tokens.weight.data[7] = float("nan")
    loop, seeds = TokenLoop(prior, "fp32", compile), torch.zeros(1, 2, dtype=torch.int64)
    expected = loop.codes(TEXT[:1], seeds, Sampling())
    with pytest.raises(ValueError, match="logits are not finite"):
        loop.codes(TEXT[1:2], seeds, Sampling())
    assert torch.equal(loop.codes(TEXT[:1], seeds, Sampling()), expected)
    with pytest.raises(KeyboardInterrupt):
        loop.codes(TEXT[1:2], seeds, Sampling(), progress=_stop_half_way)
    assert torch.equal(loop.codes(TEXT[:1], seeds, Sampling()), expected)


def _stop_half_way(slot):
    if slot == 7:
        raise KeyboardInterrupt


def test_a_first_slot_that_is_broken_is_not_forgotten():
    """The last slots of a convolutional layer no longer see it: their logits are finite."""
    prior = _prior(grid=7, depth=1)
    prior.image_tokens.weight.data[-1, 0] = float("nan")  # the start of the image
    loop, seeds = TokenLoop(prior, "fp32"), torch.zeros(3, 1, dtype=torch.int64)
    assert not next(loop.logits(TEXT, torch.zeros(3, 1, 49, dtype=torch.int64))).isfinite().any()
    with pytest.raises(ValueError, match="logits are not finite"):
        loop.codes(TEXT, seeds, Sampling())


def test_a_chunk_fits_the_memory(monkeypatch):
    loop = TokenLoop(_prior(), "fp32")
    weights, count = loop.weight_bytes(), sum(p.numel() for p in _prior().parameters())
    # once, for the products of fp32 are the prior's own matrices; beside them three masks of (6 + 16)² bytes
    assert 4 * count <= weights < 4 * count + 2000
    for asked, memory, expected in (
        (Sampling(), 1 << 40, 64),
        (Sampling(chunk=7), 0, 7),
        (Sampling(), weights + 2 * loop.cache_bytes(1, 16), 16),
        (Sampling(), weights + 2 * loop.cache_bytes(1, 16) - 1, 8),
        (Sampling(guidance=2.0), weights + 2 * loop.cache_bytes(1, 16), 4),  # the caption's keys, too, are there twice
        (Sampling(), 0, 1),
    ):
        monkeypatch.setattr(token_loop, "_memory_bytes", lambda device, memory=memory: memory)
        assert choose_chunk(loop, asked) == expected


def test_twelve_billion_weights_sample_64_at_a_time_on_80_gb(monkeypatch):
    """By the arithmetic that chooses the width of a chunk; on the meta device, so that none of them is there, which is given
    a GPU's limits."""
    monkeypatch.setitem(token_loop._MOST_TOGETHER, "meta", token_loop._MOST_TOGETHER["cuda"])
    monkeypatch.setattr(token_loop, "_memory_bytes", lambda device: 80 * 10**9)
    sizes = PriorModel(
        text_slots=256, grid=32, text_vocabulary=16384, codebook_size=8192, width=3968, depth=64, heads=62
    )
    for held_narrow in (True, False):
        with torch.device("meta"):
            prior = Prior(sizes)
        if held_narrow:
            prior.hold_matrices(torch.bfloat16)
        count = sum(p.numel() for p in prior.parameters())
        loop = TokenLoop(prior, "bf16")
        assert 12e9 < count < 12.5e9
        # embeddings, layer norms and biases are fp32; of a prior in fp32 also the text's head, which is not asked
        assert loop.weight_bytes() < 2.03 * count
        assert choose_chunk(loop, Sampling()) == 64


def _wide_prior():
    """Of sizes for which oneDNN has blocks and tails, with weights that are no 16-bit numbers."""
    torch.manual_seed(0)
    config = PriorModel(
        text_slots=6, grid=4, text_vocabulary=20, codebook_size=70, width=72, depth=4, heads=3, conv_kernel=3
    )
    prior = Prior(config).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return prior


def _narrow(prior):
    prior = copy.deepcopy(prior).requires_grad_(False)
    prior.hold_matrices(torch.bfloat16)
    return prior


@pytest.mark.parametrize("compile", [False, True])
def test_matrices_held_in_16_bits_give_the_bits_of_those_that_are_converted(compile):
    prior = _wide_prior()
    codes = torch.randint(0, 70, (3, 2, 16), generator=torch.Generator().manual_seed(1))
    codes[:, :, :5] = codes[:, :1, :5]
    converted, held = (TokenLoop(p, "bf16", compile) for p in (prior, _narrow(prior)))
    for num_given in (0, 5):
        logits = (torch.stack(list(loop.logits(TEXT, codes, num_given))) for loop in (converted, held))
        assert torch.equal(*logits)
    seeds, sampling = torch.arange(6).view(3, 2), Sampling(guidance=2.0)
    assert torch.equal(converted.codes(TEXT, seeds, sampling), held.codes(TEXT, seeds, sampling))


def test_a_prompt_is_read_as_by_the_prior_itself():
    """With the very numbers of the full pass in 16 bits, though the products are laid out for the steps."""
    prior = _wide_prior()
    codes = torch.randint(0, 70, (3, 5), generator=torch.Generator().manual_seed(1))
    found, expected = (TokenLoop(p, "bf16") for p in (_narrow(prior), prior))
    expected.prior = prior
    with torch.inference_mode():
        for loop in (found, expected):
            loop._read_given(loop._batch_of(3, 2, False), TEXT, codes)
    for one, other in zip(found._batch.caches, expected._batch.caches, strict=True):
        assert one.k_RHPK.any() and torch.equal(one.k_RHPK, other.k_RHPK) and torch.equal(one.v_RHPK, other.v_RHPK)
        assert torch.equal(one.text_k_CHKT, other.text_k_CHKT)


def test_a_prior_in_16_bits_is_there_once():
    """Taken over: the prompt's products are those of the steps, and the matrices that they were made from are gone."""
    prior = _narrow(_wide_prior())
    matrix = weakref.ref(prior.layers[2].mlp.widen)
    loop = TokenLoop(prior, "bf16")
    assert loop.prior is prior and matrix() is None
    of_steps, of_prompts = loop._model.layers[2], prior.layers[2]
    assert of_steps.qkv is of_prompts.attention.qkv and of_steps.widen.weight is of_prompts.mlp.widen.weight
    again = TokenLoop(prior, "bf16", compile=False)
    assert again._model.layers[2].qkv is of_steps.qkv
    # captions are scored by it still, with the same numbers
    codes, found = torch.randint(0, 70, (3, 16)), []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for scoring in (prior, _wide_prior()):
            text_BUD, image_BID = predicting(scoring.states(TEXT, codes), 6)
            found += [scoring.text_head.ln_p(text_BUD, TEXT), scoring.image_head.ln_p(image_BID, codes)]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_prior_in_32_bits_is_left_as_it_is(precision):
    """It may be training. What the loop makes of it is let go with the loop, and does not keep the prior."""
    prior = _wide_prior()
    before = {name: (p, p.detach().clone()) for name, p in prior.named_parameters()}
    loop = TokenLoop(prior, precision)
    loop.codes(TEXT, torch.zeros(3, 1, dtype=torch.int64), Sampling())
    assert loop.prior is not prior
    assert prior.state_dict().keys() == Prior(prior.config).state_dict().keys()
    for name, parameter in prior.named_parameters():
        assert parameter is before[name][0] and torch.equal(parameter, before[name][1]) and parameter.requires_grad
    prior.nats(TEXT, torch.zeros(3, 16, dtype=torch.int64))[1].backward()
    assert all(p.grad is not None for name, p in prior.named_parameters() if name.startswith("layers"))
    if precision == "bf16":
        matrix = weakref.ref(prior.layers[1].attention.qkv)
        del prior, before, parameter
        gc.collect()
        assert matrix() is None
    # in fp32 nothing is there twice
    else:
        assert loop._model.layers[1].qkv.weight.data_ptr() == prior.layers[1].attention.qkv.weight.data_ptr()


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}, {"top_k": 3}, {"top_p": 0.8}, {"compile": False}])
@pytest.mark.parametrize("given", [None, "first codes"])
def test_a_graph_draws_what_a_cpu_draws(options, given):
    prior, sampling = _prior(), Sampling(**options)
    seeds, given = torch.tensor([[1, 2, 3]]), given and _first([[3, 1, 4, 1, 5]])
    expected = TokenLoop(prior, "fp32").codes(TEXT[:1], seeds, sampling, given)
    loop = TokenLoop(copy.deepcopy(prior).cuda(), "fp32", sampling.compile)
    for _ in range(2):
        assert torch.equal(loop.codes(TEXT[:1], seeds, sampling, given).cpu(), expected)


@pytest.mark.gpu
def test_a_second_gpu_has_its_own_graph():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    seeds = torch.tensor([[1, 2, 3]])
    loops = [TokenLoop(copy.deepcopy(_prior()).to(f"cuda:{i}"), "bf16") for i in range(2)]
    first, second = (loop.codes(TEXT[:1], seeds, Sampling()).cpu() for loop in loops)
    assert torch.equal(first, second)
