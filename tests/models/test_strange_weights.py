"""Files of weights that somebody else made, and that are not what they say: each is refused in one line, before memory is asked
for what its header only claims."""

import json
import resource
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from dalle.config import CLIPModel, PriorModel
from dalle.config import models as sizes
from dalle.models.folder import check_links, load_dvae, load_prior, read_config, read_header
from dalle.models.weights import WeightsFile
from dalle.models.weights_header import _seal
from dalle.text import Tokenizer
from tests.conftest import ROOT, clean_environment
from tests.models.test_weights import DVAE_SIZES, KINDS, LOADS, PRIOR_SIZES, _save


def _told(folder) -> tuple[dict, bytes]:
    """Header and weights."""
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _forge(folder, header: dict, weights: bytes) -> None:
    """Write both, sealed as by this program."""
    if isinstance(told := header["__metadata__"], dict) and all(isinstance(value, str) for value in told.values()):
        told["seal"] = _seal(told)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + weights)


def _claim(folder, **changes) -> None:
    """Change what the header says; null takes it away."""
    header, weights = _told(folder)
    told = {name: value for name, value in (header["__metadata__"] | changes).items() if value is not None}
    _forge(folder, header | {"__metadata__": told}, weights)


def _refused(load, folder, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        load(folder)
    assert type(raised.value) is ValueError and "\n" not in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize("missing", ["config", "hash"])
def test_a_header_that_lacks_something_is_refused(tmp_path, missing):
    _save(tmp_path, "prior")
    _claim(tmp_path, **{missing: None})
    _refused(read_header, tmp_path, f"was not written by this program: its header has no {missing}")


@pytest.mark.parametrize("config", ["{", "[1]", "null", "[" * 100_000])
def test_sizes_that_are_none_are_refused(tmp_path, config):
    _save(tmp_path, "prior")
    _claim(tmp_path, config=config)
    _refused(load_prior, tmp_path, "the header of its weights tells no sizes")


@pytest.mark.parametrize(
    ("kind", "size", "value"),
    [
        ("prior", "width", "abc"), ("prior", "width", 24.0), ("prior", "width", None), ("prior", "width", True),
        ("prior", "attention", "another"), ("prior", "width", -24), ("prior", "grid", 10**5), ("prior", "grid", 300),
        ("prior", "text_slots", 10**6), ("prior", "depth", 10**9), ("prior", "depth", 10**4),
        ("dvae", "blocks_per_group", 10**8), ("dvae", "decoder_blocks_per_group", 10**8),
        ("dvae", "width_multipliers", [1, "a"]), ("dvae", "width_multipliers", [1] * 10**4), ("dvae", "pool", 3),
        ("clip", "vision_layers", 10**8), ("clip", "text_layers", 10**8), ("clip", "architecture", "hf-hub:any/one"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused_by_name(tmp_path, kind, size, value):
    _save(tmp_path, kind)
    header, _ = _told(tmp_path)
    _claim(tmp_path, config=json.dumps({**json.loads(header["__metadata__"]["config"]), size: value}))
    _refused(LOADS[kind], tmp_path, f"{tmp_path}: the header of its weights has .*{size} ")


def test_what_a_header_may_say_is_read_as_it_was(tmp_path):
    """Numbers that JSON writes without a point, and sizes that are null."""
    _save(tmp_path, "dvae")
    changed = {**asdict(DVAE_SIZES), "logit_norm_gain": 3, "min_ln_b": None}
    _claim(tmp_path, config=json.dumps(changed))
    assert read_config(tmp_path, "dvae") == DVAE_SIZES
    assert load_dvae(tmp_path)


_LITTLE = """
import resource, sys
from pathlib import Path
from tests.models.test_weights import LOADS
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
for claim in sys.argv[2:]:
    folder = Path(claim)
    try:
        LOADS[folder.name.split("-")[0]](folder)
    except ValueError as error:
        print(folder.name, error)
    else:
        print(folder.name, "was loaded")
"""


def test_sizes_are_compared_with_the_file_before_memory_is_asked_for_them(tmp_path):
    # the largest that any model may have
    claims = {
        "prior-width": {"width": sizes.MOST_WIDTH}, "prior-vocabulary": {"text_vocabulary": sizes._MOST_TOKENS},
        "dvae-codes": {"codebook_size": sizes._MOST_CODES}, "dvae-width": {"decoder_input_width": sizes.MOST_WIDTH},
        "clip-pixels": {"image_size_px": sizes.MOST_SIDE_PX}, "clip-slots": {"text_slots": sizes.MOST_SLOTS},
        "clip-width": {"vision_width": sizes.MOST_WIDTH},
    }  # fmt: skip
    for name, changes in claims.items():
        _save(tmp_path / name, name.split("-")[0])
        config = json.loads(_told(tmp_path / name)[0]["__metadata__"]["config"])
        _claim(tmp_path / name, config=json.dumps(config | changes))
    line = [sys.executable, "-c", _LITTLE, str(16 << 30), *(str(tmp_path / name) for name in claims)]
    done = subprocess.run(
        line, env=clean_environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said.keys() == claims.keys()
    assert all("model.safetensors is of another model: " in each for each in said.values()), said
    # KiB: PyTorch and open_clip, and no weights
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 << 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_file_is_no_large_model(tmp_path, kind):
    """Tensors that lie over one another, holes between them, and what lies behind them."""
    _save(tmp_path, kind)
    header, weights = _told(tmp_path)
    names = [name for name in header if name != "__metadata__"]
    over = {"dtype": "U8", "shape": [len(weights)], "data_offsets": [0, len(weights)]}
    _forge(tmp_path, header | {f"more {i}": over for i in range(3)}, weights)
    _refused(LOADS[kind], tmp_path, "cannot be read: its tensors do not lie side by side")
    _forge(tmp_path, header, weights + b"something else")
    _refused(LOADS[kind], tmp_path, "cannot be read: it holds more than its tensors")
    moved = {name: {**header[name], "data_offsets": [at + 64 for at in header[name]["data_offsets"]]} for name in names}
    _forge(tmp_path, {**header, **moved}, bytes(64) + weights)
    _refused(LOADS[kind], tmp_path, "cannot be read: its tensors do not lie side by side")
    _forge(tmp_path, header, weights)
    assert LOADS[kind](tmp_path)


def test_a_header_is_no_larger_than_the_format_has_it(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(300_000_000)
    _refused(read_header, tmp_path, "cannot be read: it is cut off, or no safetensors file")


def test_what_a_header_says_is_text(tmp_path):
    _save(tmp_path, "prior")
    header, weights = _told(tmp_path)
    header["__metadata__"]["hash"] = 5
    _forge(tmp_path, header, weights)
    _refused(read_header, tmp_path, "cannot be read: its header tells nonsense")


@pytest.mark.parametrize("checksums", ["[1", "[1]", "3", "[" * 100_000])
def test_checksums_that_are_none_are_damage(tmp_path, checksums):
    _save(tmp_path, "prior")
    _claim(tmp_path, checksums=checksums)
    _refused(load_prior, tmp_path, "is damaged: the checksums in its header")
    with WeightsFile(tmp_path / "model.safetensors") as file, pytest.raises(ValueError, match="is damaged"):
        file.told_checksums()


def test_a_tensor_without_a_checksum_is_damage(tmp_path):
    """One that is struck out of the list would let its values be any."""
    _save(tmp_path, "prior")
    told = json.loads(_told(tmp_path)[0]["__metadata__"]["checksums"])
    _claim(tmp_path, checksums=json.dumps({name: told[name] for name in sorted(told)[1:]}))
    _refused(load_prior, tmp_path, "is damaged: the values of")


def test_a_prior_that_names_nothing_it_was_trained_with_is_refused(tmp_path):
    _save(tmp_path / "prior", "prior")
    _save(tmp_path / "dvae", "dvae")
    with pytest.raises(ValueError, match="was trained with another dVAE: expected none"):
        check_links(tmp_path / "prior", tmp_path / "dvae", Tokenizer.train(["a red circle"], vocabulary=260))
    _save(tmp_path / "clip", "clip")
    _claim(tmp_path / "clip", tokenizer_hash=None)
    _refused(LOADS["clip"], tmp_path / "clip", "is not the one it was trained with: expected none")


def test_longest_sequences():
    assert PriorModel(text_slots=511, grid=255).slots == 65_536
    with pytest.raises(ValueError, match="grid 256 with text_slots 256: makes 65,792 slots"):
        PriorModel(text_slots=256, grid=256)
    assert PRIOR_SIZES.slots == 22
    with pytest.raises(ValueError, match="architecture local-dir:/x: must be the name of one that open_clip has"):
        CLIPModel(architecture="local-dir:/x")


def test_what_is_made_has_no_values_and_its_buffers(tmp_path):
    from dalle.models.folder import weightless
    from dalle.models.prior import Prior

    _save(tmp_path, "prior")
    made = weightless(lambda: Prior(PRIOR_SIZES), tmp_path)
    assert all(parameter.is_meta for parameter in made.parameters())
    assert all(torch.equal(*pair) for pair in zip(made.buffers(), Prior(PRIOR_SIZES).buffers(), strict=True))


def test_a_machine_without_memory_makes_no_model_of_another(tmp_path):
    """Too little memory for what is made all the same, such as masks, is no damage of the file."""
    from dalle.models.folder import weightless

    _save(tmp_path, "prior")

    def fails(error):
        def make():
            raise error

        return make

    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 484 bytes"),
    ):
        with pytest.raises(
            ValueError, match=r"model\.safetensors: no memory for the sizes that its header tells; free some"
        ):
            weightless(fails(error), tmp_path)
    with pytest.raises(ValueError, match=r"is of another model: there is none of the sizes that its header tells"):
        weightless(fails(RuntimeError("Storage size calculation overflowed")), tmp_path)
