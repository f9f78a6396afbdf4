"""The sides of sampling's benchmark: the dense sampler computes what ours does, slices become whole images, the limit is
what it says, and the cases say all."""

import importlib
import json
import subprocess
import sys
from statistics import median

import pytest
import torch

from dalle.config import PriorModel, Sampling
from dalle.models.prior import Prior
from tests.conftest import ROOT, clean_environment
from tests.tools.in_this_process import InThisProcess

sys.path.insert(0, str(ROOT / "tools"))
bench = importlib.import_module("bench")
sample, sides_sample, peers_sample, peers_prior, sides = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("sample", "sides_sample", "peers_sample", "peers_prior", "sides")
)

SIZES = {"text_slots": 6, "text_vocabulary": 20, "codebook_size": 16, "width": 32, "depth": 3, "heads": 2, "grid": 4}
TINY = PriorModel(**SIZES)
BY_HAND = {"text_slots": 2, "grid": 2, "codebook_size": 3, "width": 2, "heads": 1}
PEER_CALLS = ["read", *(f"{what}{place}" for place in peers_sample.PLACES for what in ("prepare ", ""))]


pytestmark = pytest.mark.usefixtures("one_thread")


# ---- the dense sampler


@pytest.fixture(scope="module")
def dense():
    """Ours with dense layers, a sampler of three rows with its weights, a caption, and codes of each row."""
    torch.manual_seed(0)
    ours, gpt = Prior(PriorModel(**SIZES, attention="dense")).to(sides.DEVICE), peers_prior.GPT(TINY)
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.3)  # so that attention is far from uniform
    names = dict(zip(gpt.state_dict(), ours.state_dict(), strict=True))  # both in the order of the model
    weights = {theirs: ours.state_dict()[name] for theirs, name in names.items()}
    for theirs, name in names.items():
        if name.endswith("mlp.project.weight"):
            weights[theirs] = weights[theirs].T  # ours is stored by inputs
    gpt.load_state_dict(weights)
    text_1U = torch.tensor([[3, 0, 19, -1, -1]], device=sides.DEVICE)
    codes_RI = torch.randint(0, 16, (3, 16), device=sides.DEVICE)
    return ours, peers_sample.DenseSampler(gpt, 3, torch.float32), text_1U, codes_RI


@torch.no_grad()
def test_the_dense_samplers_logits_are_those_of_our_full_forward_pass(dense):
    ours, sampler, text_1U, codes_RI = dense
    _, expected_RIV = ours(text_1U.expand(3, -1), codes_RI)
    sampler.read(text_1U)
    held_RI = torch.cat([ours.start_of_image(3), codes_RI[:, :-1]], dim=1)
    logits_RIV = torch.stack([sampler.logits(held_RI[:, slot], slot) for slot in range(16)], dim=1)
    # logits are about 10; fp32 sums in another order
    torch.testing.assert_close(logits_RIV, expected_RIV, rtol=0, atol=1e-3)


@torch.no_grad()
def test_the_dense_sampler_goes_on_from_what_it_drew(dense, monkeypatch):
    ours, sampler, text_1U, _ = dense
    monkeypatch.setattr(torch, "multinomial", lambda p_RV, num_samples: p_RV.argmax(dim=-1, keepdim=True))
    sampler.read(text_1U)
    codes_RI = sampler.draw(0, 16)
    _, logits_RIV = ours(text_1U.expand(3, -1), codes_RI)
    assert torch.equal(codes_RI, logits_RIV.argmax(dim=-1))


def test_a_dense_cache_has_every_slot_of_every_row(dense):
    sampler = dense[1]
    held = (sampler.k_LRHSK, sampler.v_LRHSK)
    assert peers_sample.dense_cache_bytes(TINY, 3, 4) == sum(x.numel() * x.element_size() for x in held)


# ---- all peers


def test_every_peer_makes_its_calls_in_turn():
    found, _ = peers_sample.peers(TINY, 2, 3)
    for name, by_precision in found.items():
        assert set(by_precision) == ({"bf16"} if name == "dalle_pytorch" else {"fp32", "bf16"})
        for peer in by_precision.values():
            calls = peer.build()
            assert set(calls) == set(PEER_CALLS), name
            for what in 2 * PEER_CALLS:
                calls[what]()


def test_what_is_not_installed_is_missing(monkeypatch):
    monkeypatch.setattr(peers_sample.importlib.util, "find_spec", lambda name: None)
    found, missing = peers_sample.peers(TINY, 2, 3)
    assert set(found) == {"dense_cache"}
    assert set(missing) == {"transformers", "dalle_pytorch"}
    assert all("pip install" in why for why in missing.values())


def test_peers_draw_the_candidates_but_dalle_pytorch_at_most_eight(monkeypatch):
    monkeypatch.setattr(peers_sample.importlib.util, "find_spec", lambda name: name)
    found, missing = peers_sample.peers(TINY, 64, 3)
    assert missing == {}
    assert {name: (both["bf16"].rows, both["bf16"].steps) for name, both in found.items()} == {
        "dense_cache": (64, 3),
        "transformers": (64, 3),
        "dalle_pytorch": (8, 1),
    }


def test_peers_that_do_not_fit_beside_the_others_are_left_out(monkeypatch):
    monkeypatch.setattr(sample, "_PROCESS_BYTES", 10)

    def both(fp32: int, bf16: int) -> dict:
        return {name: peers_sample.Peer(dict, 1, 1, range(4), held) for name, held in (("fp32", fp32), ("bf16", bf16))}

    found = {"a": both(50, 25), "b": both(40, 20), "c": both(3, 2)}
    fitting, too_large = sample._fitting(found, 125)
    # a takes 95 and leaves 30, of which b wants 80 and c 25
    assert (list(fitting), list(too_large)) == (["a", "c"], ["b"])


# ---- whole images from slices


def test_slices_lie_at_the_start_in_the_middle_and_at_the_end():
    assert peers_sample.places(1024, 8) == {"start": 0, "middle": 508, "end": 1016}


def test_a_whole_image_is_the_sum_over_the_parabola_through_its_slices():
    # 1 + x²/4 at slots 0 … 4: 1, 1.25, 2, 3.25, 5
    slices_s = {"start": 1.0, "middle": 2.0, "end": 5.0}
    assert peers_sample.whole_s(slices_s, 5, 1, range(5)) == pytest.approx(12.5)
    assert peers_sample.whole_s(slices_s, 5, 1, range(1, 5)) == pytest.approx(11.5)


def test_longer_slices_stand_for_their_middle():
    step_s = [3 + 2 * slot for slot in range(20)]
    slices_s = {place: sum(step_s[first : first + 4]) for place, first in peers_sample.places(20, 4).items()}
    assert peers_sample.whole_s(slices_s, 20, 4, range(20)) == pytest.approx(sum(step_s))


def test_a_peers_rate_counts_reading_and_all_its_rows():
    peer = peers_sample.Peer(dict, rows=2, steps=1, slots=range(4), held_bytes=0)
    taken_s = {"x read": [0.5, 0.0], **{f"x {place}": [0.5, 1.0] for place in peers_sample.PLACES}}
    # 2 · 4 tokens in 0.5 + 4 · 0.5 and in 4 seconds
    assert sample._rates(peer, "x", PriorModel(**BY_HAND), taken_s) == pytest.approx([3.2, 2.0])


def test_the_growth_is_by_rows_of_the_image():
    images = [[9, 1, 2, 2], [7, 3, 2, 4]]
    assert sample._row_step_s(images, 2) == [5, 2]


# ---- the limit


def test_the_work_of_a_dense_layer_by_hand():
    # weights 12·2² + 2·3 = 54; the caption 2 slots · 4·2²; a candidate 2·54·4 + 4·2·(4 slots · 2 + 10 pairs);
    # keys 4·2 for all candidates and 10 for each
    config = PriorModel(**BY_HAND, depth=1, attention="dense")
    assert sides_sample.work(config, 3, 2) == {"flops": 32 + 3 * 576, "bytes": 2 * (4 * 54 + 2 * 2 * (8 + 3 * 10))}


def test_the_work_of_sparse_layers_by_hand():
    # row: offsets 0, 1, 2 are met by 4, 3 and 2 slots; a convolution of one by 4. The first layer reads the caption whole:
    # 2 · 24·2², and 3 pairs
    config = PriorModel(**BY_HAND, depth=2, conv_kernel=1)
    caption, candidate = 2 * (96 + 16) + 8 * 3, 2 * 102 * 4 + 8 * (2 * 8 + 13)
    assert sides_sample.work(config, 3, 2) == {
        "flops": caption + 3 * candidate,
        "bytes": 2 * (4 * 102 + 4 * (16 + 3 * 13)),
    }


# ---- ours, and the cases


def test_a_warmup_ends_early_and_an_image_after_it_is_whole(tmp_path):
    notes = tmp_path / "notes.jsonl"
    calls = sides_sample.ours(TINY, 3, Sampling(precision="fp32", chunk=2), notes)
    calls["warmup"]()
    assert not notes.exists()
    for images in (1, 2):
        calls["image"]()
        records = sides_sample.read_notes(notes)
        assert [record["chunk"] for record in records] == images * [2, 2]  # the last is padded
        assert len(records[-1]["step_s"]) == 16 and min(records[-1]["step_s"]) > 0


def test_a_quick_run_says_all(monkeypatch, capsys):
    monkeypatch.setattr(sample, "Side", InThisProcess)
    monkeypatch.setattr(sample, "_PROCESS_BYTES", 0)
    monkeypatch.setattr(sides_sample, "best_rate", lambda call, work: 1e12)
    monkeypatch.setattr(peers_prior, "why_no_dalle_pytorch", lambda config: "not today")
    monkeypatch.setattr(peers_sample, "why_no_transformers", lambda: "nor this")
    monkeypatch.setattr(sys, "argv", ["bench.py", "sample", "--quick", "--no-compile"])
    bench.main()
    out, err = capsys.readouterr()
    assert err.splitlines()[:2] == [
        "transformers is left out at N = 2: nor this",
        "dalle_pytorch is left out at N = 2: not today",
    ]
    cases = json.loads(out.splitlines()[-1])["cases"]
    assert [case["name"] for case in cases] == ["sample N=2", "sample N=4"]
    config = PriorModel(**sample._TINY)
    for case, n in zip(cases, (2, 4), strict=True):
        assert case["unit"] == "tokens/s"
        assert set(case["peers"]) == set(case["ratio"]) == set(case["peers_peak_memory_bytes"]) == {"dense_cache"}
        both = case["settings"]["peer_precisions"]
        assert set(both) == {"dense_cache fp32", "dense_cache bf16"}
        assert case["peers"]["dense_cache"] == max(both.values())
        assert case["settings"]["chunk"] == n
        assert case["settings"]["peer_steps"] == {"dense_cache": {"steps": 2, "start": 0, "middle": 7, "end": 14}}
        asked = sides_sample.work(config, n, 2)
        assert case["limit"] == pytest.approx(n * 16 * 1e12 / max(asked.values()))
        assert case["images_per_s"] == pytest.approx(case["ours"] / 16)
        # the first step has the caption's pass in it, which is longer than a later step
        assert n / case["images_per_s"] > case["first_token_s"] > median(case["row_step_s"][1:])
        assert len(case["row_step_s"]) == 4
        assert case["growth"] == pytest.approx(case["row_step_s"][3] / case["row_step_s"][1])
        dense_bytes = peers_sample.dense_cache_bytes(config, n, 2)
        assert case["cache_fraction_of_dense"] == pytest.approx(case["cache_bytes"] / dense_bytes)
        assert case["cache_bytes"] > 0
    few, many = cases
    assert "rerank" not in few  # 4 is nearer to 64
    rerank = many["rerank"]
    reranking_s = rerank["decode_s"] + rerank["score_s"]
    assert rerank["share"] == pytest.approx(reranking_s / (reranking_s + 4 / many["images_per_s"]))
    assert rerank["images_timed"] == 2


@pytest.mark.gpu
def test_the_benchmark_on_a_gpu():
    words = ["--n", "16", "--repeats", "2", "--depth", "2", "--grid", "8", "--no-rerank"]
    command = [sys.executable, "tools/bench.py", "sample", "--json", *words]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=900)
    case = json.loads(done.stdout.splitlines()[-1])
    assert 0 < case["fraction_of_limit"] < 1
    assert case["peers"]["dense_cache"] > 0
