"""OpenAI's released dVAE (`encoder.pkl` and `decoder.pkl`) to a folder that `--dvae` takes.

    python tools/convert_openai_dvae.py encoder.pkl decoder.pkl OUTPUT

The two files are whole pickled modules, and loading a pickle can run any code. Here nothing is rebuilt but tensors and
empty stand-ins for the modules that hold them; a file that asks for anything else is refused before it gets it.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import textwrap
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dalle.cli.arguments import to_yaml
from dalle.config import DVAEModel
from dalle.models.dvae import DVAE
from dalle.models.folder import save_weights

_MODULES = {
    "dall_e.encoder": ("Encoder", "EncoderBlock"),
    "dall_e.decoder": ("Decoder", "DecoderBlock"),
    "dall_e.utils": ("Conv2d",),
    "torch.nn.modules.activation": ("ReLU",),
    "torch.nn.modules.container": ("Sequential",),
    "torch.nn.modules.linear": ("Identity",),
    "torch.nn.modules.pooling": ("MaxPool2d",),
    "torch.nn.modules.upsampling": ("Upsample",),
}
_NAMES = {"w": "weight", "b": "bias"}  # theirs to ours


class _Module:
    """Stands in for a module: takes its attributes, and does nothing."""


class _Unpickler(pickle.Unpickler):
    """Rebuilds tensors, and stand-ins for the modules that hold them."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _MODULES.get(module, ()):
            return type(name, (_Module,), {})
        # the functions are wrapped, so that a pickle has nothing of ours to change
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): partial(torch._utils._rebuild_tensor_v2),
            ("torch._utils", "_rebuild_parameter"): partial(torch._utils._rebuild_parameter),
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,  # its name in the pickle protocol that PyTorch writes
            ("torch", "device"): torch.device,
        }
        if (module, name) not in allowed:
            raise ValueError(f"it asks for {module}.{name}, which is none of the dVAE's modules or tensors")
        return allowed[module, name]


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The parameters of a pickled module by name, on the CPU.

    Raises:
        ValueError: no such file, no pickled module, or one that asks for more than tensors
    """
    if not Path(path).is_file():
        raise ValueError(f"no such file: {path}")
    if zipfile.is_zipfile(path) and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        raise ValueError(f"{path} is a TorchScript archive, not a pickled module")
    restricted: Any = ModuleType("restricted_pickle")
    restricted.Unpickler = _Unpickler
    restricted.load = lambda file, **options: _Unpickler(file, **options).load()
    try:
        module = torch.load(path, map_location="cpu", pickle_module=restricted, weights_only=False)
    except Exception as error:  # whatever a broken or hostile file makes of the unpickler
        raise ValueError(f"{path} is refused: {error}") from error
    if not isinstance(module, _Module):
        raise ValueError(f"{path} holds no module")
    return dict(_parameters(module, ""))


def _parameters(module: _Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in vars(module).get("_parameters", {}).items():
        if torch.is_tensor(parameter):
            yield prefix + name, parameter.detach()
    for name, child in vars(module).get("_modules", {}).items():
        if isinstance(child, _Module):
            yield from _parameters(child, f"{prefix}{name}.")


def convert(encoder: str | Path, decoder: str | Path, output: str | Path) -> str:
    """Write the folder and return the content hash of its weights.

    Raises:
        ValueError: a file is refused, or its tensors are not those of the released model
    """
    config = DVAEModel()
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in DVAE(config).state_dict().items()}
    weights = {}
    for part, path in (("encoder", encoder), ("decoder", decoder)):
        for name, tensor in read_tensors(path).items():
            *place, last = name.split(".")
            weights[".".join((part, *place, _NAMES.get(last, last)))] = tensor.float()
        wanted = {name: shape for name, shape in expected.items() if name.startswith(part)}
        found = {name: tuple(tensor.shape) for name, tensor in weights.items() if name.startswith(part)}
        if differences := sorted(set(wanted.items()) ^ set(found.items())):
            name = differences[0][0]
            raise ValueError(
                f"{path} is not the released {part}: {name} has shape {found.get(name)}, not {wanted.get(name)}"
            )
    output = Path(output)
    digest = save_weights(output, "dvae", weights, config, {})
    sizes = textwrap.indent(to_yaml(config), "  ")
    text = f"# OpenAI's released dVAE, converted from its two pickles.\nmodel:\n{sizes}"
    (output / "config.yaml").write_text(text, encoding="utf-8")
    return digest


def main() -> None:
    """Parse, convert."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("encoder", "decoder", "output"):
        parser.add_argument(name)
    options = parser.parse_args()
    try:
        digest = convert(options.encoder, options.decoder, options.output)
    except (ValueError, OSError) as error:
        print(f"convert_openai_dvae: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{options.output}: {digest[:16]}…")


if __name__ == "__main__":
    main()
