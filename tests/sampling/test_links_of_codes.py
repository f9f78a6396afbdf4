"""A dVAE whose decoder alone was trained further reads the codes of the first: all that was made of those goes on with it.
Where pixels are what matters the two are others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dalle.cli import arguments
from dalle.cli.data.tokenize import tokenize
from dalle.cli.sample import sample
from dalle.cluster.topology import World
from dalle.config import TrainCLIP, TrainDVAE, TrainPrior
from dalle.data.tokens import TokenShards
from dalle.evaluation.held_out_pairs import image_pairs
from dalle.models.folder import codes_hash, read_config, read_header, save_weights
from dalle.sampling.again import read_record
from dalle.sampling.drawing import codes_of, read_drawing, save_drawing
from dalle.sampling.model_set import find_models
from dalle.sampling.prompt import known_codes
from dalle.stages import clip as stages_clip
from dalle.stages import prior as stages_prior
from dalle.stages.starting import start_of
from tests.conftest import TINY_CLIP, TINY_DVAE, TINY_PRIOR

WORLD = World(0, 1, torch.device("cpu"))


def _other_decoder(dvae: Path, target: Path, links: dict[str, str]) -> Path:
    """The same dVAE with another decoder, as a training of it alone writes it."""
    weights = load_file(dvae / "model.safetensors")
    generator = torch.Generator().manual_seed(len(links))
    for name in weights:
        if name.startswith("decoder."):
            weights[name] += 0.3 * torch.randn(weights[name].shape, generator=generator)
    save_weights(target, "dvae", weights, read_config(dvae, "dvae"), links)
    return target


@pytest.fixture(scope="module")
def first_hash(models) -> str:
    return read_header(models / "dvae")["hash"]


@pytest.fixture(scope="module")
def sharper(models, first_hash, tmp_path_factory) -> Path:
    return _other_decoder(models / "dvae", tmp_path_factory.mktemp("sharper") / "dvae", {"codes_of_hash": first_hash})


@pytest.fixture(scope="module")
def stranger(models, tmp_path_factory) -> Path:
    """One that says nothing of whose codes it reads."""
    return _other_decoder(models / "dvae", tmp_path_factory.mktemp("stranger") / "dvae", {})


def _frozen(start: Path) -> TrainDVAE:
    sizes = TINY_DVAE[: TINY_DVAE.index("--optimizer.step_size.start")]
    options = [*sizes, *TINY_DVAE[len(sizes) :], "--run.steps", "1", "--data", "x", "--output", "x"]
    return arguments.parse(TrainDVAE, "test", [*options, "--from", str(start), "--freeze", "encoder"])


def test_chains_point_to_the_first(models, sharper, stranger, first_hash):
    assert codes_hash(models / "dvae") == codes_hash(sharper) == first_hash
    assert read_header(sharper)["hash"] != first_hash
    for start in (models / "dvae", sharper):
        links = start_of(_frozen(start), "dvae", WORLD).links
        assert links == {"started_from_hash": read_header(start)["hash"], "codes_of_hash": first_hash}
    assert codes_hash(stranger) == read_header(stranger)["hash"] != first_hash
    with pytest.raises(ValueError, match="holds a prior, not a dvae"):
        codes_hash(models / "prior")


def test_all_that_was_made_of_the_codes_goes_on(models, codes_clip, sharper, stranger, first_hash):
    found = find_models(models, dvae=sharper, rerank=True, shortlist=True, codes_clip=codes_clip)
    assert found.hashes["dvae"] == read_header(sharper)["hash"]  # whose pixels are drawn
    assert found.hashes["codes"] == codes_of(found.hashes) == first_hash
    plain = find_models(models, rerank=False).hashes
    assert "codes" not in plain and codes_of(plain) == first_hash
    for options in ({"rerank": False}, {"rerank": True}, {"shortlist": True, "codes_clip": codes_clip}):
        with pytest.raises(ValueError, match="another dVAE"):
            find_models(models, dvae=stranger, **options)


def test_tokens_are_those_of_the_first(models, sharper, stranger, shapes_folder, first_hash, tmp_path):
    pairs = ["--data", f"{shapes_folder}/valid-000.tar"]
    tokenize([*pairs, "--dvae", str(sharper), "--output", f"{tmp_path}/tokens"])
    made, own = TokenShards(tmp_path / "tokens"), TokenShards(models / "tokens/valid")
    assert made.meta == own.meta and made.meta.dvae_hash == first_hash
    assert all(np.array_equal(made.pair(0, i)[0], own.pair(0, i)[0]) for i in range(len(own)))
    # so they are not of another making, which only --overwrite would replace
    tokenize([*pairs, "--dvae", f"{models}/dvae", "--output", f"{tmp_path}/tokens"])
    with pytest.raises(ValueError, match="token shards made with other settings"):
        tokenize([*pairs, "--dvae", str(stranger), "--output", f"{tmp_path}/tokens"])
    assert image_pairs(f"{shapes_folder}/valid-000.tar", sharper).dvae_hash == first_hash


def test_trainings_that_name_it_are_of_the_first(models, sharper, stranger, shapes_folder, first_hash):
    tokenizer = ["--tokenizer", f"{models}/prior/tokenizer.json", "--output", "x", "--run.steps", "1"]
    prior = [*TINY_PRIOR, *tokenizer, "--data", f"{models}/tokens/train"]
    clip = [*TINY_CLIP, *tokenizer, "--data", f"{shapes_folder}/train-*.tar"]
    config = arguments.parse(TrainPrior, "test", [*prior, "--dvae", str(sharper)])
    assert stages_prior.stage(config, WORLD).links["dvae_hash"] == first_hash
    config = arguments.parse(TrainPrior, "test", [*prior, "--dvae", str(stranger)])
    with pytest.raises(ValueError, match="were made by another dVAE than"):
        stages_prior.stage(config, WORLD)
    config = arguments.parse(TrainCLIP, "test", [*clip, "--dvae", str(sharper)])
    assert stages_clip.stage(config, WORLD).links["dvae_hash"] == first_hash


def test_drawings_have_the_same_codes_and_other_pixels(models, sharper, first_hash, tmp_path):
    options = [
        "--model",
        str(models),
        "--n",
        "2",
        "--sampling.chunk",
        "2",
        "--sampling.precision",
        "fp32",
        "a red circle",
    ]
    drawn = {}
    for name, dvae in (("first", models / "dvae"), ("sharper", sharper)):
        sample([*options, "--dvae", str(dvae), "--output", f"{tmp_path}/{name}", "--rerank", "false"])
        drawn[name] = {
            d.seed: d for d in map(read_drawing, (tmp_path / name).glob("images/*.png")) if d.codes_I is not None
        }
    assert drawn["first"].keys() == drawn["sharper"].keys() != set()
    config = read_config(models / "prior", "prior")
    hashes = {
        name: find_models(models, dvae=dvae, rerank=False).hashes
        for name, dvae in (("first", None), ("sharper", sharper))
    }
    for seed, first in drawn["first"].items():
        second = drawn["sharper"][seed]
        assert np.array_equal(first.codes_I, second.codes_I)
        assert np.array(first.image).tolist() != np.array(second.image).tolist()
        # variations take the codes of either, whichever of the two is there
        for drawing in (first, second):
            for known in hashes.values():
                assert np.array_equal(known_codes("x", drawing, codes_of(known), config, 32), first.codes_I)
        assert known_codes("x", first, "0" * 64, config, 32) is None
        # the same picture once more needs the very decoder
        save_drawing(first, tmp_path / "one.png")
        assert read_record(tmp_path / "one.png", hashes["first"]).seed == seed
        with pytest.raises(ValueError, match=f"was drawn with another dvae: expected {first_hash[:16]}"):
            read_record(tmp_path / "one.png", hashes["sharper"])
