"""The wheel: all of the package, and a demo from it in an environment that has nothing of the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from dalle.config import shipped
from tests.conftest import ROOT, clean_environment

SOURCES = (".py", ".cpp", ".css", ".js", ".html")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git tracks."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in tracked.decode().strip("\0").split("\0"):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder / "source")], check=True)
    return next(folder.glob("dalle-*.whl"))


def test_the_wheel_has_all_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {str(p.relative_to(ROOT)) for p in (ROOT / "dalle").rglob("*") if p.suffix in SOURCES}
    configs = {f"dalle/configs/{name}.yaml" for name in shipped.names()}
    ready = {str(p.relative_to(ROOT)) for p in (ROOT / "dalle/ready/weights").rglob("*") if p.is_file()}
    settings = {name for name in ready if name.endswith(".yaml")}
    assert code | configs | settings == {name for name in names if name.endswith((*SOURCES, ".yaml"))}
    assert ready == {name for name in names if name.startswith("dalle/ready/weights/")}


def test_the_demo_runs_from_the_wheel(wheel, tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python, site = environment / "bin/python", next(environment.glob("lib/*/site-packages"))
    # the libraries, but not what a .pth file there adds, which is the checkout
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    surroundings = {k: v for k, v in clean_environment().items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def run(command, *arguments):
        line = [str(environment / "bin" / command), *arguments]
        done = subprocess.run(line, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    described = json.loads(run("dalle-describe", "demo/prior", "--json"))
    assert described["kind"] == "prior"
    # the shipped configurations with fewer updates
    for file in (site / "dalle/configs/demo").glob("*.yaml"):
        text = re.sub(r"(?m)^  steps: .*", "  steps: 2", file.read_text())
        (tmp_path / file.name).write_text(re.sub(r"(?m)^  batch_size: .*", "  batch_size: 8", text))
    numbers = ["--num_train", "64", "--captions", "2", "--candidates", "2", "--sampling.chunk", "2"]
    printed = run("dalle-demo", "--configs", str(tmp_path), *numbers)
    result = json.loads(printed.splitlines()[-1])
    assert result["caption_accuracy"]["real"] == 1.0
    assert os.path.samefile(tmp_path / result["gallery"], tmp_path / "demo/gallery/index.html")


def test_the_package_says_its_version_once():
    import dalle

    (written,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert written == dalle.__version__
