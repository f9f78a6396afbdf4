"""The sdist and the wheel made of it: all of the package, and what draws and trains with it in an environment that has nothing
of the checkout."""

import email.parser
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle.config import shipped
from dalle.data.shapes import Claim, ClaimedObject, shows
from tests.conftest import ROOT, clean_environment
from tests.test_architecture import FILES, imports

SOURCES = (".py", ".cpp", ".css", ".js", ".html")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist, of a copy of what git tracks, and the wheel that is made of that sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in tracked.decode().strip("\0").split("\0"):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    options = ["--no-isolation", "--skip-dependency-check", "--outdir", str(folder)]
    line = [sys.executable, "-m", "build", *options, str(folder / "source")]
    done = subprocess.run(line, env=_surroundings(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("dalle-*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment with the package and, from where they are, the libraries; nothing of the checkout, and no network."""
    environment = tmp_path_factory.mktemp("installed") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/*/site-packages")
    # the libraries, but not what a .pth file there adds, which is the checkout
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    (site / "no_network.py").write_text(_NO_NETWORK)
    (site / "no_network.pth").write_text("import no_network")  # a sitecustomize may be hidden by another one
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True)
    return environment


_NO_NETWORK = """
import socket

connect = socket.socket.connect

def at_home(self, address):
    if self.family != socket.AF_UNIX and not str(address[0]).startswith("127."):
        raise OSError(f"asked for the network: {address}")
    return connect(self, address)

socket.socket.connect = socket.socket.connect_ex = at_home
"""


def _surroundings() -> dict[str, str]:
    return {k: v for k, v in clean_environment().items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def _run(environment, folder, command, *arguments):
    line = [str(environment / "bin" / command), *arguments]
    # a home of its own: what was fetched or compiled for this user is not there
    home = environment.parent / "home"
    surroundings = _surroundings() | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        surroundings.pop(name, None)
    done = subprocess.run(line, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_wheel_has_all_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {str(p.relative_to(ROOT)) for p in (ROOT / "dalle").rglob("*") if p.suffix in SOURCES}
    configs = {f"dalle/configs/{name}.yaml" for name in shipped.names()}
    ready = {str(p.relative_to(ROOT)) for p in (ROOT / "dalle/ready/weights").rglob("*") if p.is_file()}
    settings = {name for name in ready if name.endswith(".yaml")}
    assert code | configs | settings == {name for name in names if name.endswith((*SOURCES, ".yaml"))}
    assert ready == {name for name in names if name.startswith("dalle/ready/weights/")}
    assert "dalle/py.typed" in names  # without it a type checker takes nothing of the package for typed


def test_the_wheel_says_what_it_needs_and_offers(wheel):
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    told = email.parser.Parser().parsestr(archive.read(path).decode())
    assert told["Requires-Python"] == ">=3.10"
    prefix = "Programming Language :: Python :: 3."
    versions = [each.removeprefix(prefix) for each in told.get_all("Classifier") if each.startswith(prefix)]
    assert versions == ["10", "11", "12", "13"]
    assert {"eval", "data", "text", "web", "cluster", "test"} <= set(told.get_all("Provides-Extra"))
    assert told["License-Expression"] == "MIT"


def test_the_wheel_names_every_library_that_its_code_imports(wheel):
    """Not those alone that others bring with them, which one day they may not."""
    code = {name.partition(".")[0]: path for path in FILES for name in imports(path)}
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    told = email.parser.Parser().parsestr(archive.read(path).decode())
    needed = [each for each in told.get_all("Requires-Dist") if not re.search(r'extra == "(test|docs|bench)"', each)]
    declared = {_normal(re.split(r"[^\w.-]", each)[0]) for each in needed}
    brought_by = importlib.metadata.packages_distributions()
    libraries = set(code) - set(sys.stdlib_module_names) - {"dalle", "_typeshed"}
    assert {"torch", "starlette", "sklearn", "pyarrow"} <= libraries
    undeclared = {n: code[n] for n in libraries if not declared & {_normal(d) for d in brought_by.get(n, ())}}
    assert undeclared == {}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_package_draws_in_an_empty_environment_without_a_network(environment, tmp_path):
    where = _run(environment, tmp_path, "python", "-c", "import dalle; print(dalle.__file__)")
    assert environment in Path(where.strip()).parents
    asking = "import socket\ntry: socket.create_connection(('192.0.2.1', 80))\nexcept OSError as error: print(error)"
    assert "asked for the network" in _run(environment, tmp_path, "python", "-c", asking)
    drawn = ["--model", "shapes", "--n", "2", "--sampling.chunk", "2", "--sampling.precision", "fp32"]
    _run(environment, tmp_path, "dalle-sample", *drawn, "--output", "drawn", "a red circle")
    claim = Claim((ClaimedObject("circle", "red"),))
    pictures = [Image.open(path).convert("RGB") for path in (tmp_path / "drawn/images").rglob("*.png")]
    assert pictures and all(picture.size == (64, 64) for picture in pictures)
    assert any(shows(np.asarray(picture), claim) for picture in pictures)


def test_the_demo_runs_from_the_wheel(environment, tmp_path):
    (site,) = environment.glob("lib/*/site-packages")
    described = json.loads(_run(environment, tmp_path, "dalle-describe", "demo/prior", "--json"))
    assert described["kind"] == "prior"
    # the shipped configurations with fewer updates
    for file in (site / "dalle/configs/demo").glob("*.yaml"):
        text = re.sub(r"(?m)^  steps: .*", "  steps: 2", file.read_text())
        (tmp_path / file.name).write_text(re.sub(r"(?m)^  batch_size: .*", "  batch_size: 8", text))
    numbers = ["--num_train", "64", "--captions", "2", "--candidates", "2", "--sampling.chunk", "2"]
    printed = _run(environment, tmp_path, "dalle-demo", "--configs", str(tmp_path), *numbers)
    result = json.loads(printed.splitlines()[-1])
    assert result["caption_accuracy"]["real"] == 1.0
    assert os.path.samefile(tmp_path / result["gallery"], tmp_path / "demo/gallery/index.html")


def test_the_package_says_its_version_once():
    import dalle

    (written,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert written == dalle.__version__
