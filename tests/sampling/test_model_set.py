"""Which settings a prior is drawn with: its own where they are left to it, and none that it was not trained for."""

import json
import warnings
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

import dalle
from dalle.cli import arguments
from dalle.cli.caption import caption
from dalle.cli.demo import demo
from dalle.cli.export import export
from dalle.cli.sample import sample
from dalle.cli.train import train
from dalle.config import Sampling, TrainPrior
from dalle.decoding import token_loop
from dalle.models.folder import read_header
from dalle.sampling.again import draw_again
from dalle.sampling.candidates import Chunks
from dalle.sampling.drawing import read_drawing
from dalle.sampling.model_set import Tuning, find_models, settle
from tests.conftest import ROOT, TINY_PRIOR

FAST = ["--sampling.chunk", "4", "--sampling.precision", "fp32"]
GUIDED = Sampling(chunk=4, precision="fp32", guidance=3.0)


@pytest.fixture(scope="module")
def undropped(models, tmp_path_factory):
    """A prior that was trained without caption dropout, for the same dVAE."""
    folder = tmp_path_factory.mktemp("undropped") / "prior"
    inputs = ["--dvae", f"{models}/dvae", "--tokenizer", f"{models}/prior/tokenizer.json"]
    train(
        "prior",
        TrainPrior,
        [*TINY_PRIOR, "--run.steps", "1", "--data", f"{models}/tokens/train", *inputs, "--output", str(folder)],
    )
    return folder


def _without_the_facts(prior, target, yaml=True):
    """The same folder as an earlier version wrote it."""
    gone = ("caption_dropout", "sampling_temperature", "sampling_guidance", "checksums", "seal")
    return _with_header(prior, target, {k: v for k, v in read_header(prior).items() if k not in gone}, yaml)


def _saying(prior, target, **facts):
    """The same folder whose header says something else."""
    return _with_header(prior, target, {k: v for k, v in read_header(prior).items() if k != "seal"} | facts)


def _with_header(prior, target, header, yaml=True):
    target.mkdir()
    save_file(load_file(prior / "model.safetensors"), target / "model.safetensors", metadata=header)
    for name in ("tokenizer.json", *(["config.yaml"] if yaml else [])):
        (target / name).write_bytes((prior / name).read_bytes())
    return target


def test_guidance_is_refused_where_the_prior_was_trained_without_caption_dropout(
    models, undropped, tmp_path, monkeypatch
):
    pipeline = dalle.load(models, prior=undropped, device="cpu")
    refused = r"sampling.guidance 3.0: this prior was trained with caption_dropout 0.*train a prior with --caption_dropout 0.1"
    with pytest.raises(ValueError, match=refused):
        pipeline.generate("a red circle", n=1, sampling=GUIDED)
    with pytest.raises(ValueError, match=refused):
        list(pipeline.candidates(["a red circle"], 1, sampling=GUIDED))
    with pytest.raises(ValueError, match=r"guidance 0\.0"):
        pipeline.generate("a red circle", n=1, sampling=Sampling(chunk=4, guidance=0.0))
    assert pipeline.generate("a red circle", n=1, sampling=Sampling(chunk=4, guidance=1.0))
    # what an earlier version wrote says it in its configuration
    old = _without_the_facts(undropped, tmp_path / "old")
    monkeypatch.setattr("dalle.sampling.loading.load_prior", None)  # before models are loaded
    for prior in (undropped, old):
        options = ["--model", str(models), "--prior", str(prior), "--output", str(tmp_path / "out"), *FAST]
        with pytest.raises(ValueError, match=refused):
            sample([*options, "--sampling.guidance", "3", "a red circle"])
    assert not (tmp_path / "out").exists()


def test_a_demo_that_cannot_be_guided_says_so_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("dalle.cli.data.draw_shapes.draw_shapes", None)
    with pytest.raises(ValueError, match=r"sampling\.top_k 129"):
        demo(["--output", str(tmp_path / "demo"), "--sampling.top_k", "129"])
    for stage in ("dvae", "prior", "clip"):
        text = (ROOT / f"configs/demo/{stage}.yaml").read_text()
        (tmp_path / f"{stage}.yaml").write_text(text.replace("caption_dropout: 0.1", "caption_dropout: 0"))
    with pytest.raises(ValueError, match=r"guidance 2\.0: this prior was trained with caption_dropout 0"):
        demo(["--output", str(tmp_path / "demo"), "--configs", str(tmp_path), "--sampling.guidance", "2"])
    assert not (tmp_path / "demo").exists()


def test_a_guided_drawing_of_before_is_still_made_again(models, undropped):
    """What was drawn is drawn, whatever it means."""
    pipeline = dalle.load(models, prior=undropped, device="cpu")
    guided = replace(GUIDED, temperature=1.0)
    drawing = pipeline.chunk(pipeline.read(["a red circle"]), 0, guided).drawing(0, 2)
    assert (draw_again(pipeline, drawing).codes_I == drawing.codes_I).all()


def test_guidance_of_a_prior_that_says_nothing_is_warned_of_once(models, tmp_path):
    for number, text in enumerate([None, "[", "caption_dropout: often", "- 1"]):
        old = _without_the_facts(models / "prior", tmp_path / f"old-{number}", yaml=False)
        if text is not None:
            (old / "config.yaml").write_text(text)
        assert find_models(models, prior=old, rerank=False).tuning == Tuning(None, 1.0)
    options = ["--model", str(models), "--prior", str(old), "--output", str(tmp_path / "out"), *FAST]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        sample([*options, "--n", "2", "--sampling.guidance", "2", "a red circle"])
    told = [str(w.message) for w in said if "guidance" in str(w.message)]
    assert len(told) == 1 and "nothing says whether this prior was trained with caption_dropout" in told[0]


def test_guidance_of_a_prior_that_knows_images_without_captions(models, tmp_path):
    assert find_models(models).tuning == Tuning(0.1, 0.9)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*guidance")
        (drawing,) = dalle.load(models, device="cpu").generate("a red circle", n=1, sampling=GUIDED)
    assert drawing.settings["guidance"] == 3.0
    old = _without_the_facts(models / "prior", tmp_path / "old")
    assert find_models(models, prior=old).tuning == Tuning(0.1, 1.0)


def test_the_gain_of_a_caption_is_said_to_mean_nothing(models, undropped, tmp_path, capsys):
    (drawing,) = dalle.load(models, device="cpu").generate("a red circle", n=1, sampling=Sampling(chunk=4))
    drawing.image.save(tmp_path / "one.png")
    (tmp_path / "captions.txt").write_text("a red circle\n")
    options = ["--model", str(models), "--captions", str(tmp_path / "captions.txt"), str(tmp_path / "one.png")]
    with pytest.warns(UserWarning, match="the gain means nothing: this prior was trained with caption_dropout 0"):
        caption([*options, "--prior", str(undropped)])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*gain")
        caption(options)


def test_the_temperature_that_a_prior_was_tuned_for_is_the_default(models, undropped, tmp_path):
    """On the command line and in Python; another one that is asked for is taken, also 1."""
    pipeline = dalle.load(models, device="cpu")

    def drawn(**options):
        return pipeline.generate("a red circle", n=1, sampling=Sampling(chunk=4, precision="fp32", **options))[0]

    assert drawn().settings["temperature"] == 0.9
    assert (drawn().codes_I == drawn(temperature=0.9).codes_I).all()
    assert not (drawn().codes_I == drawn(temperature=9.0).codes_I).all()
    assert drawn(temperature=1.0).settings["temperature"] == 1.0
    for name, options, temperature in (
        ("default", [], 0.9),
        ("asked", ["--sampling.temperature", "1"], 1.0),
        ("untuned", ["--prior", str(undropped)], 1.0),
    ):
        sample(["--model", str(models), "--output", str(tmp_path / name), *FAST, "--n", "1", *options, "a red circle"])
        (line,) = [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]
        assert line["settings"]["temperature"] == temperature
        assert read_drawing(tmp_path / name / line["file"]).settings["temperature"] == temperature
    default = read_drawing(next((tmp_path / "default/images").iterdir()))
    assert (default.codes_I == drawn().codes_I).all()


def test_the_guidance_that_a_prior_was_tuned_for_is_the_default(models, tmp_path):
    guided = _saying(models / "prior", tmp_path / "guided", sampling_guidance="300.0")
    assert find_models(models, prior=guided).tuning == Tuning(0.1, 0.9, 300.0)

    def drawn(prior, **options):
        pipeline = dalle.load(models, prior=prior, device="cpu", rerank=False)
        return pipeline.generate("a red circle", n=2, sampling=Sampling(chunk=2, precision="fp32", **options))[0]

    asked = drawn(models / "prior", guidance=300.0)
    assert drawn(guided).settings["guidance"] == asked.settings["guidance"] == 300.0
    assert (drawn(guided).codes_I == asked.codes_I).all()
    assert drawn(guided, guidance=1.0).settings["guidance"] == drawn(models / "prior").settings["guidance"] == 1.0
    assert (drawn(guided, guidance=1.0).codes_I == drawn(models / "prior").codes_I).all()
    assert not (drawn(guided).codes_I == drawn(models / "prior").codes_I).all()


def test_a_chunk_has_room_for_the_guidance_that_a_prior_brings(models, tmp_path, monkeypatch):
    guided = _saying(models / "prior", tmp_path / "guided", sampling_guidance="2.0")
    pipeline = dalle.load(models, prior=guided, device="cpu", rerank=False)
    loop = token_loop.TokenLoop(pipeline.prior_for("fp32"), "fp32")
    memory = loop.weight_bytes() + 2 * loop.cache_bytes(1, 16, guided=True)
    monkeypatch.setattr(token_loop, "_memory_bytes", lambda device: memory)
    left_open = Sampling(precision="fp32")
    assert pipeline.chunk_width(left_open) == pipeline.chunk_width(replace(left_open, guidance=2.0)) == 16
    assert pipeline.chunk_width(replace(left_open, guidance=1.0)) == 32
    pipeline.tuning = Tuning(None, guidance=2.0)
    with pytest.warns(UserWarning, match="guidance 2.0: nothing says whether") as told:
        assert Chunks(pipeline, left_open).width == 16
    assert len(told) == 1


def test_what_a_prior_says_survives_a_checkpoint(models, undropped, tmp_path):
    guided = tmp_path / "guided"
    folders = ["--dvae", f"{models}/dvae", "--tokenizer", f"{models}/prior/tokenizer.json", "--output", str(guided)]
    tuned = ["--caption_dropout", "0.1", "--sampling_guidance", "2.5", "--run.steps", "1"]
    train("prior", TrainPrior, [*TINY_PRIOR, *tuned, "--data", f"{models}/tokens/train", *folders])
    for prior, tuning in (
        (models / "prior", Tuning(0.1, 0.9)),
        (undropped, Tuning(0.0, 1.0)),
        (guided, Tuning(0.1, 1.0, 2.5)),
    ):
        output = tmp_path / f"{tuning.temperature}, {tuning.guidance}"
        export([str(prior), "--output", str(output)])
        assert find_models(models, prior=output, rerank=False).tuning == tuning


def test_what_is_no_such_number_is_refused(models, tmp_path):
    inputs = ["--data", "x", "--output", "x", "--dvae", "x", "--tokenizer", "x", *TINY_PRIOR, "--run.steps", "1"]
    for value in ("0", "-1", "nan", "inf"):
        with pytest.raises(ValueError, match="sampling_temperature"):
            arguments.parse(TrainPrior, "test", [*inputs, f"--sampling_temperature={value}"])
    for number, (name, value) in enumerate(
        [
            ("caption_dropout", "often"),
            ("sampling_temperature", "-1"),
            ("sampling_temperature", "nan"),
            ("sampling_guidance", "-1"),
        ]
    ):
        folder = _saying(models / "prior", tmp_path / str(number), **{name: value})
        with pytest.raises(ValueError, match=r"header of the weights in .* is damaged"):
            find_models(models, prior=folder)


def test_settling_leaves_what_was_asked_for(models):
    sizes = find_models(models).prior_config
    tuned = settle(Sampling(top_k=3), sizes, Tuning(0.1, 0.5, 2.0))
    assert tuned == Sampling(top_k=3, temperature=0.5, guidance=2.0)
    asked = Sampling(temperature=2.0, guidance=1.0)
    assert settle(asked, sizes, Tuning(None, 0.5, 3.0)) == asked
    with pytest.raises(ValueError, match="top_k 17"):
        settle(Sampling(top_k=17), sizes, Tuning())
