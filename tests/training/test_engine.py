"""One engine for every stage: its noise, recomputation and compilation."""

import functools

import pytest
import torch
from torch import nn

from dalle.cluster.topology import World
from dalle.config import CLIPModel, DVAEModel, Optimizer, PriorModel, PriorObjective, Run, Schedule
from dalle.models.clip import CLIP
from dalle.models.dvae import DVAE
from dalle.models.prior import Prior
from dalle.objectives.clip import CLIPObjective
from dalle.objectives.dvae import DVAEObjective, uniform_noise
from dalle.objectives.prior import PriorObjective as PriorLoss
from dalle.optim.ema import EMA
from dalle.text import PAD, Tokenizer
from dalle.training.engine import Engine

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Noise(nn.Module):
    """Shows what the generator gives."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(1, 1)

    def forward(self, batch):
        return self.model.weight.sum(), {"noise": torch.rand((), device=DEVICE)}


def _dvae():
    config = DVAEModel(image_size_px=8, codebook_size=6, encoder_width=8, width_multipliers=(1, 2), blocks_per_group=1)
    batch = {name: torch.tensor(1.0) for name in ("kl_weight", "temperature", "noise_scale")}
    batch["images_BCYX"] = torch.arange(4 * 3 * 64).view(4, 3, 8, 8).to(torch.uint8)
    batch["uniform_BYXK"] = uniform_noise(config, range(4), torch.device("cpu"))
    return DVAEObjective(DVAE(config)), batch


class _Normed(nn.Module):
    """A loss behind a batch normalisation, whose model may be called before the update as well."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))

    def forward(self, batch):
        loss = self.model(batch["x_BCYX"]).square().mean()
        return loss, {"loss": loss.detach()}


def _prior():
    config = PriorModel(text_slots=4, grid=2, text_vocabulary=5, codebook_size=7, width=32, depth=2, heads=2)
    batch = {"text_BU": torch.tensor([[1, 2, PAD], [3, PAD, PAD]]), "text_targets": torch.tensor(3.0)}
    batch["codes_BI"] = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]])
    return PriorLoss(Prior(config), PriorObjective()), batch


def _clip():
    captions = ["a red circle", "a blue square"]
    sizes = {"image_size_px": 16, "vision_width": 64, "vision_layers": 1, "text_width": 64, "text_layers": 1}
    model = CLIP(CLIPModel(**sizes, text_slots=8, embedding_width=16), Tokenizer.train(captions, 260))
    images = torch.arange(2 * 3 * 256).view(2, 3, 16, 16).to(torch.uint8)
    batch = {"images_BCYX": images, "clip_tokens_BU": model.tokens(captions), "identities_BK": torch.arange(2)[:, None]}
    return CLIPObjective(model), batch


def _engine(objective: nn.Module, rank: int = 0, **run) -> Engine:
    run = Run(**{"steps": 2, "batch_size": 2, "precision": "fp32"} | run)
    return Engine(objective, Optimizer(Schedule(1e-3, 1e-3)), run, World(rank, 1, DEVICE))


def _losses(make, **run) -> list[float]:
    torch.manual_seed(0)
    objective, batch = make()
    engine = _engine(objective, **run)
    batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
    return [engine.update([dict(batch)], step, 1e-3)["loss"].item() for step in range(2)]


def test_noise_is_a_function_of_seed_update_and_rank():
    engines = [_engine(_Noise(), rank, seed=seed) for seed in (0, 2**40) for rank in (0, 1)]
    first, again = (
        [e.update([{}], step, 1e-3)["noise"].item() for e in engines for step in (0, 2**20)] for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 8


@pytest.mark.parametrize("make", [_dvae, _prior, _clip])
def test_recomputed_is_remembered(make):
    """The same losses after an update, and fewer tensors kept for the backward pass."""
    assert _losses(make, recompute=True) == _losses(make)
    kept = {}
    for recompute in (False, True):
        objective, batch = make()
        _engine(objective, recompute=recompute)
        batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()), lambda _: None):
            objective(batch)
        kept[recompute] = sum(sizes)
    assert kept[True] < 0.8 * kept[False]


@pytest.mark.parametrize(("make", "zero_stage"), [(_dvae, 0), (_clip, 1), (_prior, 2)])
def test_compiled_is_eager(monkeypatch, make, zero_stage):
    # traced and differentiated, but run by PyTorch's own kernels: building others takes a minute
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = _losses(make, compile=True, zero_stage=zero_stage)
    # most of an objective, the model included
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 50
    # the same kernels, with sums in another order; one AdamW update
    assert compiled == pytest.approx(_losses(make, zero_stage=zero_stage), abs=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("make", "run"),
    [(make, {}) for make in (_dvae, _prior, _clip)]
    + [(_prior, {"precision": precision}) for precision in ("bf16", "fp16", "fp16-per-block")]
    + [(_prior, {"precision": "bf16", "weights": "16-bit"})],
)
def test_an_update_never_waits_for_the_gpu(make, run):
    """From stage 1 on DeepSpeed's own norm waits once, at the end."""
    objective, batch = make()
    engine = _engine(objective, **run)
    batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
    engine.update([dict(batch)], 0, 1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.update([dict(batch)], 1, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("steps", "given"), [(2, 1), (2, 4), (1, 2)])
def test_an_update_takes_as_many_micro_batches_as_it_accumulates(steps, given):
    """With others DeepSpeed would step on gradients that nobody averaged or clipped, or not at all."""
    objective, batch = _prior()
    engine = _engine(objective, accumulation_steps=steps)
    before = objective.model.text_head.weight.detach().clone()
    with pytest.raises(AssertionError):
        engine.update([batch] * given, 0, 1e-3)
    assert torch.equal(objective.model.text_head.weight, before)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_averages_take_in_the_weights_behind_each_update(accumulation_steps):
    """Held back before the weights change, updated after, and once an update."""
    torch.manual_seed(0)
    objective, batch = _prior()
    engine = _engine(objective.to(DEVICE), accumulation_steps=accumulation_steps)
    batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
    weight, seen = objective.model.text_head.weight, []

    class Watched(EMA):
        def hold(self):
            seen.append(("hold", weight.detach().clone()))
            super().hold()

        def update(self, step):
            seen.append((f"update {step}", weight.detach().clone()))
            super().update(step)

    ema = Watched(engine.shards.weights(), decay=0.5)
    expected = weight.detach().clone()
    for step in range(3):
        before = weight.detach().clone()
        engine.update([batch] * accumulation_steps, step, 1e-2, ema)
        held, updated = seen
        seen.clear()
        assert (held[0], updated[0]) == ("hold", f"update {step}")
        assert torch.equal(held[1], before) and not torch.equal(updated[1], before)
        assert torch.equal(updated[1], weight)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(ema.averages["text_head.weight"].to(DEVICE), expected)


@pytest.mark.parametrize("before", [False, True])
def test_a_skipped_update_leaves_no_mark_on_the_statistics_of_a_batch_norm(before):
    """Nor on the average of them. As a generator's, whose images are drawn before the players move, they may have changed earlier."""
    torch.manual_seed(0)
    objective = _Normed()
    engine = _engine(objective)
    ema = EMA(engine.shards.weights(), 0.5)
    good = torch.randn(2, 1, 4, 4, device=DEVICE)
    engine.update([{"x_BCYX": good}], 0, 1e-3, ema)
    weights = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
    bad = good.clone()
    bad[0, 0, 0, 0] = torch.nan
    if before:
        objective.model(bad)
    assert engine.update([{"x_BCYX": bad}], 1, 1e-3, ema)["skipped"] == 1
    for name, tensor in objective.model.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(tensor, weights[name]), name
    assert all(average.isfinite().all() for average in ema.averages.values())
    engine.update([{"x_BCYX": good}], 2, 1e-3, ema)
    assert not torch.equal(objective.model[1].running_mean, weights["1.running_mean"])  # and they go on
