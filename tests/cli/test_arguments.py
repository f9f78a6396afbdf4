"""The command line's own rules: quotes, dashes, help."""

import shlex
import typing

import pytest

from dalle.cli.arguments import NO_PATHS, parse, run
from dalle.config import (
    Caption,
    Demo,
    Describe,
    DrawShapes,
    Export,
    Sample,
    Serve,
    Study,
    Tokenize,
    TrainCLIP,
    TrainDVAE,
    TrainFolder,
    TrainPrior,
    TrainTokenizer,
)
from dalle.config.checks import Hopeless, SaidByAll
from dalle.config.programs import PROGRAMS
from dalle.data.naming import names
from tests.conftest import ROOT


def _sample(*argv: str) -> Sample:
    return parse(Sample, "dalle-sample", list(argv), positional="caption")


def test_one_bare_argument_is_the_caption():
    assert _sample("--n", "5", "a red circle", "--keep=2").caption == "a red circle"
    for argv in (["a", "cat"], ["--caption", "a", "cat"], ["--caption=a", "cat"]):
        with pytest.raises(ValueError, match=r"unexpected 'cat': .*quotes"):
            _sample(*argv)
    with pytest.raises(ValueError, match=r"unexpected 'b\.tar': .*quotes"):
        parse(TrainTokenizer, "dalle-train-tokenizer", ["--data", "a.tar", "b.tar", "--output", "t.json"])


def test_keys_have_two_dashes():
    for token, nearest in (("-n", "n"), ("-temperature", "sampling.temperature"), ("-seed=3", "seed")):
        message = f"unknown key {token.split('=')[0]}; the nearest known one is {nearest}; write keys with two dashes"
        with pytest.raises(ValueError, match=message):
            _sample(token, "5", "a cat")
    with pytest.raises(ValueError, match="--output: expected one argument"):
        _sample("a cat", "--output", "--n", "5")


@pytest.mark.parametrize("caption", ["-5 degrees outside", "--5 degrees outside", "-grumpy", "-n", "-h", "--n=5"])
def test_a_caption_may_begin_with_a_dash(caption):
    for argv in (["--n", "5", "--", caption], [f"--caption={caption}", "--n", "5"]):
        found = _sample(*argv)
        assert (found.caption, found.n) == (caption, 5)
    if not caption.startswith("--"):
        assert _sample("--caption", caption, "--n", "5").caption == caption
    for argv in (["--", caption, "b"], ["a", "--", caption], ["--caption=a", "--", caption]):
        with pytest.raises(ValueError, match=r"unexpected .*quotes"):
            _sample(*argv)


@pytest.mark.parametrize("caption", ["-5 degrees outside", "--5 degrees outside", "-grumpy", "-seed of a tree"])
def test_a_caption_that_looks_like_a_key_is_told_how_to_be_written(caption):
    with pytest.raises(ValueError) as raised:
        _sample("--n", "5", caption)
    assert f"--caption={shlex.quote(caption)}, or -- before it" in str(raised.value)
    assert "sampling.temperature" not in str(raised.value), "not all keys: it is no key"
    told = str(raised.value).split("write ")[1].split(", or")[0]
    assert _sample(*shlex.split(told)).caption == caption


def test_bytes_that_are_no_text_are_refused_wherever_they_stand():
    for argv in (["caf\udce9"], ["--caption=caf\udce9"], ["a", "--output", "caf\udce9"], ["--", "caf\udce9"]):
        with pytest.raises(ValueError, match=r"caf\\udce9' is no text: it was typed in another encoding"):
            _sample(*argv)
    assert _sample("café 北京 👍").caption == "café 北京 👍"


@pytest.mark.parametrize("token", ["-h", "--help"])
def test_help(token, capsys):
    with pytest.raises(SystemExit) as left:
        _sample(token)
    assert left.value.code == 0
    assert "--caption" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--run.compression.rank 0", "run.compression.rank 0: must be at least 1"),
        ("--run.compression.rank 4 --run.compression.seed -1", "run.compression.seed -1: must be at least 0"),
        ("--run.compression.rank x", "run.compression.rank x: must be a whole number"),
        (
            "--run.compression.rank 1 --run.compression.format x",
            "run.compression.format x: must be one of fp32, bf16, 1-6-9",
        ),
        ("--best_of.share 2", "missing: --best_of.model; give it here or in a --config"),
        (
            "--best_of.model x --best_of.share 2",
            "best_of.share 2.0: must lie in (0, 1]; without best_of all pairs are real",
        ),
    ],
)
def test_a_section_that_may_be_null_is_refused_as_any_other(options, said):
    given = "--config demo/prior --data x --dvae y --tokenizer z --output o"
    with pytest.raises(ValueError) as refusal:
        parse(TrainPrior, "dalle-train-prior", [*given.split(), *options.split()])
    assert str(refusal.value) == said


def test_a_section_that_may_be_null_has_a_help_of_its_own(capsys):
    """As the help of all says; a setting, or a section that is always there, has none."""
    with pytest.raises(SystemExit) as left:
        parse(TrainPrior, "dalle-train-prior", ["--run.compression.help"])
    assert left.value.code == 0
    assert "--run.compression.rank" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"unknown key run\.steps\.help"):
        parse(TrainPrior, "dalle-train-prior", ["--run.steps.help"])


def test_shipped_configurations_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from any folder
    inputs = ["--data", "x", "--output", "y"]
    named = parse(TrainDVAE, "t", ["--config", "demo/dvae", *inputs])
    assert named == parse(TrainDVAE, "t", [f"--config={ROOT / 'configs/demo/dvae.yaml'}", *inputs])
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/dvae").write_text("run: {steps: 3, batch_size: 4}\noptimizer: {step_size: {start: 1, end: 1}}")
    assert parse(TrainDVAE, "t", ["--config", "demo/dvae", *inputs]).run.steps == 3  # a file of that path comes first
    with pytest.raises(ValueError, match=r"no such file: demo/dvea; the nearest that is shipped is demo/dvae"):
        parse(TrainDVAE, "t", ["--config", "demo/dvea", *inputs])


def test_a_tilde_is_the_home_folder_in_every_path_of_every_command(tmp_path, monkeypatch):
    """Those of a configuration file, and after `=`, no shell has seen."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "some.yaml").write_text("data: ~/x.tar\noutput: ~/t.json\n")
    for argv in (["--config", "~/some.yaml"], ["--config=~/some.yaml"], ["--data=~/x.tar", "--output", "~/t.json"]):
        config = parse(TrainTokenizer, "dalle-train-tokenizer", argv)
        assert (config.data, config.output) == (f"{tmp_path}/x.tar", f"{tmp_path}/t.json")
    needed = {"optimizer.step_size.start": "1", "optimizer.step_size.end": "1", "run.steps": "1", "run.batch_size": "8"}
    for cls in (Caption, Demo, Describe, DrawShapes, Export, Tokenize, TrainCLIP, TrainDVAE, TrainPrior):
        hints = typing.get_type_hints(cls)
        paths = [name for name, kind in hints.items() if kind in (str, str | None) and name not in NO_PATHS]
        values = dict.fromkeys(paths, "~/x") | (needed if "optimizer" in hints else {})
        config = parse(cls, "test", [part for key, value in values.items() for part in (f"--{key}", value)])
        assert paths and all(getattr(config, name) == f"{tmp_path}/x" for name in paths), cls
    for image in ("prompt_image", "variations_of"):
        folders = {name: "~/x" for name in ("model", "output", "clip", "dvae", "prior", image)}
        config = _sample("a cat", "--rows", "1", *(p for key, value in folders.items() for p in (f"--{key}", value)))
        assert all(getattr(config, name) == f"{tmp_path}/x" for name in folders)
    assert _sample("--captions", "~/x").captions == _sample("--again", "~/x").again == f"{tmp_path}/x"
    assert _sample("~/x is no path").caption == "~/x is no path"


@pytest.mark.parametrize(
    "command", [name for name, each in PROGRAMS.items() if "output" in typing.get_type_hints(each.config)]
)
def test_what_an_unset_variable_leaves_is_no_output(command):
    """It would be the folder that one stands in."""
    program = PROGRAMS[command]
    for empty in ("", " "):
        with pytest.raises(ValueError, match=r"^output: is empty"):
            parse(program.config, command, [*shlex.split(program.example)[1:], "--output", empty], program.positional)


def test_other_settings_are_not_empty_either_but_where_that_says_something():
    for argv, told in ((["--images="], "images"), (["--images", "a b", "--real="], "real")):
        with pytest.raises(ValueError, match=f"^{told}: is empty, .*; give it a value, or leave it out"):
            parse(Study, "dalle-study", argv)
    assert parse(Serve, "dalle-serve", ["--names="]).names == ""
    with pytest.raises(ValueError, match="caption: is missing or empty; give"):
        _sample("--caption=")


@pytest.mark.parametrize("name", ["my [home]", "my {a,b}", "a b", "what?", "back\\slash", "plain"])
def test_the_name_of_a_home_folder_is_no_glob(tmp_path, monkeypatch, name):
    home = tmp_path / name
    (home / "tokens").mkdir(parents=True)
    for number in range(2):
        (home / f"x-{number}.tar").touch()
    monkeypatch.setenv("HOME", str(home))
    both = [f"{home}/x-0.tar", f"{home}/x-1.tar"]
    for spec, expected in {
        "~/x-*.tar": both,
        "~/x-{0..1}.tar": both,
        "~/x-1.tar ~/x-0.tar": both[::-1],
        "~/x-0.tar": both[:1],
    }.items():
        config = parse(TrainTokenizer, "t", ["--data", spec, "--output", "~/t.json"])
        assert names(config.data) == expected
        assert config.output == f"{home}/t.json"
    needed = ["--optimizer.step_size.start=1", "--optimizer.step_size.end=1", "--run.steps=1", "--run.batch_size=8"]
    inputs = [
        "--data",
        "~/tokens",
        "--valid_data",
        "~/tokens",
        "--dvae",
        "~/d",
        "--tokenizer",
        "~/t",
        "--output",
        "~/o",
    ]
    config = parse(TrainPrior, "t", [*inputs, *needed])
    assert config.data == config.valid_data == f"{home}/tokens"  # the path of one folder


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [(SaidByAll("it is"), 2, {"0"}), (Hopeless("it is"), 3, {"0"}), (ValueError("it is"), 2, {"0", "1"})],
)
def test_what_all_processes_say_is_printed_once(monkeypatch, capsys, error, code, told):
    def fail():
        raise error

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as left:
            run(fail, "dalle-test")
        assert left.value.code == code
        assert capsys.readouterr().err == (f"dalle-test (rank {rank}): it is\n" if rank in told else "")


def test_settings_below_an_open_one_go_to_any_depth(tmp_path):
    """All that is said of a stage of `dalle-train` is kept, whichever came first, and lies over what a file says."""

    def prior(*argv: str) -> dict:
        return parse(TrainFolder, "dalle-train", ["pictures", "--output", "out", *argv], positional="source").prior

    words = [
        "--prior.run.steps",
        "3",
        "--prior.model.width=64",
        "--prior.run.loader-workers",
        "0",
        "--prior.seed",
        "-1",
    ]
    assert prior(*words) == {"run": {"steps": "3", "loader_workers": "0"}, "model": {"width": "64"}, "seed": "-1"}
    assert prior() == {}
    assert prior("--prior", '{"run": {"steps": 3}}', "--prior.run.seed", "4") == {"run": {"steps": 3, "seed": "4"}}
    assert prior("--prior.run", "3", "--prior.run.steps", "4", "--prior.run.steps", "5") == {"run": {"steps": "5"}}
    path = tmp_path / "mine.yaml"
    path.write_text("prior: {run: {steps: 7, batch_size: 2}}\nclip: {run: {steps: 8}}\n")
    assert prior("--prior.run.steps", "3", "--config", str(path)) == {"run": {"steps": "3", "batch_size": 2}}
    for argv in (["--prior.run.steps"], ["--prior.run.steps", "--seed", "3"]):
        with pytest.raises(ValueError, match=r"^prior\.run\.steps: a value is missing"):
            prior(*argv)
    with pytest.raises(ValueError, match=r"unknown key pior\.run\.steps"):
        prior("--pior.run.steps", "3")
