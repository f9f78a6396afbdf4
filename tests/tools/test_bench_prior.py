"""The sides of the prior's benchmark: the dense GPT computes what ours does, all of them run, and their cases say all."""

import argparse
import importlib
import json
import subprocess
import sys

import pytest
import torch

from dalle.config import PriorModel, PriorObjective
from dalle.models.flops import attention_flops, prior_flops
from dalle.models.prior import Prior
from dalle.objectives import prior as objectives
from tests.conftest import ROOT, clean_environment
from tests.tools.in_this_process import InThisProcess

sys.path.insert(0, str(ROOT / "tools"))
bench = importlib.import_module("bench")
prior, peers_prior = (importlib.import_module(f"benchmarks.{name}") for name in ("prior", "peers_prior"))

SIZES = {"text_slots": 6, "text_vocabulary": 20, "codebook_size": 16, "width": 32, "depth": 5, "heads": 2}
TINY = PriorModel(**SIZES, grid=4)


pytestmark = pytest.mark.usefixtures("one_thread")


needs_dalle_pytorch = pytest.mark.skipif(
    peers_prior.why_no_dalle_pytorch(TINY) is not None, reason=str(peers_prior.why_no_dalle_pytorch(TINY))
)


def test_the_dense_gpt_is_ours():
    torch.manual_seed(0)
    ours, gpt = Prior(PriorModel(**SIZES, grid=4, attention="dense")), peers_prior.GPT(TINY)
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.3)  # so that attention is far from uniform
    names = dict(zip(gpt.state_dict(), ours.state_dict(), strict=True))  # both in the order of the model

    def as_theirs(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.T if name.endswith("mlp.project.weight") else tensor  # ours is stored by inputs

    gpt.load_state_dict({theirs: as_theirs(name, ours.state_dict()[name]) for theirs, name in names.items()})
    text_BU, codes_BI = torch.randint(0, 20, (2, 5)), torch.randint(0, 16, (2, 16))
    text_BU[0, 3:] = -1  # a short caption
    inputs = {"text_BU": text_BU, "codes_BI": codes_BI, "text_targets": (text_BU >= 0).sum().float()}
    loss, _ = objectives.PriorObjective(ours, PriorObjective())(inputs)
    theirs = gpt(text_BU, codes_BI)
    loss.backward()
    theirs.backward()
    torch.testing.assert_close(theirs, loss)
    gradients = {name: as_theirs(name, p.grad) for name, p in ours.named_parameters()}
    for name, p in gpt.named_parameters():
        largest = gradients[names[name]].abs().max()
        # fp32 sums in another order, which the layers below the last amplify
        torch.testing.assert_close(p.grad / largest, gradients[names[name]] / largest, rtol=0, atol=1e-4, msg=name)


def test_a_training_step_runs_on_every_side():
    for recompute in (False, True):
        _moves(prior._train_ours(TINY, 2, False, recompute), "ours")
    _moves(prior._train_dense(TINY, 2, False), "dense_compiled")


def _moves(calls, name):
    """A step changes the loss of the next, since the batch is the same."""
    assert set(calls) == {"train"}
    step = calls["train"]
    loss = dict(zip(step.__code__.co_freevars, (cell.cell_contents for cell in step.__closure__), strict=True))["loss"]
    with torch.no_grad():
        before = loss()
    step()
    with torch.no_grad():
        after = loss()
    assert before.isfinite() and after < before, name


@needs_dalle_pytorch
def test_dalle_pytorch_has_our_kinds_and_trains():
    model = peers_prior.DALLEPytorch(TINY)
    layers = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
    kinds = [(type(layer).__name__, getattr(layer, "axis", None)) for layer in layers]
    row, column = ("SparseAxialCausalAttention", 0), ("SparseAxialCausalAttention", 1)
    assert kinds == [row, column, row, row, ("SparseConvCausalAttention", None)]
    assert model.dalle.total_seq_len == TINY.slots
    assert not [name for name in peers_prior._UNUSED if isinstance(sys.modules.get(name), peers_prior._Anything)]
    _moves(prior._train_dalle_pytorch(TINY, 2), "dalle_pytorch")


def test_why_there_is_no_dalle_pytorch(monkeypatch):
    monkeypatch.setattr(peers_prior.importlib.util, "find_spec", lambda name: name)
    assert peers_prior.why_no_dalle_pytorch(TINY) is None
    assert "powers of two" in peers_prior.why_no_dalle_pytorch(PriorModel(grid=48))
    monkeypatch.setattr(peers_prior.importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps dalle-pytorch" in peers_prior.why_no_dalle_pytorch(TINY)


def test_stand_ins_are_for_what_is_missing_and_only_for_the_import(monkeypatch):
    monkeypatch.setattr(peers_prior, "_UNUSED", ("json", "no_such_module.inner"))
    with peers_prior._stand_ins():
        from no_such_module.inner import Anything

        assert isinstance(Anything, type)
        assert sys.modules["json"] is json
    assert "no_such_module.inner" not in sys.modules
    with pytest.raises(ImportError):
        importlib.import_module("no_such_module.inner")


@pytest.mark.parametrize("kind", ["dense", *prior.ATTENTION_KINDS])
def test_attention_alone_runs_on_every_side(kind):
    dense = kind == "dense"
    calls = prior._attention_dense(TINY, 2) if dense else prior._attention_ours(kind, TINY, 2, False)
    for what in 2 * prior._PASSES:  # a backward pass after its forward pass
        calls[what]()


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(prior, "Side", InThisProcess)
    monkeypatch.setattr(prior, "best_rate", lambda call, work: 1e12)
    monkeypatch.setattr(prior, "_train_dense", lambda config, batch, compile: _train_dense(config, batch, False))


_train_dense = prior._train_dense  # without the compiler, which takes long


def _options(*words):
    parser = argparse.ArgumentParser()
    bench._add_shared_options(parser)
    prior.add_options(parser)
    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    return parser.parse_args([*sizes, "--no-compile", "--repeats", "1", "--batch_size", "2", *words])


def test_every_case_says_all(in_this_process, monkeypatch, capsys):
    monkeypatch.setattr(peers_prior, "why_no_dalle_pytorch", lambda config: "not today")
    cases = prior.run(_options("--train_grids", "4", "--attention_grids", "3", "4"))
    assert capsys.readouterr().err == "dalle_pytorch is left out: not today\n"
    kinds = [f"prior attention {kind} grid {grid}" for grid in (3, 4) for kind in ("row", "column", "conv")]
    assert [case["name"] for case in cases] == ["prior train", *kinds]
    train, *_, conv = cases
    assert set(train["peers"]) == set(train["ratio"]) == {"dense_compiled"}
    assert train["peers_peak_memory_bytes"] == {"dense_compiled": 5}
    assert (train["peak_memory_bytes"], train["unit"]) == (5, "tokens/s")
    assert train["settings"]["flops_per_sample"] == prior_flops(TINY)
    assert train["limit"] == pytest.approx(1e12 / prior_flops(TINY) * TINY.slots)
    assert (conv["unit"], set(conv["peers"])) == ("calls/s", {"dense"})
    # forward and twice that backward, of two samples
    assert conv["limit"] == pytest.approx(1e12 / (6 * attention_flops("conv", TINY)))
    for what in ("forward_s", "backward_s"):
        assert set(conv["settings"][what]) == {"ours", "dense"}
        assert min(conv["settings"][what].values()) > 0
    json.dumps(cases)


def test_several_grids_show_the_growth(in_this_process, monkeypatch):
    monkeypatch.setattr(peers_prior, "why_no_dalle_pytorch", lambda config: None)
    cases = prior.run(_options("--only", "train", "--train_grids", "3", "4"))
    assert [case["name"] for case in cases] == ["prior train grid 3", "prior train grid 4"]
    assert all(set(case["peers"]) == {"dense_compiled"} for case in cases)


@pytest.mark.gpu
def test_the_benchmark_on_a_gpu():
    words = ["--compile", "--repeats", "3", "--depth", "2", "--attention_grids", "32"]
    command = [sys.executable, "tools/bench.py", "prior", "--json", *words]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=900)
    cases = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert all(0 < case["fraction_of_limit"] < 1 for case in cases)
