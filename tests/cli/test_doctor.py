"""`dalle-doctor`: the whole of it once, and how its self-test tells of what goes wrong."""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from dalle.cli.doctor import command, self_test
from dalle.cli.doctor.command import doctor, judged
from dalle.cli.doctor.self_test import losses, tried
from dalle.config.checks import Cause
from dalle.config.commands.doctor import Doctor
from dalle.machine import checkup
from dalle.machine.finding import Finding
from dalle.ready.names import ready_names
from dalle.text import Tokenizer


def test_all_of_it_on_this_machine(tmp_path, capfd, monkeypatch):
    """Every part is there, every stage is tried, and no folder of them is left. What this machine lacks is no matter."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = 0
    try:
        doctor(["--json", "--output", str(tmp_path / "runs")])
    except SystemExit as left:
        code = left.code
    told = json.loads(capfd.readouterr().out)
    found = {each["name"]: each for each in told["findings"]}
    assert set(found) >= {
        *(
            "python",
            "packages",
            "extra eval",
            "cpu",
            "memory",
            "disk",
            "temporary folder",
            "shared memory",
            "open files",
        ),
        *("torch", "products", "compiler", "native kernels", "DeepSpeed", "collective, gloo", "hub"),
    }
    stages = ["data", "tokenizer", "dvae", "tokenize", "prior", "clip", "text-encoder", "stackgan"] + ["sample"] * bool(
        ready_names()
    )
    for name in ("torch", "DeepSpeed", "collective, gloo", *(f"try {stage}" for stage in stages)):
        assert found[name]["verdict"] == "ok", found[name]
    assert "the loss falls from" in found["try prior"]["fact"] and "pictures drawn" in found["try stackgan"]["fact"]
    assert told["counts"]["fail"] == sum(each["verdict"] == "fail" for each in told["findings"])
    assert code == (1 if told["counts"]["fail"] else 0)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("dalle-doctor")]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("verdicts", "code", "last"),
    [(["ok", "warn"], None, "1 ok, 1 warn, 0 fail"), (["fail", "ok"], 1, "1 ok, 0 warn, 1 fail")],
)
def test_lines_and_exit_status(capsys, monkeypatch, verdicts, code, last):
    given = [Finding(f"it {n}", verdict, "a fact", "do that") for n, verdict in enumerate(verdicts)]
    monkeypatch.setattr(checkup, "findings", lambda output: iter(given))
    monkeypatch.setattr(command, "self_tested", lambda: pytest.fail("tried, though it was to be quick"))
    if code is None:
        doctor(["--quick"])
    else:
        with pytest.raises(SystemExit) as left:
            doctor(["--quick"])
        assert left.value.code == code
    *lines, summary = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == verdicts and all("a fact: do that" in line for line in lines)
    assert summary.startswith(last)


def test_without_quick_the_self_test_follows(capsys, monkeypatch):
    monkeypatch.setattr(checkup, "findings", lambda output: iter([]))
    monkeypatch.setattr(command, "self_tested", lambda: iter([Finding("try it", "fail", "broken")]))
    with pytest.raises(SystemExit):
        doctor([])
    assert capsys.readouterr().out.startswith("fail  try it")


def test_a_stage_that_ends_the_process_is_named():
    told = [
        {"begins": "dvae"},
        {"stage": "dvae", "verdict": "ok", "fact": "well", "advice": ""},
        {"begins": "prior"},
        {"failed": "was ended by SIGKILL"},
    ]
    first, second = judged(told)
    assert (first.name, first.verdict) == ("try dvae", "ok")
    assert (second.name, second.verdict, second.fact) == ("try prior", "fail", "was ended by SIGKILL")
    (unbegun,) = judged([{"failed": "no torch"}])
    assert (unbegun.name, unbegun.verdict) == ("try the stages", "fail")


def test_no_folder_to_try_in(monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command.tempfile, "TemporaryDirectory", full)
    (found,) = command.self_tested()
    assert found.verdict == "fail" and "No space left" in found.fact and "TMPDIR" in found.advice


def _raises(error):
    def run():
        raise error

    return run


def test_a_stage_that_fails_and_those_that_need_it():
    told = list(
        tried(
            {
                "one": ((), lambda: "well"),
                "two": ((), _raises(Cause("the loss does not fall"))),
                "three": (("one", "two"), lambda: pytest.fail("it needs two")),
                "four": (("three",), lambda: pytest.fail("it needs three")),
                "five": ((), _raises(RuntimeError("no\nmemory"))),
                "six": ((), _raises(SystemExit("2"))),
                "seven": (("one",), lambda: "well"),
            }
        )
    )
    verdicts = {each["stage"]: (each["verdict"], each["fact"]) for each in told if "stage" in each}
    assert [each["begins"] for each in told if "begins" in each] == ["one", "two", "five", "six", "seven"]
    assert [verdict for verdict, _ in verdicts.values()] == ["ok", "fail", "warn", "warn", "fail", "fail", "ok"]
    assert verdicts["two"][1].startswith("the loss does not fall, after")
    assert verdicts["three"][1] == "not tried: it needs what two makes"
    assert verdicts["four"][1] == "not tried: it needs what three makes"
    assert verdicts["five"][1].startswith("RuntimeError: no memory, after")


@pytest.mark.parametrize(
    ("found", "falls", "said"),
    [
        ([3.0, 2.9, 2.0, 1.5], True, "the loss falls from 2.95 to 1.75 in 4 updates"),
        ([1.0, 2.0, 2.5], False, "3 updates have a finite loss"),
        ([1.0, 1.0, 1.0, 1.0], True, None),
        ([1.0, 1.1, 1.2, 1.3], True, None),
        ([3.0, None, 2.0, 1.0], True, None),
        ([3.0, None, 2.0, 1.0], False, None),
        ([], True, None),
    ],
)
def test_losses_that_fall_or_do_not(tmp_path, found, falls, said):
    lines = [{"step": 0, "warning": "x"}, *({"step": n, "loss": loss} for n, loss in enumerate(found))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if said is not None:
        assert losses(tmp_path, falls) == said
        return
    with pytest.raises(Cause, match=r"does not fall|not finite"):
        losses(tmp_path, falls)


@pytest.mark.parametrize(("colours", "said"), [("one", "of one colour"), ("none", "no picture"), ("many", None)])
def test_pictures_that_are_none(tmp_path, monkeypatch, colours, said):
    from PIL import Image

    def sample(argv):
        folder = Path(argv[argv.index("--output") + 1]) / "images"
        folder.mkdir(parents=True)
        if colours != "none":
            picture = Image.linear_gradient("L") if colours == "many" else Image.new("RGB", (8, 8), "grey")
            picture.save(folder / "it.png")

    monkeypatch.setattr("dalle.cli.sample.sample", sample)
    if said is None:
        assert self_test._drawn(tmp_path, []) == "1 picture drawn"
        return
    with pytest.raises(Cause, match=said):
        self_test._drawn(tmp_path, [])


def test_an_output_of_no_name_is_refused():
    with pytest.raises(ValueError, match="output: is empty; give the folder where runs would go"):
        Doctor(output=" ")


def test_a_caption_that_does_not_come_back(tmp_path, monkeypatch):
    made = SimpleNamespace(encode=list, decode=lambda tokens: "a blue square", vocabulary=300)
    monkeypatch.setattr("dalle.cli.data.train_tokenizer.train_tokenizer", lambda argv: None)
    monkeypatch.setattr(Tokenizer, "load", lambda file: made)
    with pytest.raises(Cause, match="comes back as 'a blue square'"):
        self_test._tokenizer("none", str(tmp_path / "none.json"))


def test_drawings_without_codes(tmp_path, monkeypatch):
    class SomeOf64:
        meta = SimpleNamespace(grid=4)

        def __init__(self, folder):
            assert folder == str(tmp_path / "tokens")

        def __len__(self):
            return 63

    monkeypatch.setattr("dalle.cli.data.tokenize.tokenize", lambda argv: None)
    monkeypatch.setattr("dalle.data.tokens.TokenShards", SomeOf64)
    with pytest.raises(Cause, match="of 64 drawings 63 have codes"):
        self_test._tokenize("none", tmp_path)
