"""What is declared beside what is there, on machines that lack some of it."""

import importlib.metadata
import sys

import pytest

from dalle.machine.packages import Declared, declared, installed, package_findings, python_finding
from tests.conftest import ROOT

WANTED = Declared(
    ">=3.10",
    ("torch>=2.9", "numpy>=1.26", 'old; python_version < "3"'),
    {"web": ("starlette>=0.40", "uvicorn"), "all": ("dalle[web]", "numpy"), "test": ("pytest",)},
)
GOOD = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "starlette": "1.0", "uvicorn": "0.5"}


def _findings(has, tmp_path, constraints=None, wanted=WANTED):
    file = tmp_path / "constraints.txt"
    if constraints is not None:
        file.write_text(constraints)
    found = {each.name: each for each in package_findings(wanted, has.get, file)}
    return found


def test_a_machine_that_has_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [])
    found = _findings(GOOD, tmp_path, "# tested\ntorch==2.13.0\nold==1 ; python_version < '3'\nabsent==5\n")
    assert {each.verdict for each in found.values()} == {"ok"}
    # those of developers are nobody's lack, and what a marker leaves out is not looked for
    assert list(found) == ["packages", "tested versions", "extra web", "extra all"]


@pytest.mark.parametrize(
    ("broken", "fact", "advice"),
    [
        ({"torch": "2.8.1"}, "torch is 2.8.1, where >=2.9 is needed", "pip install 'torch>=2.9'"),
        ({"torch": None}, "torch is missing", "pip install 'torch>=2.9'"),
        (
            {"torch": "1.0", "numpy": None},
            "torch is 1.0, where >=2.9 is needed, numpy is missing",
            "pip install 'torch>=2.9' 'numpy>=1.26'",
        ),
    ],
)
def test_what_does_not_fit_is_a_failure_with_its_line_of_pip(tmp_path, monkeypatch, broken, fact, advice):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [])
    found = _findings(GOOD | broken, tmp_path)["packages"]
    assert (found.verdict, found.fact, found.advice) == ("fail", fact, advice)


def test_a_prerelease_that_is_new_enough_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [])
    assert _findings(GOOD | {"torch": "2.14.0.dev20260101"}, tmp_path)["packages"].verdict == "ok"


def test_an_extra_that_lacks_something_has_its_line_of_pip(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [])
    found = _findings(GOOD | {"uvicorn": None}, tmp_path)
    told = {name: (each.verdict, each.fact, each.advice) for name, each in found.items() if name.startswith("extra")}
    assert told == {
        "extra web": ("warn", "uvicorn is missing", "pip install 'dalle[web]'"),
        "extra all": ("warn", "uvicorn is missing", "pip install 'dalle[all]'"),  # which brings what `web` does
    }
    assert _findings(GOOD, tmp_path)["extra all"].fact == "starlette, uvicorn, numpy are there"


def test_versions_other_than_those_tested_together_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [])
    found = _findings(GOOD, tmp_path, "torch==2.13.0\nnumpy==2.4.5\n")["tested versions"]
    assert (found.verdict, found.fact) == ("warn", "numpy is 2.4.6 (2.4.5 was tested)")


def test_what_packages_need_of_each_other(tmp_path, monkeypatch):
    """torch wants numpy below 2 and, for an extra that nobody asked for, something else; what it needs wants more."""
    needs = {
        "torch": ["numpy<2", "deep>=1", 'never; extra == "more"'],
        "deep": ["torch", "deeper", 'asked; extra == "some"'],
        "numpy": [],
    }
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs.get(name, []))
    has = GOOD | {"deep": "1.5"}
    found = _findings(has, tmp_path)["packages' own"]
    assert found.verdict == "warn"
    assert set(found.fact.split(", ")) == {
        "deeper is missing by deep",
        "numpy is 2.4.6",
        "where <2 is needed by torch",
    }
    needs["torch"][1] = "deep[some]>=1"
    assert "asked is missing by deep" in _findings(has, tmp_path)["packages' own"].fact


def test_without_an_installation_the_way_to_one_is_told(tmp_path):
    (found,) = package_findings(None, GOOD.get, tmp_path / "none")
    assert found.verdict == "warn" and "pip install -e ." in found.advice
    assert python_finding(None, "3.12.1").verdict == "ok"


@pytest.mark.parametrize(("version", "verdict"), [("3.9.18", "fail"), ("3.10.0", "ok"), ("3.14.0rc1", "ok")])
def test_a_python_that_is_too_old(version, verdict):
    found = python_finding(WANTED, version)
    assert found.verdict == verdict and version in found.fact and (verdict == "ok" or ">=3.10" in found.fact)


def test_what_is_declared_is_the_checkouts_and_else_the_installations(tmp_path):
    here, there = declared(), declared(tmp_path)
    assert here.python == ">=3.10" and any(each.startswith("torch") for each in here.always) and "eval" in here.extras
    if sys.version_info >= (3, 11):
        text = (ROOT / "pyproject.toml").read_text().replace('"einops>=0.8"', '"einops>=99"')
        (tmp_path / "pyproject.toml").write_text(text)
        assert "einops>=99" in declared(tmp_path).always
        (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
        assert declared(tmp_path) == there
    if there is None:
        pytest.skip("NOT TESTED: an installation's own data. The package is not installed")
    assert there.always and "torch-fidelity==0.4.*" in {each.split(";")[0].strip() for each in there.extras["eval"]}
    assert not any("extra" in each for each in there.always)


def test_the_version_of_a_package():
    assert installed("pytest") == pytest.__version__ and installed("no-such-package-at-all") is None
