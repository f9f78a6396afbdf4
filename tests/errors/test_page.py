"""`docs/errors.md` is what the code says, each message says what to do, and each is raised in a test."""

import ast
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import pytest

# of tools/, which recording has put on the path
from messages.page import lacking, own_words, page, theme
from messages.places import all_places, places
from messages.remedy import parts
from messages.wording import wordings

from tests.conftest import ROOT
from tests.errors import recording

PLACES = all_places()


def test_the_page_is_what_the_code_says():
    assert (ROOT / "docs/errors.md").read_text(encoding="utf-8") == page(PLACES), "write it with tools/errors.py"


def test_every_refusal_says_what_to_do():
    assert not lacking(PLACES)
    (warning,) = [place for place in PLACES if place.name == "dalle/decoding/native.py _warn 1"]
    (said,) = lacking([replace(warning, kind="ValueError")])
    assert said.endswith(": WHY: sampling uses PyTorch's own operations, which take longer") and not lacking([warning])


def test_places_are_found_by_what_they_do():
    found = _found(
        """
        def f(x):
            require(x > 0, f"x {x}: must be positive")
            at_least(config, 1, "n")
            if x:
                raise ValueError("no")
            warn("careful")
            telemetry.warn("careful")
            job.refuse("later", 503)
            refusal("not returned", 500)
            raise Other(f"{x}")
            return refusal("no", 403)

        class C:
            def g(self):
                try:
                    raise
                except KeyError:
                    raise KeyboardInterrupt
                raise AssertionError("for ourselves")
                raise NotImplementedError
                warnings.warn_explicit("not ours")
        """
    )
    kinds = ["check", "check", "ValueError", "warning", "warning", "answer", "Other", "answer"]
    assert [(place.function, place.number, place.kind) for place in found] == [
        ("f", number, kind) for number, kind in enumerate(kinds, 1)
    ]


def test_a_place_keeps_its_name_while_lines_move_and_messages_change():
    one, other = (
        _found("def f():\n    raise ValueError('a')"),
        _found("\n\ndef f():\n    a = 1\n    raise ValueError('b')"),
    )
    assert one[0].name == other[0].name == "dalle/x.py f 1"


@pytest.mark.parametrize(
    ("file", "function", "number", "said"),
    [
        ("dalle/config/sampling.py", "Sampling.__post_init__", 2, ["top_k TOP_K: must be at least 1"]),
        ("dalle/config/best_of.py", "BestOf.__post_init__", 2, ["captions CAPTIONS: must be at most 2,147,483,648"]),
        (
            "dalle/config/commands/stages.py", "TrainTokenizer.__post_init__", 1,
            ["vocabulary VOCABULARY: must be at least 256", "vocabulary VOCABULARY: must be at most 16,777,216"],
        ),
        (
            "dalle/outputs/ownership.py", "check", 2,
            [f"output FOLDER is not empty: it holds FOUND, which COMMAND did not make; name another --output{more}"
             for more in ("", ", or write over it with --overwrite")],
        ),
        (
            "dalle/models/weights.py", "load_weights", 2,
            ["PATH is damaged: the values of NAME are not those that were written; copy it or export it once more"],
        ),
        ("dalle/text/tokenizer.py", "Tokenizer.load", 3, ["the tokenizer PATH: ERROR"]),
        ("dalle/cli/train.py", "_claimed_by_first", 1, []),
    ],
)  # fmt: skip
def test_what_a_place_says_is_read_from_its_code(file, function, number, said):
    (place,) = [place for place in PLACES if place.name == f"{file} {function} {number}"]
    assert wordings(place) == said


@pytest.mark.parametrize(
    ("message", "what", "remedy"),
    [
        ("n N: must be at least 1", "n N", "must be at least 1"),
        ("PATH is damaged: X; delete it", "PATH is damaged: X", "delete it"),
        ("it has a name, and more: name it", "it has a name, and more", "name it"),
        ("it is not there", "it is not there", ""),
        ("X: NAME is not there; name it", "X: NAME is not there", "name it"),
        ("it is given; settings are none", "it is given; settings are none", ""),
        ("X is missing (write it again, or leave it out)", "X is missing", "write it again, or leave it out"),
        ("KEY is private; for a private one log in with `hf`", "KEY is private", "for a private one log in with `hf`"),
    ],
)
def test_the_remedy_is_what_is_asked_for(message, what, remedy):
    assert parts(message) == (what, remedy)


def test_a_file_without_a_section_is_refused():
    place = SimpleNamespace(kind="ValueError", file="dalle/attic/x.py")
    with pytest.raises(ValueError, match=r"dalle/attic/x\.py: belongs to no section"):
        theme(place)


def test_what_is_raised_is_noted_and_nothing_else_changes(monkeypatch):
    noted = []
    monkeypatch.setattr(recording, "note", noted.append)
    source = textwrap.dedent(
        """
        def f(x):
            if x == 1:
                raise ValueError("one")
            require(x != 2, "two")
            if x == 3: warn("three")
            return x
        """
    )
    tree = recording._Noting(places(ast.parse(source), "dalle/x.py")).visit(ast.parse(source))
    assert ast.dump(tree) == ast.dump(ast.parse(source))  # of another tree: nothing is put in
    tree = ast.parse(source)
    names = {"require": _require, "warn": lambda message: None}
    exec(compile(recording._Noting(places(tree, "dalle/x.py")).visit(tree), "x", "exec"), names)
    for x, line in ((1, 4), (2, 5), (3, None), (4, None)):
        if line is None:
            assert names["f"](x) == x
        else:
            with pytest.raises(ValueError, match=r"one|two") as raised:
                names["f"](x)
            assert raised.traceback[1].lineno + 1 == line
    assert noted == ["dalle/x.py f 1", "dalle/x.py f 2", "dalle/x.py f 3"]


def test_a_whole_run_fails_where_a_place_was_not_reached(tmp_path, monkeypatch):
    file = tmp_path / "said.txt"
    monkeypatch.setenv(recording.KEPT_IN, str(file))
    monkeypatch.setattr(recording, "all_places", lambda: PLACES)
    names = [place.name for place in PLACES if own_words(place)]
    file.write_text("\n".join(names[1:]))
    for changes, whole in (
        ({}, True), ({"args": ["tests"], "args_source": "args"}, True), ({"args": ["tests/data"], "args_source": "args"}, False),
        ({"keyword": "x"}, False), ({"markexpr": "faults"}, False), ({"workerinput": {}}, False), ({"lf": True}, False),
    ):  # fmt: skip
        config = _config(**changes)
        session = SimpleNamespace(config=config, exitstatus=0)
        recording.pytest_sessionfinish(session, 0)
        assert session.exitstatus == int(whole)
        assert [place.name for place in config.__dict__.get("left", ())] == (names[:1] if whole else [])
    session = SimpleNamespace(config=_config(), exitstatus=1)
    recording.pytest_sessionfinish(session, 1)  # tests that fail are enough to read
    assert not hasattr(session.config, "left")
    file.write_text("\n".join(names))
    session = SimpleNamespace(config=_config(), exitstatus=0)
    recording.pytest_sessionfinish(session, 0)
    assert session.exitstatus == 0


def _config(**changes) -> SimpleNamespace:
    option = {"keyword": "", "markexpr": "not faults", "collectonly": False}
    option |= {name: changes.pop(name) for name in ("keyword", "markexpr", "lf") if name in changes}
    sources = SimpleNamespace(TESTPATHS="testpaths")
    return SimpleNamespace(
        **{"option": SimpleNamespace(**option), "args_source": "testpaths", "args": [], "ArgsSource": sources} | changes
    )


def _found(source: str):
    return places(ast.parse(textwrap.dedent(source)), "dalle/x.py")


def _require(condition, message):
    if not condition:
        raise ValueError(message)
