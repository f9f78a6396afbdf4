"""Models of somebody else whose parts cannot work together, exports that were cut off, and a Hub or a cache that is out of order."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import dalle
from dalle.cli.export import export
from dalle.config import PriorModel
from dalle.models.folder import read_config, read_header, save_weights
from dalle.models.prior import Prior
from dalle.ready.hub import fetch
from dalle.sampling.model_set import find_models
from tests.ready.test_hub import _files


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codebook_size": 17}, "has 17 codes, and what it was trained with 16"),
        ({"grid": 5}, "has 5 codes a side, and what it was trained with 4"),
        ({"text_vocabulary": 260}, r"has 260 tokens of captions at most, and what it was trained with 2\d\d"),
    ],
)
def test_parts_that_only_claim_to_belong_together_are_refused(whole, changes, said):
    links = {name: value for name, value in read_header(whole / "prior").items() if name.endswith("_hash")}
    sizes: PriorModel = replace(read_config(whole / "prior", "prior"), **changes)
    save_weights(whole / "prior", "prior", Prior(sizes).state_dict(), sizes, links)
    with pytest.raises(ValueError, match=rf"^the prior {whole}/prior {said}"):
        find_models(whole)


def test_an_export_that_was_cut_off_leaves_nothing_to_the_next(whole, tmp_path, monkeypatch):
    """Which may be of a model that has fewer parts, or of a single one."""
    out, done = tmp_path / "out", []

    def cut_off(source, target):
        if Path(target).parent == out and not Path(target).name.startswith("."):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(target)
        os.rename(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("os.replace", cut_off)
        export([str(whole), "--output", str(out), "--dtype", "fp16"])
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == ["ATTRIBUTION.md", "clip"]
    (whole / "ATTRIBUTION.md").unlink()
    shutil.rmtree(whole / "clip")
    export([str(whole), "--output", str(out), "--dtype", "fp16"])
    assert sorted(path.name for path in out.iterdir()) == ["dvae", "prior"]
    assert dalle.load(out, device="cpu").hashes.keys() == {"prior", "dvae", "tokenizer"}


def test_a_damaged_cache_says_how_to_fetch_anew(hub, whole, tmp_path):
    hub.put("someone/tiny", _files(whole))
    hub.broken.add("other bytes")
    cached = tmp_path / "hub-cache/models--someone--tiny"
    with pytest.raises(ValueError, match=rf"not what it says; copy it once more; or delete {cached} to fetch it anew$"):
        fetch("someone/tiny")
    hub.broken.clear()
    with pytest.raises(ValueError, match="to fetch it anew"):
        fetch("someone/tiny")
    shutil.rmtree(cached)
    assert (fetch("someone/tiny") / "prior/model.safetensors").is_file()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_cache_that_may_not_be_written_is_said(hub, whole, monkeypatch, number):
    """As a disk that is mounted for reading answers; whoever runs the tests may be allowed everything."""
    hub.put("someone/tiny", _files(whole))

    def refused(*_, **__):
        raise OSError(number, os.strerror(number), "/shared/hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    with pytest.raises(
        ValueError, match=r"the cache cannot take someone/tiny: /shared/hub may not be written; name an"
    ) as e:
        fetch("someone/tiny")
    assert "HF_HOME" in str(e.value) and "HF_HUB_OFFLINE=1" in str(e.value)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("round and round", "did not come through: TooManyRedirects"),
        ("nonsense", "is not answered for as the Hub does"),
    ],
)
def test_a_hub_that_leads_nowhere_is_one_line(hub, whole, broken, said):
    hub.put("someone/tiny", _files(whole))
    hub.broken.add(broken)
    with pytest.raises(
        ValueError, match=f"^model someone/tiny: no such folder here, and the Hub's someone/tiny {said}"
    ) as e:
        fetch("someone/tiny")
    assert "\n" not in str(e.value) and len(str(e.value)) < 400
