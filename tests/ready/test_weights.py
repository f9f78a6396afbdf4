"""The weights that come with the package: small enough for it, in 16 bits, each with its card and whence its images are, and each
draws."""

import re

import pytest
import torch

import dalle
from dalle.cli.sample import sample
from dalle.config import Sampling
from dalle.models.folder import check_hash
from dalle.models.weights import WeightsFile
from dalle.ready.facts import NO_LICENCE, ready_facts
from dalle.ready.files import MODEL_FILES, parts_of
from dalle.ready.names import ready_names, weights_folder
from dalle.sampling.drawing import read_drawing

MOST_BYTES = 40_000_000
FOLDERS = sorted(path for path in weights_folder().glob("*") if path.is_dir())
"""All folders, those too that are no whole models, so that a broken one fails and is not overlooked."""
each_model = pytest.mark.parametrize(
    "folder",
    FOLDERS or [pytest.param(None, marks=pytest.mark.skip(reason="no ready weights yet"))],
    ids=lambda folder: getattr(folder, "name", "none"),
)


def test_all_of_them_are_small_enough_for_the_package():
    if not FOLDERS:
        pytest.skip("no ready weights yet")
    num_bytes = sum(path.stat().st_size for path in weights_folder().rglob("*") if path.is_file())
    assert 0 < num_bytes <= MOST_BYTES
    assert [path.name for path in FOLDERS] == ready_names()


@each_model
def test_a_ready_model_holds_its_files_and_no_others(folder):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files <= set(MODEL_FILES)
    assert {"README.md", "ATTRIBUTION.md", "prior/tokenizer.json"} <= files
    assert {"prior", "dvae", "clip"} <= set(parts_of(folder))
    for name in files:
        if not name.endswith(".safetensors"):
            text = (folder / name).read_text(encoding="utf-8")
            assert not re.search(r"/(home|root|work|tmp|Users)/", text), f"{name} tells where it was made"


@each_model
def test_a_ready_model_is_in_16_bits_and_is_what_its_hashes_say(folder):
    for part in parts_of(folder):
        check_hash(folder / part)
        with WeightsFile(folder / part / "model.safetensors") as file:
            wide = {n for n, s in file.tensors.items() if s.dtype in (torch.float32, torch.float64)}
        assert not wide, f"{part}: {sorted(wide)[:3]}"


@each_model
def test_a_ready_model_has_a_card(folder):
    (facts,) = [each for each in ready_facts() if each.name == folder.name]
    assert facts.card.about and facts.card.example and facts.card.licence != NO_LICENCE
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.index("## Drawing") < text.index("## Training data and licences") < text.index("## Recipe")


@each_model
def test_a_ready_model_draws(folder, tmp_path):
    """By its name, ranked, as a person who has just installed the package would."""
    (facts,) = [each for each in ready_facts() if each.name == folder.name]
    options = ["--n", "2", "--keep", "1", "--sampling.chunk", "2", "--output", str(tmp_path / "out")]
    sample(["--model", folder.name, *options, facts.card.example])
    (path,) = (tmp_path / "out/images").glob("*.png")
    drawing = read_drawing(path)
    assert drawing.image.width == facts.image_size_px and drawing.score is not None
    (other,) = dalle.load(folder.name).generate(facts.card.example, n=2, keep=1, sampling=Sampling(chunk=2))
    assert (other.seed, other.image.size) == (drawing.seed, drawing.image.size)
