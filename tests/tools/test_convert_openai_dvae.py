"""OpenAI's pickles to our folder: on files of the released names and shapes, and against hostile ones."""

import collections
import importlib.util
import os
import pickle
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dalle.cli.describe import describe_file
from dalle.models.folder import load_dvae
from dalle.models.likelihood import map_pixels
from tests.conftest import ROOT

_spec = importlib.util.spec_from_file_location("convert_openai_dvae", ROOT / "tools/convert_openai_dvae.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

POST_GAIN = 1 / 64  # eight resblocks


@pytest.fixture(scope="module")
def theirs():
    """Stand-in classes under the names that the released files use, importable while the module's tests run."""
    modules = {name: types.ModuleType(name) for name in ("dall_e", "dall_e.encoder", "dall_e.decoder", "dall_e.utils")}
    for module, names in (
        ("encoder", "Encoder EncoderBlock"),
        ("decoder", "Decoder DecoderBlock"),
        ("utils", "Conv2d"),
    ):
        for name in names.split():
            cls = type(name, (nn.Module,), {"__module__": f"dall_e.{module}"})
            setattr(modules[f"dall_e.{module}"], name, cls)
    sys.modules |= modules
    yield modules
    for name in modules:
        del sys.modules[name]


def _conv(theirs, n_in, n_out, kernel):
    conv = theirs["dall_e.utils"].Conv2d()
    conv.w = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel) / (n_in * kernel**2) ** 0.5)
    conv.b = nn.Parameter(torch.randn(n_out) / 10)
    conv.device = torch.device("cpu")
    return conv


def _module(theirs, part, kernels, first, widths, last, resample):
    """A whole encoder or decoder: input conv, four groups of two blocks, output conv."""
    blocks = collections.OrderedDict(input=_conv(theirs, *first))
    n_in = first[1]
    for g, width in enumerate(widths, 1):
        group = collections.OrderedDict()
        for i in (1, 2):
            block = getattr(theirs[f"dall_e.{part}"], f"{part.title()}Block")()
            block.id_path = _conv(theirs, n_in, width, 1) if n_in != width else nn.Identity()
            hidden = [n_in, *[width // 4] * 3, width]
            layers = collections.OrderedDict()
            for j in range(4):
                layers[f"relu_{j + 1}"] = nn.ReLU()
                layers[f"conv_{j + 1}"] = _conv(theirs, hidden[j], hidden[j + 1], kernels[j])
            block.res_path = nn.Sequential(layers)
            group[f"block_{i}"] = block
            n_in = width
        if g < 4:
            group["resample"] = resample
        blocks[f"group_{g}"] = nn.Sequential(group)
    blocks["output"] = nn.Sequential(collections.OrderedDict(relu=nn.ReLU(), conv=_conv(theirs, n_in, last, 1)))
    module = getattr(theirs[f"dall_e.{part}"], part.title())()
    module.blocks = nn.Sequential(blocks)
    return module


@pytest.fixture(scope="module")
def released(theirs, tmp_path_factory):
    """The two files at the released sizes, and their tensors."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("released")
    widths = (256, 512, 1024, 2048)
    encoder = _module(theirs, "encoder", (3, 3, 3, 1), (3, 256, 7), widths, 8192, nn.MaxPool2d(2))
    decoder = _module(theirs, "decoder", (1, 3, 3, 3), (8192, 128, 1), widths[::-1], 6, nn.Upsample(scale_factor=2))
    torch.save(encoder, folder / "encoder.pkl")
    torch.save(decoder, folder / "decoder.pkl", _use_new_zipfile_serialization=False)  # both formats there are
    return folder, encoder.state_dict(), decoder.state_dict()


def _forward(tensors, x, resample):
    """Appendix A.1 with plain convolutions on the raw tensors."""

    def conv(name, x):
        w, b = tensors[f"blocks.{name}.w"], tensors[f"blocks.{name}.b"]
        return F.conv2d(x, w, b, padding=w.shape[-1] // 2)

    x = conv("input", x)
    for g in (1, 2, 3, 4):
        for i in (1, 2):
            name = f"group_{g}.block_{i}"
            identity = conv(f"{name}.id_path", x) if f"blocks.{name}.id_path.w" in tensors else x
            for j in (1, 2, 3, 4):
                x = conv(f"{name}.res_path.conv_{j}", F.relu(x))
            x = identity + POST_GAIN * x
        x = resample(x) if g < 4 else x
    return conv("output.conv", F.relu(x))


def test_converted_equals_an_independent_computation(released, tmp_path):
    folder, encoder, decoder = released
    assert len(encoder) == 74 and sum(t.numel() for t in encoder.values()) == 53_786_240
    assert len(decoder) == 76 and sum(t.numel() for t in decoder.values()) == 43_829_766
    tool.convert(folder / "encoder.pkl", folder / "decoder.pkl", tmp_path / "dvae")
    dvae = load_dvae(tmp_path / "dvae")
    assert describe_file(str(tmp_path / "dvae/config.yaml"))["parameters"] == 53_786_240 + 43_829_766
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        logits = _forward(encoder, map_pixels(images), lambda x: F.max_pool2d(x, 2))
        # fp32 sums in another order: the logits are of size 1
        torch.testing.assert_close(dvae.logits(images), logits, atol=1e-4, rtol=1e-4)
        codes = F.one_hot(logits.argmax(dim=1), 8192).permute(0, 3, 1, 2).float()
        maps = _forward(decoder, codes, lambda x: F.interpolate(x, scale_factor=2, mode="nearest"))
        torch.testing.assert_close(torch.cat(dvae.likelihood_maps(codes), dim=1), maps, atol=1e-4, rtol=1e-4)


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def _hostile(tmp_path, content, zipped=True):
    path = tmp_path / "encoder.pkl"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_does_more_is_refused_and_nothing_in_it_runs(theirs, tmp_path, zipped):
    proof = tmp_path / "it ran"
    module = theirs["dall_e.encoder"].Encoder()
    module.blocks = nn.Sequential()
    module.extra = _Call(os.mkdir, str(proof))
    with pytest.raises(ValueError, match=r"posix\.mkdir"):
        tool.read_tensors(_hostile(tmp_path, module, zipped))
    assert not proof.exists()


def test_a_bare_pickle_is_refused_too(tmp_path):
    path = tmp_path / "encoder.pkl"
    path.write_bytes(pickle.dumps(_Call(os.mkdir, str(tmp_path / "it ran"))))
    with pytest.raises(ValueError, match="refused"):
        tool.read_tensors(path)
    assert not (tmp_path / "it ran").exists()


def test_what_is_not_the_released_model_is_refused(theirs, tmp_path):
    with pytest.raises(ValueError, match="no module"):
        tool.read_tensors(_hostile(tmp_path, {"w": torch.zeros(1)}))
    small = theirs["dall_e.encoder"].Encoder()
    small.blocks = nn.Sequential(collections.OrderedDict(input=_conv(theirs, 3, 8, 7)))
    with pytest.raises(ValueError, match=r"not the released encoder"):
        tool.convert(_hostile(tmp_path, small), tmp_path / "decoder.pkl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    scripted = tmp_path / "script.pkl"
    torch.jit.script(nn.ReLU()).save(str(scripted))
    with pytest.raises(ValueError, match="TorchScript"):
        tool.read_tensors(scripted)
