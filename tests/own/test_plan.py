"""What is planned for whose pictures: sound for anybody's, and no smaller for those who give more."""

import dataclasses
import typing
from itertools import pairwise, product

import pytest
import yaml

from dalle.cli import arguments
from dalle.config import Tokenize, TrainCLIP, TrainDVAE, TrainPrior, TrainTokenizer, unreached_schedules
from dalle.models.flops import prior_flops
from dalle.own import budget, needs
from dalle.own.facts import Machine, Pictures
from dalle.own.plan import (
    MINUTES,
    PASSES,
    choose_batch,
    choose_clip,
    choose_clip_batch,
    choose_sizes,
    choose_text_slots,
    choose_vocabulary,
    deserved_minutes,
    expected_update_s,
    fit_clip_batch,
)
from dalle.own.settings import choose_crops, stage_settings, with_updates
from tests.conftest import ROOT

_PATHS = {"data": "d", "output": "o"}
_CLASSES = {"tokenizer": TrainTokenizer, "dvae": TrainDVAE, "tokens": Tokenize, "prior": TrainPrior, "clip": TrainCLIP}
_MORE = {"tokens": {"dvae": "v"}, "prior": {"dvae": "v", "tokenizer": "t"}, "clip": {"dvae": "v", "tokenizer": "t"}}
TWO_CORES = Machine(0, 2, 4e11, 16 * 10**9, 50 * 10**9)
ONE_GPU = Machine(1, 16, 4e14, 80 * 10**9, 10**12)
FOUR_GPUS = Machine(4, 64, 16e14, 80 * 10**9, 10**12)
PAIRS = (1, 3, 12, 50, 499, 500, 4_000, 12_406, 30_000, 200_000, 5_000_000)


def pictures(
    pairs: int = 500, side_px: int = 256, words: float = 6, chars: int = 80, captions: float = 1.0
) -> Pictures:
    return Pictures(pairs, min(500, pairs // 20), captions, words, chars, side_px)


def _settings(found, machine, minutes):
    sizes = choose_sizes(found, machine, minutes)
    update_s = expected_update_s(sizes, machine)
    shared = budget.share(60 * minutes, budget.STAGES, update_s, budget.most_updates(sizes, found))
    return sizes, stage_settings(sizes, shared.updates, found, machine, seed=0)


def _built(cls: type, values: dict):
    """An instance with all checks of its dataclass, as `arguments.parse_model` makes it, without a parser for each."""
    hints = typing.get_type_hints(cls)
    nested = {
        name: _built(hints[name], value)
        if dataclasses.is_dataclass(hints[name])
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in values.items()
    }
    return cls(**nested)


@pytest.mark.parametrize("machine", [TWO_CORES, ONE_GPU, FOUR_GPUS], ids=["two cores", "one GPU", "four GPUs"])
def test_every_plan_is_taken_by_the_commands(machine):
    for pairs, side_px, minutes in product(PAIRS, (1, 40, 100, 600), (0.1, 5, 60, 480)):
        found = pictures(pairs, side_px, *((6, 80) if side_px < 200 else (40, 1900)))
        sizes, settings = _settings(found, machine, minutes)
        for stage, values in settings.items():
            config = _built(_CLASSES[stage], values | _PATHS | _MORE.get(stage, {}))
            if stage in ("dvae", "prior", "clip"):
                assert not unreached_schedules(config), (stage, found, minutes)
                config.run.micro_batch_size(machine.devices)
        assert sizes.prior.grid == sizes.dvae.grid and sizes.prior.codebook_size == sizes.dvae.codebook_size
        assert sizes.clip.image_size_px % sizes.dvae.downsampling == 0  # which it is trained on after the dVAE
        assert sizes.prior.text_vocabulary == settings["tokenizer"]["vocabulary"]


def test_a_plan_is_read_as_it_was_built():
    """The parser of the commands agrees with the builder of these tests."""
    _, settings = _settings(pictures(), TWO_CORES, 30)
    for stage, values in settings.items():
        whole = values | _PATHS | _MORE.get(stage, {})
        assert arguments.parse_model(_CLASSES[stage], whole, stage) == _built(_CLASSES[stage], whole)


def test_all_values_are_plain():
    """As YAML holds them: what is read back is what was written."""
    import yaml

    _, settings = _settings(pictures(), TWO_CORES, 30)
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings


@pytest.mark.parametrize("machine", [TWO_CORES, ONE_GPU], ids=["two cores", "one GPU"])
@pytest.mark.parametrize("side_px", [40, 256])
def test_more_minutes_make_no_smaller_images_and_no_smaller_prior_of_them(machine, side_px):
    for pairs in PAIRS:
        plans = [choose_sizes(pictures(pairs, side_px), machine, minutes) for minutes in (0.2, 3, *MINUTES, 3000)]
        for less, more in pairwise(plans):
            assert more.dvae.image_size_px >= less.dvae.image_size_px
            if more.dvae.grid == less.dvae.grid:
                assert prior_flops(more.prior) >= prior_flops(less.prior)


@pytest.mark.parametrize("machine", [TWO_CORES, ONE_GPU], ids=["two cores", "one GPU"])
def test_more_pictures_make_nothing_smaller(machine):
    for minutes in (3, 30, 480):
        plans = [choose_sizes(pictures(pairs), machine, minutes) for pairs in PAIRS]
        for less, more in pairwise(plans):
            assert more.dvae.image_size_px == less.dvae.image_size_px  # of the same sides and time
            assert more.dvae.codebook_size >= less.dvae.codebook_size
            assert more.prior.width >= less.prior.width and more.prior.depth >= less.prior.depth
            assert more.vocabulary >= less.vocabulary
            assert more.batch >= less.batch and more.clip_batch >= less.clip_batch
        waits = [deserved_minutes(pictures(pairs), machine) for pairs in PAIRS]
        assert waits == sorted(waits) and waits[0] == MINUTES[0]
    assert deserved_minutes(pictures(5_000_000), TWO_CORES) == MINUTES[-1]


def test_what_is_known_to_work_is_what_is_planned():
    """The demo's and the emoji's configurations, at the times that they took."""
    emoji = choose_sizes(pictures(1_000, 256, captions=5), TWO_CORES, 34)
    assert (emoji.dvae.image_size_px, emoji.dvae.grid, emoji.dvae.codebook_size) == (64, 16, 512)
    assert (emoji.prior.width, emoji.prior.depth, emoji.prior.heads) == (192, 6, 3)
    assert emoji.dvae_step_size == 3e-3 and emoji.prior_step_size == pytest.approx(1.5e-3, rel=0.1)
    assert (emoji.batch, emoji.clip_batch) == (16, 128)
    small = choose_sizes(pictures(1_000, 32), TWO_CORES, 34)
    assert (small.dvae.image_size_px, small.dvae.grid) == (32, 8)
    hours = choose_sizes(pictures(12_406, 256, captions=5), TWO_CORES, 480)
    assert (hours.dvae.image_size_px, hours.dvae.grid, hours.prior.width) == (128, 16, 256)
    # of 500 pictures in half an hour, the prior sees each often enough to know it by heart
    sizes, settings = _settings(pictures(500), TWO_CORES, 30)
    assert settings["prior"]["run"]["steps"] * sizes.batch >= PASSES * 500
    assert sizes.dvae.image_size_px == 64


def test_no_picture_is_enlarged_much():
    for side_px in (1, 42, 43, 85, 86, 170, 171, 1000):
        size_px = choose_sizes(pictures(10_000, side_px), FOUR_GPUS, 480).dvae.image_size_px
        assert size_px == 32 or size_px <= 1.5 * side_px
    assert choose_sizes(pictures(10_000, 171), FOUR_GPUS, 480).dvae.image_size_px == 256


def test_words_decide_the_vocabulary_and_the_slots():
    assert choose_vocabulary(pictures(3)) == 512
    assert choose_vocabulary(pictures(6_652, words=6.2, captions=5)) == 2048  # emoji: 206,000 words
    assert choose_vocabulary(pictures(5_000_000, words=10)) == 16_384
    assert choose_text_slots(pictures(words=6, chars=80)) == 32
    assert choose_text_slots(pictures(words=6, chars=20)) == 16
    assert choose_text_slots(pictures(words=6, chars=5000)) == 32  # one long caption does not slow all others
    assert choose_text_slots(pictures(words=200, chars=5000)) == 256
    # 16 tokens, and two more
    assert choose_text_slots(pictures(words=4, chars=300)) == choose_text_slots(pictures(words=9, chars=48)) == 32
    clip = choose_clip(choose_sizes(pictures(), TWO_CORES, 30).dvae, 32)
    assert clip.text_slots == 34 and clip.image_size_px == 64 and clip.patch_px == 8


def test_batches_are_no_larger_than_the_data():
    assert choose_batch(pictures(3), TWO_CORES) == 4
    assert choose_batch(pictures(12), TWO_CORES) == 8
    assert choose_batch(pictures(10**6), TWO_CORES) == 16
    assert choose_batch(pictures(10**6), FOUR_GPUS) == 4 * 64
    assert choose_clip_batch(pictures(500), TWO_CORES) == 128
    assert choose_clip_batch(pictures(100), FOUR_GPUS) == 4 * 64


def test_a_reranker_that_is_slow_sees_fewer_pairs_at_once():
    sizes = choose_sizes(pictures(), TWO_CORES, 30)  # of which the reranker has 252 s
    assert sizes.clip_batch == 128
    assert [fit_clip_batch(sizes, s, 30).clip_batch for s in (4.1, 4.3, 8.5, 1e9)] == [128, 64, 32, 16]
    assert fit_clip_batch(choose_sizes(pictures(12), TWO_CORES, 30), 1e9, 30).clip_batch == 8  # all that there are
    assert fit_clip_batch(choose_sizes(pictures(10**6), FOUR_GPUS, 30), 8.5, 30).clip_batch == 256


def test_crops_come_where_pictures_are_known_by_heart():
    assert [choose_crops(passes) for passes in (0.1, 199, 200, 399, 400, 1e9)] == [1, 1, 1, 1, 2, 8]


def test_what_is_no_size_is_that_of_the_emoji():
    """`configs/emoji` are trainings of as many minutes that were seen to work, and what is planned says it comes from there."""
    _, settings = _settings(pictures(), TWO_CORES, 30)
    for stage in ("dvae", "prior", "clip"):
        planned = settings[stage]
        emoji = yaml.safe_load((ROOT / f"configs/emoji/{stage}.yaml").read_text())
        for name in planned.keys() & emoji.keys() - {"run", "optimizer", "model"}:
            assert planned[name] == emoji[name], (stage, name)
        # the warm-up is a share of runs of any length here, and a wider prior has smaller steps
        steps, steps_there = planned["optimizer"].pop("step_size"), emoji["optimizer"].pop("step_size")
        assert planned["optimizer"] == emoji["optimizer"]
        assert (steps["end"], steps["end_step"]) == (steps_there["end"], steps_there["end_step"])
        assert steps["start"] == pytest.approx(steps_there["start"], rel=0.1)
    for stage in ("dvae", "clip"):  # the prior's vocabulary follows the number of words
        emoji = yaml.safe_load((ROOT / f"configs/emoji/{stage}.yaml").read_text())["model"]
        assert {name: settings[stage]["model"][name] for name in emoji} == emoji


def test_lengths_follow_the_updates():
    _, settings = _settings(pictures(), TWO_CORES, 30)
    for stage in ("dvae", "prior", "clip"):
        longer = with_updates(settings[stage], 2000)
        assert longer["run"]["steps"] == 2000 and longer["run"]["ema_decay"] == 0.99  # as configs/emoji has it
        assert longer["run"]["log_every_steps"] == 50
        assert {n: v for n, v in longer.items() if n != "run"} == {
            n: v for n, v in settings[stage].items() if n != "run"
        }
        assert [with_updates(longer, n)["run"]["log_every_steps"] for n in (40, 79, 80, 10**6)] == [1, 2, 2, 100]
        shorter = with_updates(longer, 21)
        assert 0 < shorter["run"]["log_every_steps"] <= 21 and shorter["run"]["ema_decay"] == 0.9
    assert with_updates(settings["prior"], 2000)["run"]["validate_every_steps"] == 500
    assert with_updates(settings["clip"], 2000)["run"]["validate_every_steps"] == 0


def test_memory_and_disk_are_refused_in_one_line():
    sizes = choose_sizes(pictures(), TWO_CORES, 30)
    batches = {"dvae": sizes.batch, "prior": sizes.batch}
    memory, disk = needs.memory_bytes(sizes, TWO_CORES, batches), needs.disk_bytes(sizes, 10**7, 500, 1)
    # the emoji's prior, of these sizes, has 3.5 M weights; its training was seen to hold about 2 GB
    assert needs.prior_weights(sizes) == pytest.approx(3.4e6, rel=0.15)
    assert 1.5e9 < memory < 4e9 and 5e7 < disk < 2e9
    assert "of main memory" in needs.check_room(TWO_CORES, memory, disk, "out")[0]
    assert len(needs.check_room(TWO_CORES, int(0.8 * TWO_CORES.memory_bytes), disk, "out")) == 2
    with pytest.raises(ValueError, match=r"^output out: the training writes about \d+ MB and 1 MB are free"):
        needs.check_room(Machine(0, 2, 4e11, 16 * 10**9, 10**6), memory, disk, "out")
    with pytest.raises(ValueError, match=r"memory: .*GB of each GPU's memory, .*--prior.run.batch_size"):
        needs.check_room(Machine(1, 2, 4e11, 10**9, 10**12), memory, disk, "out")
    assert needs.disk_bytes(sizes, 10**7, 500, 8) > disk
    # a smaller batch, which is what is advised, takes less, and of four GPUs each has a quarter
    few = needs.memory_bytes(sizes, TWO_CORES, batches | {"prior": sizes.batch // 4})
    assert memory - few == 34 * (12 * sizes.prior.slots * sizes.prior.width * sizes.prior.depth)
    large = choose_sizes(pictures(10**6), FOUR_GPUS, 480)
    assert needs.memory_bytes(large, FOUR_GPUS, {"prior": 256}) == needs.memory_bytes(large, ONE_GPU, {"prior": 64})
    assert (
        needs.memory_bytes(large, ONE_GPU, {"prior": 256}) > needs.memory_bytes(large, ONE_GPU, {"prior": 64}) > memory
    )
