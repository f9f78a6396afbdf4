"""Every configuration in the repository is read, and its model is built on the meta device; every command that the
README shows parses."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import yaml

import dalle
from dalle import config as configs
from dalle.__main__ import listing
from dalle.cli import arguments
from dalle.config.programs import PROGRAMS
from tests.conftest import ROOT

COMMANDS = {name: program.config for name, program in PROGRAMS.items()}
ALL = sorted((ROOT / "configs").rglob("*.yaml"))
OVERLAYS = [path for path in ALL if path.parent.name == "ablations" and path.stem != "base"]
STAGE_TWO = ROOT / "configs/stackgan/stage-two.yaml"
"""Sizes that are laid over any experiment of stage one."""
FILES = [path for path in ALL if path not in (*OVERLAYS, STAGE_TWO)]


def _stage(path) -> str:
    keys = set(yaml.safe_load(path.read_text())["model"])
    dvaes = ("dvae", "encoder_width"), ("dvae", "decoder_width")
    others = (
        ("prior", "depth"),
        ("clip", "patch_px"),
        ("stackgan", "discriminator_channels"),
        ("text-encoder", "recurrent"),
    )
    return next(s for s, key in (*dvaes, *others) if key in keys)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_configuration_is_sound(path):
    assert path.read_text().startswith("# What: "), "a configuration opens with what it is and how it is run"
    stage = _stage(path)
    cls = COMMANDS[f"dalle-train-{stage}"]
    extra = {"prior": ["--dvae", "x", "--tokenizer", "x"], "clip": ["--dvae", "x"], "stackgan": ["--text_encoder", "x"]}
    extra = extra.get(stage, [])
    if yaml.safe_load(path.read_text())["model"].get("stage") == 2:
        extra = [*extra, "--stage_one", "x"]
    if "freeze" in yaml.safe_load(path.read_text()):
        extra = ["--from", "x"]
    parsed = arguments.parse(cls, "test", ["--config", str(path), "--data", "x", "--output", "x", *extra])
    if stage != "clip":
        from dalle.models.dvae import DVAE
        from dalle.models.prior import Prior
        from dalle.models.stackgan.discriminator import Discriminator
        from dalle.models.stackgan.generators import generator
        from dalle.models.text_encoders.char_cnn_rnn import LetterEncoder

        made = {
            "dvae": [DVAE],
            "prior": [Prior],
            "stackgan": [generator, Discriminator],
            "text-encoder": [LetterEncoder],
        }
        with torch.device("meta"):
            for make in made[stage]:
                make(parsed.model)


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: p.stem)
def test_an_ablation_changes_one_setting(path):
    def settings(*files):
        options = [word for file in files for word in ("--config", str(file))]
        return asdict(arguments.parse(configs.TrainDVAE, "test", [*options, "--data", "x", "--output", "x"]))

    base = path.with_name("base.yaml")
    before, after = (dict(_flat(settings(*files))) for files in ((base,), (base, path)))
    assert len(set(before.items()) ^ set(after.items())) == 2


def _experiment(name, *more):
    """The settings of an experiment of the StackGAN document, by dotted name."""
    inputs = ["--data", "x", "--output", "x", "--text_encoder", "x"]
    options = ["--config", f"stackgan/{name}", *more, *inputs]
    return dict(_flat(asdict(arguments.parse(configs.TrainStackGAN, "dalle-train-stackgan", options))))


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("a", "b", {"model.unconditional": True}),
        ("a", "c", {"model.text": "compressed"}),
        ("c", "d", {"model.biases": False}),
        ("d", "e", {"optimizer.clip_norm": 1.0, "discriminator_optimizer.clip_norm": 1.0}),
        (
            "d",
            "f",
            {"model.joint_kernel": 1, "objective.real_labels": (0.9, 0.95), "objective.fake_labels": (0.1, 0.15)},
        ),
        ("f", "g", {"model.upsample": "transposed", "model.dropout": 0.5}),
        ("f", "h", {"objective.flipped": 0.075, "model.text_width": 1024}),
    ],
)
def test_an_experiment_of_the_stackgan_document_changes_what_it_says(before, after, changes):
    first, second = _experiment(before), _experiment(after)
    assert {name: second[name] for name in second if second[name] != first[name]} == changes


@pytest.mark.parametrize("name", [*"abcdefgh", "dfgan"])
def test_an_experiments_stage_two_keeps_its_switches(name):
    assert STAGE_TWO.read_text().startswith("# What: ")
    first = _experiment(name)
    second = _experiment(name, "--config", str(STAGE_TWO), "--stage_one", "x")
    changed = {key.removeprefix("model.") for key in second if second[key] != first[key] and not key.startswith("run.")}
    assert changed == {"stage_one", "stage", "image_size_px", "channels", "discriminator_channels", "resblocks"}


def _prior(path):
    """The model of a prior's configuration, on the meta device."""
    from dalle.models.prior import Prior

    inputs = ["--data", "x", "--output", "x", "--dvae", "x", "--tokenizer", "x"]
    with torch.device("meta"):
        return Prior(arguments.parse(configs.TrainPrior, "test", ["--config", str(path), *inputs]).model)


@pytest.mark.parametrize(("name", "billions", "width"), [("2b8", 2.8, 1920), ("5b6", 5.6, 2688), ("12b", 12.0, 3968)])
def test_the_papers_priors_have_its_sizes(name, billions, width):
    """64·12·D² weights in the resblocks' matrices (appendix B.1)."""
    model = _prior(ROOT / f"configs/paper/{name}.yaml")
    matrices = sum(p.numel() for n, p in model.named_parameters() if n.startswith("layers") and p.ndim == 2)
    assert matrices == 64 * 12 * width**2
    # the paper's names are round: 2.8 B is 2.83
    assert matrices / 1e9 == pytest.approx(billions, rel=0.02)
    assert model.config.width // model.config.heads == 64


@pytest.mark.parametrize(("name", "millions"), [("100m", 100), ("350m", 350), ("1b3", 1300)])
def test_practical_priors_have_the_sizes_of_their_names(name, millions):
    model = _prior(ROOT / f"configs/prior/{name}.yaml")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)
    assert model.config.width // model.config.heads == 64


@pytest.mark.parametrize(
    ("name", "parameters"), [("cvpr2016", 1_814_144), ("flowers", 2_994_560), ("birds", 4_045_184)]
)
def test_the_published_text_encoders_have_their_sizes(name, parameters):
    from dalle.models.text_encoders.char_cnn_rnn import CharCNNRNN

    inputs = ["--config", f"text-encoder/{name}", "--data", "x", "--output", "x"]
    settings = arguments.parse(configs.TrainTextEncoder, "test", inputs)
    with torch.device("meta"):
        assert sum(p.numel() for p in CharCNNRNN(settings.model).parameters()) == parameters
    step_size = settings.optimizer.step_size.over(settings.run.steps)
    assert step_size(150) == pytest.approx(7e-4 * 0.98, rel=1e-4)  # an epoch of 150 classes, a batch each
    assert (settings.run.batch_size, settings.optimizer.name) == (40, "RMSprop")


def _flat(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _markdown(folder):
    return sorted(folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))


def _shown_lines(page):
    text = page.read_text().replace("\\\n", " ")
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, flags=re.S):
        yield from (line.strip() for line in block.splitlines() if line.strip() and not line.strip().startswith("#"))


PAGES = [path for folder in (ROOT, ROOT / "docs", ROOT / "dalle/ready/weights") for path in _markdown(folder)]
HISTORY = ("LOG", "log-details", "CHANGELOG")
"""What they tell of may be gone."""
LINES = [pytest.param(line, id=f"{page.name}: {line[:50]}") for page in PAGES for line in _shown_lines(page)]


def _parsed(line):
    """The name of the command and its parsed settings; None for those of others."""
    words = shlex.split(line.split("#")[0].split(" > ")[0])
    while words and "=" in words[0]:
        words = words[1:]
    launched = [i for i, word in enumerate(words) if word.startswith("launch/train_")]
    if launched:
        name, rest = f"dalle-train-{words[launched[0]][13:-3]}", words[launched[0] + 1 :]
        assert (ROOT / words[launched[0]]).is_file()
    else:
        name, rest = words[0], words[1:]
    if name in COMMANDS:
        return name, arguments.parse(COMMANDS[name], name, rest, PROGRAMS[name].positional)
    if name == "bash":
        assert (ROOT / rest[0]).is_file()
    else:
        assert name in ("git", "cd", "pip", "python", "python3", "ruff", "source", "wandb"), f"no such command: {name}"
    return name, None


@pytest.mark.parametrize("line", LINES)
def test_shown_commands_parse(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    _parsed(line)


def _mentioned(page):
    """Commands with options in running text; one may go on in the next line."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for span in re.findall(r"`([^`]+)`", text):
        span = " ".join(span.split())
        if span.partition(" ")[0] in COMMANDS and " --" in span and not re.search(r"…|\.\.\.", span):
            yield span


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in HISTORY], ids=lambda page: page.stem)
def test_commands_in_running_text_have_these_options(page, monkeypatch):
    """They may leave out what has to be given."""
    monkeypatch.chdir(ROOT)
    for span in _mentioned(page):
        try:
            _parsed(span)
        except SystemExit as left:  # --help
            assert left.code == 0
        except ValueError as error:
            told = str(error)
            assert re.search(r"^missing: |^[\w.]+: (a value )?is missing|: expected one argument$", told), (
                f"{span}: {told}"
            )


@pytest.mark.parametrize("page", ["README.md", "docs/emoji.md", "docs/training.md"])
def test_shown_commands_fit_together(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = [_parsed(line) for line in _shown_lines(ROOT / page)]
    road = dict(reversed(shown))  # of each command the first
    prior, dvae = road["dalle-train-prior"], road["dalle-train-dvae"]
    assert road["dalle-train-tokenizer"].vocabulary <= prior.model.text_vocabulary
    assert (dvae.model.grid, dvae.model.codebook_size) == (prior.model.grid, prior.model.codebook_size)
    assert dvae.output == road["dalle-tokenize"].dvae == prior.dvae
    assert road["dalle-tokenize"].output == prior.data
    assert road["dalle-train-tokenizer"].output == prior.tokenizer == road["dalle-train-clip"].tokenizer
    samples = [settings for name, settings in shown if name == "dalle-sample"]
    trained = {road[f"dalle-train-{name}"].output for name in ("dvae", "prior", "clip")}
    assert not samples or trained in [{f"{s.model}/{name}" for name in ("dvae", "prior", "clip")} for s in samples]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_programs_example_parses_and_opens_its_help(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    program = PROGRAMS[name]
    assert _parsed(program.example)[0] == name
    with pytest.raises(SystemExit) as left:
        arguments.parse(program.config, name, ["--help"], program.positional)
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"Example:\n  {program.example}\n")
    assert program.summary.endswith(".") and program.summary.split()[-1] in printed


def test_the_list_of_programs_is_whole(capsys):
    scripts = re.findall(r"^(dalle[\w-]*) = ", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert {"dalle", *PROGRAMS} == set(scripts)
    listing([])
    printed = capsys.readouterr().out
    assert all(f"$ {program.example}\n" in printed for program in PROGRAMS.values())
    listing(["--version"])
    assert capsys.readouterr().out == f"dalle {dalle.__version__}\n"
    with pytest.raises(ValueError, match="'sample'"):
        listing(["sample"])


def test_nobody_has_to_listen_to_the_end():
    """`dalle | head`"""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "dalle"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_completion_shows_the_public_face():
    assert dir(dalle) == sorted(dalle.__all__) and "load" in dir(dalle)
