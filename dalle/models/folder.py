"""A model as a folder: `config.yaml` (how it was trained) and `model.safetensors`, whose header holds what loading
needs: the kind of model, its sizes, the content hash of its weights, and the hashes of the models it was trained with.
Loading runs no code, and refuses weights that are not those that were written, or not finite.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from dalle.config import CharCNNRNNModel, CLIPModel, DVAEModel, Precision, PriorModel, StackGANModel, plain_json
from dalle.config.checks import out_of_memory
from dalle.models.dvae import DVAE
from dalle.models.prior import Prior
from dalle.models.stackgan.generators import Generator, generator
from dalle.models.weights import WeightsFile, load_weights, misfits, write_weights
from dalle.models.weights import content_hash as content_hash
from dalle.outputs.run_files import WEIGHTS
from dalle.text import Tokenizer

_Model = TypeVar("_Model", bound=nn.Module)
_DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
_CONFIGS = {
    "dvae": DVAEModel,
    "prior": PriorModel,
    "clip": CLIPModel,
    "stackgan": StackGANModel,
    "text-encoder": CharCNNRNNModel,
}
_LAYERS = ("depth", "blocks_per_group", "decoder_blocks_per_group", "vision_layers", "text_layers", "resblocks")
"""Sizes that count what has tensors of its own."""
_MOST_GROUPS = 16
"""Of a dVAE, each but the last of which halves the image: the largest would have 32,768 pixels for a code."""


def save_weights(
    folder: Path,
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    model_config: Any,
    links: dict[str, str],
    like: Mapping[str, torch.Tensor] | None = None,
) -> str:
    """Write `model.safetensors`, whole or not at all, and return the content hash.

    Args:
        folder: the model's folder
        kind: "dvae", "prior", "clip", "stackgan" or "text-encoder"
        tensors: the weights by name
        model_config: the sizes, a dataclass
        links: hashes of what it was trained with, such as {"dvae_hash": …}
        like: tensors of the same dtypes and shapes, where `tensors` reads each as it is asked for it
    """
    header = {"kind": kind, "config": json.dumps(asdict(model_config)), **links}
    folder.mkdir(parents=True, exist_ok=True)
    return write_weights(folder / WEIGHTS, tensors, header, like)


def read_header(folder: str | Path) -> dict[str, str]:
    """The header of a folder's weights. Raises ValueError when the folder holds no model."""
    path = weights_file(folder)
    if not path.is_file():
        raise ValueError(f"{folder} holds no trained model (no {WEIGHTS}); name a folder with one")
    with WeightsFile(path) as file:
        header = file.metadata
    if header.get("kind") not in _CONFIGS:
        raise ValueError(
            f"{path} was not written by this program: its header names no kind of model; name a folder of its own models"
        )
    if missing := {"config", "hash"} - header.keys():
        raise ValueError(
            f"{path} was not written by this program: its header has no {min(missing)}; name a folder of its own models"
        )
    return header


def check_hash(folder: str | Path) -> None:
    """Make the content hash of a folder's weights anew, which takes a pass over them. Loading leaves it at checksums.

    Raises:
        ValueError: it is not the one that the header says, by which other models know these weights
    """
    path = Path(folder) / WEIGHTS
    with WeightsFile(path) as file:
        if file.content_hash() != file.metadata.get("hash"):
            raise ValueError(
                f"{path}: its weights are not those that its hash stands for; it is damaged, or not what it says; copy it once more"
            )


def read_config(folder: str | Path, kind: str) -> Any:
    """The sizes of a model. Raises ValueError when the folder holds another kind."""
    header = read_header(folder)
    if header["kind"] != kind:
        raise ValueError(f"{folder} holds a {header['kind']}, not a {kind}; name one")
    try:
        values = plain_json.load(header["config"], "its header")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(
            f"{folder}: the header of its weights tells no sizes; it is damaged, or not what it says: copy it once more"
        )
    kinds = get_type_hints(_CONFIGS[kind])
    if unknown := values.keys() - kinds.keys():
        raise ValueError(
            f"{folder} was written by another version: unknown sizes {sorted(unknown)}; read it with that one"
        )
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    with WeightsFile(weights_file(folder)) as file:
        tensors = len(file.tensors)
    for name, value in values.items():
        is_long = isinstance(value, tuple) and len(value) > _MOST_GROUPS
        # a layer has tensors of its own: what has fewer is not made, which would take for ever
        is_deep = name in _LAYERS and isinstance(value, int) and value > tensors
        if is_long or is_deep or not plain_json.is_a(value, kinds[name]):
            raise ValueError(
                f"{folder}: the header of its weights has {name} {str(value)[:40]}, which they are not of; copy it once more"
            )
    try:
        return _CONFIGS[kind](**values)
    except ValueError as error:
        raise ValueError(f"{folder}: the header of its weights has {error}; copy it once more") from None


def read_start(folder: str | Path, kind: str) -> Any:
    """The sizes of a finished model that a training is to start from. Raises ValueError when the folder holds none."""
    folder = Path(folder)
    if not weights_file(folder).is_file():
        advice = "name the folder of a model"
        if (folder / "checkpoints").is_dir() or (folder / "state.json").is_file():
            advice = f"make a model of its checkpoint with dalle-export {folder} --output MODEL, and name that"
        raise ValueError(f"start_from {folder}: holds no finished model (no {WEIGHTS}); {advice}")
    return read_config(folder, kind)


def weights_file(folder: str | Path) -> Path:
    """The file of a model's weights."""
    return Path(folder) / WEIGHTS


def load_dvae(folder: str | Path, device: str | torch.device = "cpu") -> DVAE:
    """The dVAE of a folder, in evaluation mode. Raises ValueError when it is damaged or its weights are not finite."""
    config = read_config(folder, "dvae")
    return load_into(weightless(lambda: DVAE(config), folder), folder, device)


def load_prior(folder: str | Path, device: str | torch.device = "cpu", precision: Precision = "fp32") -> Prior:
    """The prior of a folder, in evaluation mode. Raises ValueError when it is damaged or its weights are not finite.

    Args:
        folder: the model's
        device: where it is to be
        precision: of the products it is for; with "bf16" it holds their matrices in 16 bits (`Prior.hold_matrices`)
    """
    config = read_config(folder, "prior")
    prior = weightless(lambda: Prior(config), folder)
    if precision == "bf16":
        prior.hold_matrices(torch.bfloat16)
    return load_into(prior, folder, device)


def load_generator(folder: str | Path, device: str | torch.device = "cpu") -> Generator:
    """A StackGAN's generator, of either stage, in evaluation mode. Raises ValueError when it is damaged or its weights are not finite."""
    config = read_config(folder, "stackgan")
    return load_into(weightless(lambda: generator(config), folder), folder, device)


def weightless(make: Callable[[], _Model], folder: str | Path) -> _Model:
    """What `make` makes, without values, to be filled with a folder's weights. Sizes are somebody's word until the file is known
    to hold weights of them: before that no memory is asked for.

    Raises:
        ValueError: it holds others
    """
    path = weights_file(folder)
    try:
        with Weightless(), torch.device("meta"):
            expected = make().state_dict()
    except (RuntimeError, OverflowError, MemoryError) as error:
        # for what is made all the same, such as masks: the sizes are absurd, or a machine has none left
        if out_of_memory(error):
            raise ValueError(
                f"{path}: no memory for the sizes that its header tells; free some, or copy the file once more where they are not its own"
            ) from None
        raise ValueError(
            f"{path} is of another model: there is none of the sizes that its header tells; copy it once more"
        ) from None
    with WeightsFile(path) as file:
        if complaint := next(misfits(expected, file.tensors), None):
            raise ValueError(f"{path} is of another model: {complaint}; name one of these sizes")
    with Weightless():
        return make()


def load_into(model: _Model, folder: str | Path, device: str | torch.device) -> _Model:
    """A model, perhaps one without values, with the weights of a folder, in evaluation mode."""
    load_weights(model, weights_file(folder), device)
    return model.to(device).eval().requires_grad_(False)


class Weightless(TorchFunctionMode):
    """Models that are made under it have parameters of the right sizes without values, on the meta device: nothing is drawn,
    and no memory taken. Buffers are as ever, for some are in no file."""

    def __enter__(self) -> Weightless:
        thread = threading.get_ident()  # hooks are for all of them; another may be making a model to train

        def without_values(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
            if parameter.is_meta or threading.get_ident() != thread:
                return None
            return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

        self._hook = register_module_parameter_registration_hook(without_values)  # type: ignore[arg-type]  # a hook may return one
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hook.remove()
        super().__exit__(*error)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _DRAWS:
            drawn = args[0] if args else kwargs["tensor"]
            if drawn.is_meta:  # where PyTorch draws nothing either, but imports its compiler for it: 80 MB
                return drawn
        if function is torch.randn:
            function = torch.empty
        try:
            return function(*args, **(kwargs or {}))
        except NotImplementedError:
            if function is torch.Tensor.to and args[0].is_meta:  # open_clip moves what it has made
                return args[0]
            raise


def codes_hash(dvae: str | Path) -> str:
    """What the codes of a dVAE are known by, in the links of all that is made of them: the content hash of the dVAE that
    was the first to make them. Of one whose decoder alone was trained further its header tells it (`codes_of_hash`), of all
    others it is their own. Two dVAEs of one such hash make the same codes of an image, and each decodes the other's."""
    header = read_header(dvae)
    if header["kind"] != "dvae":
        raise ValueError(f"{dvae} holds a {header['kind']}, not a dvae; name one")
    return header.get("codes_of_hash", header["hash"])


def check_links(prior: str | Path, dvae: str | Path, tokenizer: Tokenizer) -> None:
    """Refuse a dVAE or tokenizer other than those the prior was trained with, both hashes shown."""
    header = read_header(prior)
    if header["kind"] != "prior":
        raise ValueError(f"{prior} holds a {header['kind']}, not a prior; name one")
    check_link(f"the prior {prior} was trained with another dVAE", header.get("dvae_hash", "none"), codes_hash(dvae))
    check_link(
        f"the prior {prior} was trained with another tokenizer", header.get("tokenizer_hash", "none"), tokenizer.hash
    )


def check_link(complaint: str, expected: str, found: str) -> None:
    """Raises ValueError when two hashes differ."""
    if expected != found:
        raise ValueError(f"{complaint}: expected {expected[:16]}…, found {found[:16]}…; name the one that is expected")
