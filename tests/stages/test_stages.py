"""What a stage brings to the loop: who looks at held-out data, what CLIP sees of a dVAE."""

import hashlib
import importlib
import itertools
import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch

from dalle.cli import arguments
from dalle.cluster.topology import World
from dalle.config import Images, TrainCLIP, TrainDVAE, TrainPrior, unreached_schedules
from dalle.data.pairs import to_tensor
from dalle.data.samples import read_pairs
from dalle.evaluation.retrieval import retrieval
from dalle.models.dvae import DVAE
from dalle.models.folder import load_dvae, read_header
from dalle.models.likelihood import to_uint8
from dalle.reporting.explanations import FIGURES
from dalle.stages import clip as stages_clip
from dalle.stages.clip import identities, reconstruct
from dalle.stages.cut_captions import CutCaptions
from dalle.stages.dvae import _check_codebook, _schedules_and_noise
from dalle.text import Cuts
from tests.conftest import TINY_CLIP, TINY_DVAE, TINY_PRIOR

CPU = torch.device("cpu")


def _stage(kind: str, models, shapes_folder, world: World, *more: str):
    pairs = ["--data", f"{shapes_folder}/train-*.tar", "--valid_data", f"{shapes_folder}/valid-000.tar"]
    tokens = ["--data", f"{models}/tokens/train", "--valid_data", f"{models}/tokens/valid"]
    inputs = ["--dvae", f"{models}/dvae", "--tokenizer", f"{models}/prior/tokenizer.json"]
    cls, options = {
        "dvae": (TrainDVAE, [*TINY_DVAE, *pairs]),
        "prior": (TrainPrior, [*TINY_PRIOR, *tokens, *inputs]),
        "clip": (TrainCLIP, [*TINY_CLIP, *pairs, *inputs]),
    }[kind]
    config = arguments.parse(cls, "test", [*options, "--run.steps", "1", "--output", "x", *more])
    return importlib.import_module(f"dalle.stages.{kind}").stage(config, world)


@pytest.mark.parametrize("kind", ["dvae", "prior", "clip"])
def test_who_holds_validation_data(models, shapes_folder, kind):
    main, other = (_stage(kind, models, shapes_folder, World(rank, 2, CPU)) for rank in (0, 1))
    assert main.validate and (main.draw or kind == "clip")
    if kind == "prior":  # whose weights may be sharded: all processes validate, and the first alone is asked to draw
        assert other.validate
    else:
        assert other.validate is None and other.draw is None


@pytest.mark.parametrize(("kind", "limit"), [("prior", 5), ("clip", 4)])
def test_captions_that_are_cut_are_told_in_the_log_and_at_the_end(models, shapes_folder, tmp_path, capfd, kind, limit):
    """Every drawn caption has more than five tokens. In warnings of the log, which the report shows, and no Python warnings of
    the pictures beside them."""
    from dalle.cli.train import train

    pairs, tokens = ["--data", f"{shapes_folder}/train-*.tar"], ["--data", f"{models}/tokens/train"]
    inputs = [
        "--tokenizer",
        f"{models}/prior/tokenizer.json",
        "--dvae",
        f"{models}/dvae",
        "--output",
        str(tmp_path / "out"),
    ]
    cls, options = {"prior": (TrainPrior, [*TINY_PRIOR, *tokens]), "clip": (TrainCLIP, [*TINY_CLIP, *pairs])}[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(kind, cls, [*options, *inputs, "--run.steps", "3", "--model.text_slots", "6"])
    told = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    cut = f"captions (100%) were cut to the {limit} tokens that are read"
    assert [line["warning"] for line in told if "warning" in line] == [f"8 of 8 {cut}", f"16 of 16 {cut}"]
    *_, told_last, finished, following = capfd.readouterr().err.splitlines()
    assert told_last == f"out: 24 of 24 {cut}" and finished.startswith("out: finished at step 3/3")
    assert following.startswith("out: next: dalle-sample ")


def test_cut_captions_are_those_of_all_processes_and_told_when_they_double(monkeypatch):
    world, cuts = World(0, 3, CPU), Cuts(limit=9)
    monkeypatch.setattr(World, "sum", lambda self, tensor: 3 * tensor)
    told = CutCaptions(cuts, world)
    said = []
    for _ in range(16):
        cuts.add([False, True])
        said += told.check(0, {})
    shares = [(line.split()[0], line.split()[2]) for line in said]
    assert shares == [("3", "6"), ("6", "12"), ("12", "24"), ("24", "48"), ("48", "96")]
    assert told.conclude() == ["48 of 96 captions (50%) were cut to the 9 tokens that are read"]
    none = CutCaptions(Cuts(9, captions=5), world)
    assert none.check(0, {}) == none.conclude() == []


@pytest.mark.parametrize("data", ["data", "valid_data"])
def test_the_first_rank_alone_looks_for_the_token_shards(models, shapes_folder, tmp_path, data):
    shutil.copytree(models / "tokens" / "train", tmp_path / "tokens")
    (tmp_path / "tokens" / "tokens-00000.safetensors").unlink()
    more = [f"--{data}", str(tmp_path / "tokens")]
    with pytest.raises(ValueError, match="is missing"):
        _stage("prior", models, shapes_folder, World(0, 2, CPU), *more)
    assert _stage("prior", models, shapes_folder, World(1, 2, CPU), *more).samples() == {}


def test_a_collapse_of_the_codebook_is_said_early_and_not_at_every_line():
    inputs = ["--data", "x", "--output", "x", "--run.steps", "20000", "--run.batch_size", "8"]
    steps = [
        "--optimizer.step_size.start",
        "1e-3",
        "--optimizer.step_size.end",
        "1e-3",
        "--model.codebook_size",
        "1000",
    ]
    check = _check_codebook(arguments.parse(TrainDVAE, "test", [*inputs, *steps]))
    said = {step: bool(check(step, {"perplexity": 1.5})) for step in (50, 100, 150, 200, 250, 300, 350)}
    assert [step for step, told in said.items() if told] == [150, 300]
    (line,) = check(600, {"perplexity": 1.5})
    assert "perplexity 1.5 of 1000 codes" in line and "optimizer.step_size" in line
    assert not check(1900, {"perplexity": 4.0})  # a small share, but early
    assert check(2100, {"perplexity": 4.0})
    assert not check(9000, {"perplexity": 6.0})


def test_held_out_figures_of_a_dvae(models, shapes_folder):
    found = _stage("dvae", models, shapes_folder, World(0, 1, CPU)).validate()
    assert found["elb_gap_nats"] == pytest.approx(found["relaxed_elb"] - found["elb"])
    assert found["elb_gap"] == pytest.approx(found["elb_gap_nats"] / abs(found["elb"]))
    assert {"psnr_db", "bicubic_8x_psnr_db", "codes_used", "perplexity", "kl_per_position_nats"} <= set(found)
    assert 1 <= found["perplexity"] <= found["codes_used"] <= 16


def test_clip_and_dvae_have_to_fit(models, shapes_folder):
    more = ["--model.image_size_px", "36", "--model.patch_px", "12"]
    with pytest.raises(ValueError, match=r"36 px, which is no multiple of 8, the downsampling of the dVAE .*/dvae"):
        _stage("clip", models, shapes_folder, World(0, 1, CPU), *more)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_clip_sees_half_of_its_images_through_the_dvae_in_the_precision_of_the_run(models, shapes_folder, precision):
    stage = _stage("clip", models, shapes_folder, World(0, 1, CPU), "--run.precision", precision)
    batch = next(iter(stage.loader))
    before = batch["images_BCYX"].clone()
    other = {**batch, "images_BCYX": before.clone()}
    stage.prepare([batch], 0, World(0, 1, CPU))
    stage.prepare([other], 1, World(0, 1, CPU))
    dvae = load_dvae(models / "dvae")
    seen = {}
    for name in ("fp32", "bf16"):
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
            seen[name] = to_uint8(dvae.decode(dvae.encode(before[::2])))
    assert not torch.equal(seen["fp32"], seen["bf16"])
    assert torch.equal(batch["images_BCYX"][::2], seen[precision])
    assert torch.equal(batch["images_BCYX"][1::2], before[1::2])
    assert torch.equal(other["images_BCYX"][::2], before[::2])  # in the next update the others
    assert not torch.equal(other["images_BCYX"][1::2], before[1::2])


def test_what_is_alike_has_the_same_number_in_every_process():
    """The number of a caption is of the tokens that are read of it; that of an image of its place. Python's own hashes would
    differ from process to process."""
    tokens = torch.tensor([[5, 6, 7], [5, 7, 6], [5, 6, 7]])
    found = identities(tokens, [("a.tar", "0"), ("a.tar", "0"), ("b.tar", "0")])
    assert found.dtype == torch.int64 and found.shape == (3, 2)
    assert [found[i, 0] == found[j, 0] for i, j in ((0, 1), (0, 2), (1, 2))] == [False, True, False]
    assert [found[i, 1] == found[j, 1] for i, j in ((0, 1), (0, 2), (1, 2))] == [True, False, False]
    digest = hashlib.blake2b(tokens[0].numpy().tobytes(), digest_size=8).digest()
    assert found[0, 0].item() == int.from_bytes(digest, "big", signed=True)


def test_clip_learns_what_is_alike_in_a_batch(models, shapes_folder):
    stage = _stage("clip", models, shapes_folder, World(0, 1, CPU))
    (batch,) = itertools.islice(stage.loader, 1)
    stage.prepare([batch], 0, World(0, 1, CPU))
    assert torch.equal(batch["identities_BK"], identities(batch["clip_tokens_BU"], batch["places"]))
    batch["captions"][3] = batch["captions"][6]
    batch["places"][1] = batch["places"][2]
    stage.prepare([batch], 1, World(0, 1, CPU))
    captions, images = batch["identities_BK"].T
    assert captions[3] == captions[6] and images[1] == images[2]
    loss, _ = stage.objective(batch)
    _, apart = stage.objective({**batch, "identities_BK": torch.arange(8)[:, None]})
    # half of the rows have 7 candidates in place of 8, all as likely in the beginning: about ln(8 / 7) / 2 less
    assert apart["loss"].item() - loss.item() == pytest.approx(0.067, abs=0.04)


def test_clip_prepares_an_update_without_waiting_for_a_gpu(models, shapes_folder, waited_for):
    stage = _stage("clip", models, shapes_folder, World(0, 1, CPU))
    (batch,) = itertools.islice(stage.loader, 1)
    stage.prepare([batch], 0, World(0, 1, torch.device("cuda")))
    assert batch["clip_tokens_BU"].shape == (8, 24) and batch["identities_BK"].shape == (8, 2)
    assert waited_for == []


@pytest.mark.parametrize("kept_bytes", [2**30, 8 * 3 * 32 * 32, 0])
def test_clip_is_validated_by_retrieval_among_all_held_out_pairs(models, shapes_folder, monkeypatch, kept_bytes):
    """Whichever of the images stay in memory; in batches that the pairs, 24 and one more, do not fill."""
    monkeypatch.setattr(stages_clip, "_KEPT_BYTES", kept_bytes)
    more = ["--valid_data", f"{shapes_folder}/{{valid-000,train-000}}.tar", "--run.batch_size", "9"]
    stage = _stage("clip", models, shapes_folder, World(0, 1, CPU), *more)
    validation = stage.validate.__self__
    assert len(validation.kept) == {2**30: 7, 8 * 3 * 32 * 32: 1, 0: 0}[kept_bytes]
    pairs = list(read_pairs(validation.config.valid_data, Images(augmentation="none"), 32))
    model, dvae = stage.objective.model, load_dvae(models / "dvae")
    model.eval()
    decoded = []
    monkeypatch.setattr(stages_clip, "read_pairs", lambda *given, **more: _noted(decoded, read_pairs(*given, **more)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # as the loop does in 16 bits
        found = stage.validate()
    assert len(decoded) == (0 if kept_bytes == 2**30 else 56)  # none where all are kept
    with torch.no_grad():
        images = model.embed_images(reconstruct(dvae, to_tensor([p.image for p in pairs]), "fp32")).numpy()
        texts = model.embed_texts(model.tokens([p.captions[0] for p in pairs])).numpy()
        found_in_fp32 = stage.validate()
    captions = [p.captions[0] for p in pairs]
    expected = retrieval(images, texts, [captions.index(caption) for caption in captions])
    assert found_in_fp32 == pytest.approx(expected)
    assert found.keys() == expected.keys() and found["candidates"] == len(pairs) == 56
    assert set(found) <= set(FIGURES)
    assert stage.samples()["valid_data"].read == 56  # once, however often it is read


def _noted(seen, pairs):
    for pair in pairs:
        seen.append(pair)
        yield pair


def test_captions_of_other_capitals_and_spaces_are_equal(models, shapes_folder, monkeypatch):
    spelt = itertools.cycle(["A red  circle", "a red circle ", "a blue circle"])
    read = stages_clip.read_pairs

    def respelt(*arguments, **more):
        for pair in read(*arguments, **more):
            yield replace(pair, captions=[next(spelt), "another"])

    monkeypatch.setattr(stages_clip, "read_pairs", respelt)
    ids = _stage("clip", models, shapes_folder, World(0, 1, CPU)).validate.__self__.same_caption_ids
    assert len(ids) == 24 and ids[0] == ids[1] == ids[3] != ids[2]


CODES = [
    *("--model.reads", "codes", "--model.image_size_px", "4", "--model.patch_px", "2", "--model.codebook_size", "16"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_reader_of_codes_is_given_those_of_the_crops_in_the_precision_of_the_run(
    models, shapes_folder, monkeypatch, precision
):
    in_16_bits, encode = [], DVAE.encode

    def noted(self, images):
        in_16_bits.append(torch.is_autocast_enabled("cpu"))
        return encode(self, images)

    monkeypatch.setattr(DVAE, "encode", noted)
    options = [*CODES, "--run.precision", precision, "--images.augmentation", "prior"]
    stage = _stage("clip", models, shapes_folder, World(0, 1, CPU), *options)
    assert stage.links["dvae_hash"] == read_header(models / "dvae")["hash"]
    batch = next(iter(stage.loader))
    before = batch["images_BCYX"].clone()
    assert before.shape == (8, 3, 32, 32)
    stage.prepare([batch], 0, World(0, 1, CPU))
    assert set(in_16_bits) == {precision == "bf16"}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert torch.equal(batch["codes_BI"], load_dvae(models / "dvae").encode(before).reshape(8, 16))
    assert torch.equal(batch["images_BCYX"], before)


def test_a_reader_of_codes_learns_which_caption_is_whose(models, shapes_folder):
    """On 16 pairs, by heart: at the beginning a caption finds its image among the 16 by chance, one time in 16."""
    torch.manual_seed(0)
    stage = _stage("clip", models, shapes_folder, World(0, 1, CPU), *CODES, "--run.batch_size", "16")
    batch = next(iter(stage.loader))
    stage.prepare([batch], 0, World(0, 1, CPU))
    optimizer = torch.optim.AdamW(stage.objective.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, metrics = stage.objective(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.5  # about ln 16
    assert losses[-1] < losses[0] / 4
    assert metrics["caption_accuracy"] > 0.5
    figures = stage.validate()  # held-out batches are read as codes too
    assert figures.pop("candidates") == 24
    assert all(0 <= share <= 1 for share in figures.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.image_size_px", "8"],
            r"model.image_size_px 8: the dVAE .*dvae has 4×4 codes of 16.*image_size_px to 4",
        ),
        (["--model.codebook_size", "99"], r"model.codebook_size 99: the dVAE .*4×4 codes of 16.*codebook_size to 16"),
    ],
)
def test_a_reader_of_codes_and_its_dvae_have_to_fit(models, shapes_folder, options, message):
    with pytest.raises(ValueError, match=message):
        _stage("clip", models, shapes_folder, World(0, 1, CPU), *CODES, *options)


def test_a_reader_of_codes_needs_a_dvae(models):
    with pytest.raises(ValueError, match=r"model\.reads codes: needs the dVAE whose codes they are"):
        arguments.parse(TrainCLIP, "test", [*TINY_CLIP, *CODES, "--run.steps", "1", "--data", "x", "--output", "x"])


@pytest.mark.parametrize("steps", [3, 300])
def test_schedules_in_shares_end_with_any_run(shapes_folder, steps):
    """A run shorter or longer than its configuration was made for is annealed all the same, and validated at the end's
    temperature."""
    temperature = ["--objective.temperature.start", "1", "--objective.temperature.end", "0.25"]
    more = ["--objective.temperature.end_step", "70%", "--objective.kl_weight.end_step", "5000"]
    options = [*TINY_DVAE, "--data", f"{shapes_folder}/train-*.tar", "--output", "x", "--run.steps", str(steps)]
    config = arguments.parse(TrainDVAE, "test", [*options, *temperature, *more])
    prepare = _schedules_and_noise(config, 0)
    batch = {"images_BCYX": torch.zeros(1, 3, 32, 32)}
    values = []
    for step in (0, steps - 1):
        prepare([batch], step, World(0, 1, CPU))
        values.append((batch["temperature"].item(), batch["kl_weight"].item()))
    assert values[0] == (1, 0) and values[1][0] == 0.25
    assert values[1][1] < 0.1  # in updates, of which this run has too few: it says so
    assert any("objective.kl_weight: end 6.6" in said for said in unreached_schedules(config))
    assert not any("temperature" in said for said in unreached_schedules(config))
