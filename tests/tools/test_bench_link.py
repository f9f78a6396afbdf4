"""The benchmarks of what machines exchange: Table 1 from the compressor's calls, trainings over a link, and what is made of
their notes."""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dalle.data.tokens import TokenBatches, TokenShards
from dalle.gradients.overlap import Overlap
from dalle.gradients.sharded import Sharded
from dalle.models.folder import read_header
from dalle.text import Tokenizer
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
compress, link, link_worker, machines, patterns = (
    importlib.import_module(f"benchmarks.{name}")
    for name in ("compress", "link", "link_worker", "machines", "patterns")
)


# ---- Table 1


@pytest.fixture(scope="module")
def compressed():
    (result,) = compress.run(argparse.Namespace(json=True))
    return result


def test_the_rates_of_table_1_to_the_printed_digit(compressed):
    assert {name: f"{rate:.0%}" for name, rate in compressed["rates"].items()} == {
        "2b8": "83%",
        "5b6": "85%",
        "12b": "86%",
    }


def test_a_12b_update_in_megabytes(compressed):
    # by hand: 64 layers of 12 D² weights over 8 GPUs, and P and Q of 1 − 5r/(8D) fewer elements
    matrices_mb, left = 64 * 12 * 3968**2 / 8 / 1e6, 5 * 896 / (8 * 3968)
    of_12b = compressed["sizes"]["12b"]
    assert of_12b["matrices"] == pytest.approx({"fp32": 4 * matrices_mb, "bf16": 2 * matrices_mb})
    sixteen = 2 * left * matrices_mb
    assert of_12b["compressed"] == pytest.approx({"fp32": 2 * sixteen, "bf16": sixteen, "1-6-9": sixteen})
    # 12,292,840,960 parameters in all (`dalle-describe`); a shard that does not divide is rounded up, by a few elements
    assert of_12b["rest"] == pytest.approx(4 * (12292.84096 / 8 - matrices_mb), rel=1e-5)
    assert compressed["ours"] == pytest.approx(sixteen + of_12b["rest"])
    assert compressed["fraction_of_limit"] == pytest.approx(1)  # the compressor sends P and Q and nothing else


# ---- the data


def test_patterns_are_token_shards_of_drawn_scenes(tmp_path):
    for name in ("one", "other"):
        patterns.write(tmp_path / name, 300, 20)
    one = tmp_path / "one"
    tokenizer = Tokenizer.load(one / "tokenizer.json")
    assert tokenizer.vocabulary <= patterns.TEXT_VOCABULARY
    train, valid = TokenShards(one / "train"), TokenShards(one / "valid")
    assert (len(train), len(valid)) == (300, 20)
    assert train.meta.dvae_hash == valid.meta.dvae_hash == read_header(one / "dvae")["hash"]
    batch = TokenBatches(train, tokenizer, 31, 300, seed=0)[0]
    codes = batch["codes_BI"]
    assert codes.shape == (300, patterns.GRID**2)
    assert codes.min() >= 0 and codes.max() < patterns.CODEBOOK_SIZE
    # the plain patches are what is seen most: three backgrounds, six colours, each with a code of its own
    most = torch.bincount(codes.flatten(), minlength=patterns.CODEBOOK_SIZE).sort(descending=True).values
    assert most[2] > 5 * most[3] and most[8] > 5 * most[9]
    again = TokenBatches(TokenShards(tmp_path / "other" / "train"), tokenizer, 31, 300, seed=0)[0]
    assert torch.equal(again["codes_BI"], codes) and torch.equal(again["text_BU"], batch["text_BU"])


# ---- trainings over a link


def _options(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    link.add_options(parser)
    return parser.parse_args(["--json", *words])


def _notes(update_s, sent_bytes, exposed_s=(0.1, 0.1)):
    """Of a training whose first updates were slow."""
    own = {"update_s": [9, 9, *update_s], "sent_bytes": [0, 0, *sent_bytes], "exposed_s": [8, 8, *exposed_s]}
    return own | {"peak_memory_bytes": 5, "parameters": 7}


TIMED = {
    "uncompressed": [_notes([2.0, 2.5], [10_000_000] * 2), _notes([2.0, 2.0], [10_000_000] * 2)],
    "uncompressed_bf16": [_notes([1.25, 1.25], [5_000_000] * 2)],
    "4": [_notes([0.2, 0.3], [100_000] * 2), _notes([0.25, 0.25], [100_000] * 2)],
    "4, after_backward": [_notes([0.3, 0.3], [100_000] * 2)],
    "8": [_notes([0.5, 0.5], [1_000_000] * 2), _notes([0.4, 0.5], [1_000_000] * 2)],
    "8, after_backward": [
        _notes([1.0, 0.9], [1_000_000] * 2, (0.5, 0.3)),
        _notes([1.0, 1.0], [1_000_000] * 2, (0.4, 0.4)),
    ],
    "16": [_notes([1.0, 1.0], [2_000_000] * 2), _notes([1.0, 1.0], [2_000_000] * 2)],
    "16, after_backward": [_notes([1.5, 1.5], [2_000_000] * 2)],
}


def test_ours_is_the_smallest_rank_from_which_on_no_more_than_a_hundredth_is_lost():
    losses = {
        "uncompressed": [1.0, 1.2],
        "uncompressed_bf16": [3.0, 3.0],
        "4": [1.13, 1.1],
        "8": [1.02, 1.2],
        "16": [1.0, 1.0],
    }
    result = link.case(_options(), 100.0, 80.0, TIMED, losses)
    assert result["name"] == "link 100 Mbit/s, rank 8"
    assert (result["ours"], result["peers"]["uncompressed"]) == (2.0, 0.5)
    assert result["ratio"]["uncompressed"] == 4.0
    assert result["peers"] == {"uncompressed": 0.5, "uncompressed_bf16": 0.8, "after_backward": 1.0}
    assert result["ratio"]["after_backward"] == 2.0
    assert result["exposed_s"]["8"] == 0.1 and result["exposed_of_after_backward"] == pytest.approx(0.25)
    assert result["limit"] == pytest.approx(10)
    assert result["fraction_of_limit"] == pytest.approx(0.2)
    expected = {"uncompressed": 1.1, "uncompressed_bf16": 3.0, "4": 1.115, "8": 1.11, "16": 1.0}
    assert result["loss"] == pytest.approx(expected)
    assert result["loss_above_uncompressed"] == pytest.approx(0.01 / 1.1)
    assert result["spread"]["8"] == [2.5, 2.0]
    json.dumps(result)


def test_where_no_rank_is_good_enough_ours_is_the_best():
    losses = {"uncompressed": [1.0], "4": [1.5], "8": [1.2], "16": [1.3]}
    result = link.case(_options(), 100.0, 80.0, TIMED, losses)
    assert result["name"] == "link 100 Mbit/s, rank 8"
    assert result["loss_above_uncompressed"] == pytest.approx(0.2)


def test_a_lucky_small_rank_is_not_chosen():
    losses = {"uncompressed": [1.0], "4": [1.0], "8": [1.2], "16": [1.005]}
    assert link.case(_options(), 100.0, 80.0, TIMED, losses)["name"] == "link 100 Mbit/s, rank 16"


@pytest.fixture
def pretended(monkeypatch):
    """No machines: the jobs that would run on them, by link, are noted as done."""
    ran = []

    def train(joined, words, per_machine, timeout_s):
        jobs_file, _, notes_file = words[2:]
        jobs = json.loads(Path(jobs_file).read_text())
        ran.append(jobs)
        with open(notes_file, "a") as file:
            for job in jobs:
                notes = _notes([1.0 + (job["rank"] or 0)] * 2, [1000] * 2) | {"valid": {"loss": 1.0 + job["seed"]}}
                file.write(json.dumps({"job": job} | notes) + "\n")

    monkeypatch.setattr(machines, "why_none", lambda: None)
    monkeypatch.setattr(machines, "joined", lambda count, mbit: machines.contextlib.nullcontext([None] * count))
    monkeypatch.setattr(machines, "measured_mbit", lambda sender, receiver, num_bytes: num_bytes * 8e-6)
    monkeypatch.setattr(machines, "run", train)
    monkeypatch.setattr(patterns, "write", lambda folder, *numbers: None)
    return ran


def test_every_setting_is_timed_over_every_link_and_trained_from_every_seed(pretended, tmp_path):
    words = ["--mbit", "100", "1000", "--ranks", "8", "4", "--seeds", "2", "--output", str(tmp_path / "notes.jsonl")]
    cases = link.run(_options(*words))
    assert [case["settings"]["mbit"] for case in cases] == [100, 1000]
    assert cases[0]["loss_by_seed"] == {name: [1.0, 2.0] for name in ("uncompressed", "uncompressed_bf16", "4", "8")}
    jobs = [job for together in pretended for job in together]
    trained = [(None, "fp32", True), (None, "bf16", True), (4, "fp32", True), (8, "fp32", True)]
    timed = [*trained[:3], (4, "fp32", False), trained[3], (8, "fp32", False)]
    assert [(job["mbit"], job["rank"], job["wire"], job["overlapped"]) for job in jobs] == [
        *[(100, *each) for _ in range(2) for each in timed],
        *[(1000, *each) for _ in range(2) for each in timed],
        *[(None, *each) for _ in range(2) for each in trained],
    ]
    assert all(len({job["mbit"] for job in together}) == 1 for together in pretended)
    pretended.clear()
    # what has been run is not run again, and what is new is
    assert link.run(_options(*words)) == cases and not pretended
    link.run(_options(*words, "--seeds", "3"))
    assert [(job["mbit"], job["rank"], job["seed"]) for (job, *_) in pretended] == [(None, None, 2)]
    assert len(pretended[0]) == 4


def test_what_is_not_overlapped_is_not_heard_of_before_the_backward_pass_has_ended():
    plain = Sharded.tell_reduced
    for overlapped in (True, False):
        with link_worker._exposed(overlapped) as waited_s:
            assert (Sharded.tell_reduced is plain) == overlapped
            assert overlapped or not Sharded.tell_reduced(None, None)
            overlap = Overlap(
                [["a"]], lambda number: iter([SimpleNamespace(wait=lambda: time.sleep(0.01))]), torch.device("cpu")
            )
            overlap.open()
            overlap.finish()
        assert Sharded.tell_reduced is plain and len(waited_s) == 1 and 0.01 <= waited_s[0] < 5


def test_without_machines_it_says_why(monkeypatch):
    monkeypatch.setattr(machines, "why_none", lambda: "no tc here: install iproute2")
    with pytest.raises(SystemExit, match=r"bench\.py link: no tc here: install iproute2"):
        link.run(_options())


@pytest.mark.skipif(machines.why_none() is not None, reason=str(machines.why_none()))
def test_a_training_runs_on_two_machines(tmp_path):
    """Three updates each: half the bytes cross the link in 16 bits, far fewer compressed, and the loss is that of a model. What
    begins after the backward pass sends the same."""
    patterns.write(tmp_path, 300, 8)
    options = _options("--width", "128", "--depth", "2", "--repeats", "1")
    settings = [link.Setting(), link.Setting(wire="bf16"), link.Setting(8, overlapped=False), link.Setting(8)]
    jobs = [link._job(options, None, each, 0, each == settings[-1]) for each in settings]
    jobs = [job | {"steps": 4} for job in jobs]
    notes = link.Notes(tmp_path / "notes.jsonl")
    link._train(jobs, tmp_path, notes)
    plain, in_16_bits, after, ranked = (notes.of(job) for job in jobs)
    parameters = plain["parameters"]
    assert len(plain["update_s"]) == 3 and min(plain["update_s"]) > 0
    # each of the two processes sends its half of the gradients once: 4 bytes for each of all parameters
    assert 4 * parameters < min(plain["sent_bytes"]) and max(plain["sent_bytes"]) < 4.4 * parameters
    assert 2 * parameters < min(in_16_bits["sent_bytes"]) and max(in_16_bits["sent_bytes"]) < 2.3 * parameters
    assert min(after["sent_bytes"]) == pytest.approx(min(ranked["sent_bytes"]), rel=0.05)
    for each in (plain, after):
        assert all(0 < exposed < update for exposed, update in zip(each["exposed_s"], each["update_s"], strict=True))
    matrices = 2 * 12 * 128**2
    # rank 8 of width 128 in 2 of 4 bytes is a 32nd of the matrices' bytes
    expected = 4 * (parameters - matrices) + 4 * matrices / 32
    assert expected < min(ranked["sent_bytes"]) and max(ranked["sent_bytes"]) < 1.15 * expected
    assert plain["valid"] == {} and 3 < ranked["valid"]["loss"] < 6
