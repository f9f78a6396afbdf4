"""Folders of models: what is written is the same for the same weights, what is read is what was written, and in little
memory."""

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from dalle.config import CLIPModel, DVAEModel, PriorModel
from dalle.models.clip import CLIP, load_clip
from dalle.models.dvae import DVAE
from dalle.models.folder import Weightless, content_hash, load_dvae, load_prior, read_header, save_weights
from dalle.models.prior import Prior
from dalle.models.weights import write_weights
from dalle.text import Tokenizer
from tests.conftest import ROOT, clean_environment

DVAE_SIZES = DVAEModel(
    image_size_px=16, codebook_size=8, encoder_width=8, width_multipliers=(1, 2), blocks_per_group=1,
    decoder_input_width=8, logit_norm_gain=3.0, code_prior="learned",
)  # fmt: skip
PRIOR_SIZES = PriorModel(
    text_slots=6, grid=4, text_vocabulary=20, codebook_size=11, width=24, depth=2, heads=2, conv_kernel=3
)
CLIP_SIZES = CLIPModel(
    image_size_px=16, patch_px=8, vision_width=64, vision_layers=1, text_width=64, text_layers=1, text_slots=8,
    embedding_width=12,
)  # fmt: skip
LOADS = {"dvae": load_dvae, "prior": load_prior, "clip": load_clip}
KINDS = list(LOADS)


def _save(folder, kind, change=lambda tensors: None, **links):
    """A folder with a model of a kind, after a change of its tensors; the model's tensors before it."""
    torch.manual_seed(0)
    if kind == "clip":
        tokenizer = Tokenizer.train(["a red circle"], vocabulary=260)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder / "tokenizer.json")
        links["tokenizer_hash"] = tokenizer.hash
        model, sizes = CLIP(CLIP_SIZES, tokenizer), CLIP_SIZES
    else:
        model, sizes = (DVAE(DVAE_SIZES), DVAE_SIZES) if kind == "dvae" else (Prior(PRIOR_SIZES), PRIOR_SIZES)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = dict(tensors)
    change(changed)
    save_weights(folder, kind, changed, sizes, links)
    return tensors


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_is_what_was_saved(tmp_path, kind):
    """And nothing is drawn for it: the generator is where it was."""
    saved = _save(tmp_path, kind)
    before = torch.get_rng_state()
    model = LOADS[kind](tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    loaded = model.state_dict()
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])


def test_making_a_model_without_weights_imports_nothing():
    """PyTorch imports its compiler for a draw on the meta device, which takes 80 MB and seconds at every start."""
    script = """
import sys
from tests.models.test_weights import DVAE, DVAE_SIZES, PRIOR_SIZES, Prior, Weightless
with Weightless():
    Prior(PRIOR_SIZES), DVAE(DVAE_SIZES)
print("torch._dynamo" in sys.modules)
"""
    assert _start(script).communicate(timeout=120)[0].strip() == "False"


def test_a_named_architecture_loads_from_a_folder(tmp_path):
    """Whose weights open_clip moves as it makes them."""
    import open_clip

    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "layers": 1, "heads": 2}
    (tmp_path / "small-clip.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "small-clip.json")
    sizes = CLIPModel(architecture="small-clip")
    made = CLIP(sizes).eval().requires_grad_(False)  # attention has another kernel where nothing learns
    save_weights(tmp_path / "clip", "clip", made.state_dict(), sizes, {})
    loaded = load_clip(tmp_path / "clip")
    images, tokens = torch.rand(2, 3, 32, 32), made.tokens(["a red circle", "x"])
    assert torch.equal(loaded.embed_images(images), made.embed_images(images))
    assert torch.equal(loaded.embed_texts(tokens), made.embed_texts(tokens))


def test_a_prior_for_16_bits_holds_its_matrices_in_them(tmp_path):
    saved = _save(tmp_path, "prior")
    narrow = load_prior(tmp_path, precision="bf16").state_dict()
    matrices = {*Prior(PRIOR_SIZES).matrices(), "text_head.weight", "image_head.weight"}
    for name, tensor in saved.items():
        expected = tensor.bfloat16() if name in matrices else tensor
        assert narrow[name].dtype == expected.dtype and torch.equal(narrow[name], expected), name


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_dtypes_are_converted_as_they_are_read(tmp_path, stored, precision):
    """Of matrices that are read in several pieces, the last of them not a whole one."""
    sizes = dataclasses.replace(PRIOR_SIZES, width=300, depth=1, heads=4)
    saved = {name: tensor.to(stored) for name, tensor in Prior(sizes).state_dict().items()}
    save_weights(tmp_path, "prior", saved, sizes, {})
    loaded = load_prior(tmp_path, precision=precision).state_dict()
    for name, tensor in saved.items():
        assert torch.equal(loaded[name], tensor.to(loaded[name].dtype)), name
    assert loaded["layers.0.mlp.widen.weight"].dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_a_file_is_the_same_for_the_same_weights(tmp_path):
    """Whatever order they come in, byte for byte, under the permissions that the user has asked for."""

    def in_another_order(tensors):
        for name in sorted(tensors):
            tensors[name] = tensors.pop(name)

    saved = _save(tmp_path / "one", "dvae", a="1", b="2")
    mask = os.umask(0o027)
    try:
        _save(tmp_path / "other", "dvae", in_another_order, b="2", a="1")
    finally:
        os.umask(mask)
    one, other = tmp_path / "one/model.safetensors", tmp_path / "other/model.safetensors"
    assert one.read_bytes() == other.read_bytes()
    assert stat.S_IMODE(other.stat().st_mode) == 0o640
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.safetensors"]
    # the library reads it, and the hash is what it has always been
    read = load_file(one)
    assert read.keys() == saved.keys() and all(torch.equal(read[n], saved[n]) for n in saved)
    assert read_header(tmp_path / "one")["hash"] == content_hash(saved)


def test_the_content_hash_is_that_of_earlier_versions():
    """Priors, rerankers and drawings are tied to models by it."""
    tensors = {"b": torch.arange(3.0), "a": torch.tensor(7)}
    assert content_hash(tensors) == "8da19f5f63db15753e8e0993811b44242744552f72701645309c28195e57ffa4"


def test_every_tensor_begins_at_a_multiple_of_its_element(tmp_path):
    """Which the library needs to map it; data begin where a cache line does."""
    tensors = {"a": torch.rand(3).half(), "b": torch.tensor([2**40]), "c": torch.rand(5), "d": torch.tensor([True])}
    write_weights(path := tmp_path / "weights", tensors, {})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    layout = json.loads(content[8:start])
    assert start % 64 == 0
    assert all(layout[name]["data_offsets"][0] % tensor.element_size() == 0 for name, tensor in tensors.items())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(path).items())


def _flip(path, position, bit=1):
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_weights_are_refused_by_name(tmp_path, kind):
    """One bit of any tensor, the lowest of a value: nobody would see it in a picture."""
    saved = _save(tmp_path, kind)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    layout = json.loads(whole[8:start])
    for name in list(saved)[:: max(1, len(saved) // 8)]:
        _flip(path, start + layout[name]["data_offsets"][1] - saved[name].element_size())
        with pytest.raises(ValueError, match=rf"model.safetensors is damaged: the values of {name} are not those"):
            LOADS[kind](tmp_path)
        path.write_bytes(whole)
    LOADS[kind](tmp_path)


def test_a_damaged_header_is_refused(tmp_path):
    """A digit of a size that changes no shape, and of the hash that others know the model by."""
    _save(tmp_path, "prior")
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    digest = read_header(tmp_path)["hash"].encode()
    for old, new in ((rb"\"heads\": 2", rb"\"heads\": 3"), (digest, digest[::-1])):
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(ValueError, match="it is damaged: its header is not the one that was written"):
            read_header(tmp_path)
    # two tensors of one shape that have changed their names
    path.write_bytes(whole.replace(b'"image_rows.weight": {', b'"image_cols.weight": {'))
    with pytest.raises(ValueError, match=r"is of another model: it lacks image_rows\.weight"):
        load_prior(tmp_path)
    swapped = whole.replace(b'"image_rows.weight": {', b'"?": {').replace(
        b'"image_columns.weight": {', b'"image_rows.weight": {'
    )
    path.write_bytes(swapped.replace(b'"?": {', b'"image_columns.weight": {'))
    with pytest.raises(ValueError, match=r"the values of image_(rows|columns)\.weight are not those"):
        load_prior(tmp_path)


def test_files_of_earlier_versions_load_and_are_checked(tmp_path):
    """They have the hash of all weights alone, in a header whose order is not that of the hash."""
    torch.manual_seed(0)
    tensors = dict(DVAE(DVAE_SIZES).state_dict())
    header = {"kind": "dvae", "hash": content_hash(tensors), "config": json.dumps(dataclasses.asdict(DVAE_SIZES))}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata=header)
    loaded = load_dvae(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    _flip(path, -1)
    with pytest.raises(ValueError, match="is damaged: its weights are not those that were written"):
        load_dvae(tmp_path)
    del header["hash"]
    save_file(tensors, path, metadata=header)
    with pytest.raises(ValueError, match="its header has no hash"):
        load_dvae(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, kind, value):
    def spoil(tensors):
        name = [n for n, t in tensors.items() if t.is_floating_point()][-1]
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] = value

    last = [n for n, t in _save(tmp_path, kind, spoil).items() if t.is_floating_point()][-1]
    with pytest.raises(ValueError, match=f"the weights {last} are not finite"):
        LOADS[kind](tmp_path)


def test_a_value_beyond_16_bits_is_refused_where_they_are_asked_for(tmp_path):
    """The largest fp32 is rounded to infinity."""
    name = "layers.1.mlp.project.weight"
    _save(tmp_path, "prior", lambda tensors: tensors[name].view(-1)[:1].fill_(torch.finfo(torch.float32).max))
    load_prior(tmp_path)
    with pytest.raises(ValueError, match=f"the weights {name} are not finite in torch.bfloat16"):
        load_prior(tmp_path, precision="bf16")


def test_weights_of_another_model_are_refused(tmp_path):
    name, other = "norm.bias", torch.zeros(24, dtype=torch.int64)
    for change, words in (
        (lambda tensors: tensors.pop(name), f"it lacks {name}"),
        (lambda tensors: tensors.update({"extra": torch.zeros(1)}), "it holds extra"),
        (lambda tensors: tensors.update({name: torch.zeros(25)}), rf"{name} is \(25,\), its sizes want \(24,\)"),
        (lambda tensors: tensors.update({name: other}), f"{name} is of torch.int64"),
    ):
        _save(tmp_path, "prior", change)
        with pytest.raises(ValueError, match="is of another model: " + words):
            load_prior(tmp_path)


def _file(layout, length=None, weights=b""):
    text = layout if isinstance(layout, bytes) else json.dumps(layout).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + weights


def _told(**changes):
    return {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"abc", _file(b"{", 1 << 60), _file(b"\xff{}"), _file([1]), _file({"x": 3}), _file(_told(), weights=b"123"),
        _file(_told(dtype="F8"), weights=b"1234"), _file(_told(shape=[2]), weights=b"1234"),
        _file(_told(data_offsets=[-4, 0]), weights=b"1234"), _file(_told(shape=[-1, -1]), weights=b"1234"),
        _file({"__metadata__": 3}), _file(b"[" * 100_000),
    ],
)  # fmt: skip
def test_a_file_of_nonsense_is_one_line(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read: .") as caught:
        read_header(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    _save(tmp_path, "prior")
    path = tmp_path / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match="it is cut off"):
        load_prior(tmp_path)


def test_a_failure_while_writing_leaves_what_was_there(tmp_path):
    _save(tmp_path, "prior")
    before = (tmp_path / "model.safetensors").read_bytes()
    tensors = Prior(PRIOR_SIZES).state_dict()

    class Failing(dict):
        def __getitem__(self, name):
            if name == "norm.weight":
                raise OSError("no space left")
            return super().__getitem__(name)

    with pytest.raises(OSError, match="no space"):
        save_weights(tmp_path, "prior", Failing(tensors), PRIOR_SIZES, {}, like=tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


_SAVES = """
import os, sys, torch
from pathlib import Path
from dalle.models.folder import save_weights
from tests.models.test_weights import PRIOR_SIZES, Prior

torch.manual_seed(int(sys.argv[2]))
tensors = Prior(PRIOR_SIZES).state_dict()

class Tensors(dict):
    def __getitem__(self, name):
        if name == sys.argv[3]:
            os.kill(os.getpid(), 9)
        return super().__getitem__(name)

for _ in range(int(sys.argv[4])):
    save_weights(Path(sys.argv[1]), "prior", Tensors(tensors), PRIOR_SIZES, {}, like=tensors)
"""


def _start(script, *arguments):
    environment = clean_environment() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_while_writing_and_two_at_once(tmp_path):
    """A file is whole at any moment: the old one, or that of one of the two."""
    _save(tmp_path, "prior")
    before = (tmp_path / "model.safetensors").read_bytes()
    assert _start(_SAVES, tmp_path, 1, "norm.weight", 1).wait(timeout=120) == -signal.SIGKILL
    assert (tmp_path / "model.safetensors").read_bytes() == before
    writers = [_start(_SAVES, tmp_path, seed, "none", 20) for seed in (1, 2)]
    while any(writer.poll() is None for writer in writers):
        load_prior(tmp_path)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(list(tmp_path.glob("*.partial"))) == 1  # of the one that was killed


def test_another_thread_makes_whole_models_meanwhile():
    with Weightless():
        prior = Prior(PRIOR_SIZES)
        made = []
        thread = threading.Thread(target=lambda: made.append(Prior(PRIOR_SIZES)))
        thread.start()
        thread.join()
    assert all(p.is_meta for p in prior.parameters()) and not any(b.is_meta for b in prior.buffers())
    assert not any(p.is_meta for p in made[0].parameters())
    assert not any(p.is_meta for p in Prior(PRIOR_SIZES).parameters())


_PEAK = """
import sys, torch
from dalle.cli.allocator import keep_freed_memory
from dalle.config import Sampling
from dalle.decoding.token_loop import TokenLoop
from dalle.models.folder import load_prior

def memory(kind):
    line = next(line for line in open("/proc/self/status") if line.startswith(kind))
    return 1024 * int(line.split()[1])

precision, small, large = sys.argv[1:]
keep_freed_memory()
TokenLoop(load_prior(small, precision=precision), precision)  # what is made at first use is no part of it
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = memory("VmRSS")
prior = load_prior(large, precision=precision)
loaded, count = memory("VmHWM"), sum(p.numel() for p in prior.parameters())
loop = TokenLoop(prior, precision)
print((loaded - before) / loop.weight_bytes(), (memory("VmHWM") - before) / loop.weight_bytes(), loop.weight_bytes() / count)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A prior of 64 million weights."""
    sizes = dataclasses.replace(PRIOR_SIZES, width=512, depth=20, heads=8)
    save_weights(folder := tmp_path_factory.mktemp("large"), "prior", Prior(sizes).state_dict(), sizes, {})
    return folder


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks are read from Linux")
@pytest.mark.parametrize(("precision", "bytes_a_weight"), [("fp32", 4), ("bf16", 2)])
def test_loading_peaks_at_little_more_than_what_stays(large, tmp_path, precision, bytes_a_weight):
    """In a process of its own. A model that was drawn first, or matrices that are laid out while all of the others are
    there, would be at 2."""
    _save(tmp_path, "prior")
    process = _start(_PEAK, precision, tmp_path, large)
    loaded, laid_out, held = map(float, process.communicate(timeout=120)[0].split())
    # one matrix may be there three times while it is laid out, 2 MB each of 128 MB, and threads and slack took 3 MB
    assert loaded < 1.1 and laid_out < 1.1
    # embeddings, norms and biases are fp32, a hundredth of the weights
    assert bytes_a_weight <= held < 1.02 * bytes_a_weight
