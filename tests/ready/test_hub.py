"""What comes from the Hub: the very pixels that were published, out of the cache where there is no network, nothing but files of
models, and one line for whatever is wrong with it."""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dalle
from dalle.cli.sample import sample
from dalle.config import DVAEModel, Sampling
from dalle.data.sources.hub import _limit
from dalle.models import weights
from dalle.models.folder import read_header, save_weights
from dalle.ready.hub import fetch
from dalle.ready.names import find_clip, find_model, find_part
from tests.conftest import ROOT, clean_environment

QUICK = {"n": 2, "keep": 2, "sampling": Sampling(chunk=2, precision="fp32")}
NOBODY = "http://127.0.0.1:9"
"""Where nobody listens."""
NAMES = ("model.safetensors", "config.yaml", "tokenizer.json", "tokenizer.words.json")


def _files(folder: Path) -> dict[str, bytes]:
    """Of a model, as a repository holds them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.name in NAMES}


def _refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        find_model(name)
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)


def test_a_name_of_the_hub_draws_what_the_folder_draws_also_offline(hub, whole, monkeypatch):
    commit = hub.put("someone/tiny", _files(whole))
    ours = dalle.load(whole, device="cpu", precision="fp32").generate("a red circle", **QUICK)
    theirs = dalle.load("someone/tiny", device="cpu", precision="fp32").generate("a red circle", **QUICK)
    assert all(np.array_equal(one.image, other.image) for one, other in zip(ours, theirs, strict=True))
    assert theirs[0].score == ours[0].score is not None
    asked = len(hub.asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = find_model("someone/tiny")
    assert len(hub.asked) == asked and folder == find_model(f"someone/tiny@{commit}")
    assert find_part("someone/tiny", "dvae") == folder / "dvae" and find_clip("someone/tiny") == str(folder / "clip")
    _refused(
        "someone/other", r"^model someone/other: no such folder here, and the Hub cannot be reached for someone/other"
    )


def test_without_a_network_the_cache_is_taken(hub, whole, monkeypatch):
    hub.put("someone/tiny", _files(whole))
    folder = fetch("someone/tiny")
    hub.broken.add("busy")
    assert fetch("someone/tiny") == folder
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOBODY)
    assert fetch("someone/tiny") == folder
    with pytest.raises(ValueError, match="the Hub cannot be reached for someone/new"):
        fetch("someone/new")


def test_a_model_is_looked_up_once_by_a_command(hub, whole, tmp_path):
    """What is drawn with is what was checked, even where somebody publishes another one meanwhile."""
    hub.put("someone/tiny", _files(whole))
    options = ["--sampling.chunk", "2", "--sampling.precision", "fp32", "--n", "2", "--keep", "2"]
    sample(["--model", "someone/tiny", "--output", str(tmp_path / "out"), *options, "a red circle"])
    assert sum(path.endswith("/api/models/someone/tiny/revision/main") for _, path in hub.asked) == 1


def test_revisions(hub, whole):
    first = hub.put("someone/tiny", _files(whole))
    second = hub.put("someone/tiny", {**_files(whole), "README.md": b"later"})
    assert (find_model("someone/tiny") / "README.md").read_text() == "later"
    assert not (find_model(f"someone/tiny@{first}") / "README.md").exists()
    assert (find_model(f"someone/tiny@{second}") / "README.md").exists()
    _refused("someone/tiny@v9", r"the Hub's someone/tiny has no such revision; give a branch, a tag or a whole commit")


def test_what_is_not_there_or_private_is_said(hub, whole, monkeypatch):
    hub.put("someone/hidden", _files(whole), private=True)
    hub.put("someone/closed", _files(whole), private=True)
    assert find_model("someone/hidden").is_dir()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    _refused("someone/closed", r"the Hub has no someone/closed, or it is private; for a private one log in")
    _refused(
        "someone/gone", r"the Hub has no someone/gone, or it is private; for a private one log in with `hf auth login`"
    )
    hub.broken.add("busy")
    _refused("someone/gone", r"the Hub answered 503 for someone/gone, which is not whole in the cache; try later")


def test_a_single_model_stands_for_a_part(hub, whole):
    hub.put(
        "someone/prior",
        {name.partition("/")[2]: content for name, content in _files(whole).items() if "prior/" in name},
    )
    folder = find_part("someone/prior", "prior")
    assert read_header(folder)["hash"] == read_header(whole / "prior")["hash"]


def test_nothing_but_files_of_models_is_fetched(hub, whole, tmp_path):
    hub.put(
        "someone/tiny",
        {
            **_files(whole),
            "pytorch_model.bin": b"\x80\x04cos\nsystem\n",
            "prior/model.pkl": b"\x80\x04cos\nsystem\n",
            "prior/modeling.py": b"raise SystemExit",
            "prior/checkpoints/config.yaml": b"a: 1",
            "../../../outside.json": b"{}",
            "dvae/../../config.yaml": b"{}",
            "/absolute/config.yaml": b"{}",
        },
    )
    folder = find_model("someone/tiny")
    cache = tmp_path / "hub-cache"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == sorted(
        _files(whole)
    )
    assert not [path for path in tmp_path.rglob("outside.json")] and not [*cache.rglob("*.py"), *cache.rglob("*.pkl")]
    assert not [path for _, path in hub.asked if "bin" in path or ".py" in path or "outside" in path]


def test_a_repository_of_something_else_is_refused(hub):
    hub.put("someone/other", {"pytorch_model.bin": b"\x80\x04", "config.json": b"{}", "README.md": b"# another"})
    _refused(
        "someone/other", r"the Hub's repository holds no model of this program: neither model.safetensors nor prior/"
    )
    from safetensors.torch import save

    hub.put("someone/unet", {"model.safetensors": save({"a": torch.zeros(2)}, {"format": "pt"}), "config.json": b"{}"})
    _refused("someone/unet", r"was not written by this program: its header names no kind of model")
    hub.put("someone/html", {"model.safetensors": b"<html>404</html>" * 9})
    _refused("someone/html", r"^model someone/html: .*model.safetensors cannot be read")


def test_parts_that_are_not_what_they_are_called_are_refused(hub, whole):
    files = _files(whole)
    hub.put("someone/mixed", {**files, "prior/model.safetensors": files["dvae/model.safetensors"]})
    with pytest.raises(ValueError, match="prior holds a dvae, not a prior"):
        dalle.load("someone/mixed", device="cpu")


def test_weights_that_only_claim_a_hash_are_refused(hub, whole, tmp_path, monkeypatch):
    """Sealed, of matching checksums, and loadable: only the content hash tells."""
    header = read_header(whole / "dvae")
    tensors = {name: value + 1 for name, value in dalle.load(whole, device="cpu").dvae.state_dict().items()}
    forged = tmp_path / "forged"
    config = json.loads(header["config"])
    sizes = DVAEModel(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})

    class Claimed:
        """A digest that tells another's."""

        def __init__(self):
            self.update = lambda _: None

        def hexdigest(self):
            return header["hash"]

    with monkeypatch.context() as patched:
        whole_digest = weights.hashlib.sha256  # which is begun without anything, and the seal's with all of it
        patched.setattr(weights.hashlib, "sha256", lambda *given: whole_digest(*given) if given else Claimed())
        save_weights(forged, "dvae", tensors, sizes, {})
    assert read_header(forged)["hash"] == header["hash"]
    shutil.copy(forged / "model.safetensors", whole / "dvae/model.safetensors")
    assert dalle.load(whole, device="cpu")  # a folder of one's own is checked for damage alone
    hub.put("someone/forged", _files(whole))
    _refused(
        "someone/forged", r"^model someone/forged: .*dvae/model.safetensors: its weights are not those that its hash"
    )


@pytest.mark.parametrize("broken", ["truncated", "other bytes"])
def test_a_download_that_goes_wrong_leaves_nothing_that_is_taken_for_a_model(hub, whole, broken, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.put("someone/tiny", _files(whole))
    hub.broken.add(broken)
    _refused(
        "someone/tiny",
        {"truncated": "did not come through: OSError: Consistency", "other bytes": "not those that its hash"}[broken],
    )
    _refused("someone/tiny", "did not come through" if broken == "truncated" else "not those that its hash")


def test_the_environment_names_the_hub(hub, whole, tmp_path):
    """As a user's process sees it: HF_ENDPOINT, and no heavy library for a look-up of ready names."""
    hub.put("someone/tiny", _files(whole))
    program = (
        "from dalle.ready.names import find_model, ready_names; import sys; ready_names(); "
        "assert 'huggingface_hub' not in sys.modules; print(find_model('someone/tiny'))"
    )
    environment = clean_environment() | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home/hub/models--someone--tiny/snapshots")
    assert (Path(done.stdout.strip()) / "prior/model.safetensors").is_file()


def test_a_hub_that_is_silent_is_not_waited_for(hub, whole, monkeypatch):
    """It takes the connection, and never answers. What the cache holds is taken."""
    hub.put("someone/tiny", _files(whole))
    folder = fetch("someone/tiny")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
        began_s = time.monotonic()
        assert fetch("someone/tiny") == folder
        _refused("someone/other", "the Hub cannot be reached for someone/other, which is not whole in the cache")
        assert time.monotonic() - began_s < 20  # without a limit it is for ever


def test_requests_that_name_their_own_limits_keep_them(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 3)
    for method, given, limits in (
        ("GET", {}, (3, 3)),
        ("HEAD", {"connect": None, "read": None}, (3, 3)),
        ("GET", {"connect": 5.0, "read": None}, (5.0, 3)),
        ("POST", {}, (36, 36)),
    ):
        request = SimpleNamespace(method=method, extensions={"timeout": given})
        _limit(request)
        assert (request.extensions["timeout"]["connect"], request.extensions["timeout"]["read"]) == limits
