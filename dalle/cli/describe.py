"""`dalle-describe CONFIG [--json]`: the parts of a configured model, built on the meta device, so nothing is allocated."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dalle.cli import arguments
from dalle.config import CharCNNRNNModel, CLIPModel, Describe, DVAEModel, PriorModel, StackGANModel, TrainTokenizer

if TYPE_CHECKING:
    from dalle.masks import Kind


def main() -> None:
    """Console script."""
    arguments.run(describe, "dalle-describe")


def describe(argv: list[str] | None = None) -> None:
    """Parse, build on the meta device, print."""
    config = arguments.parse(Describe, "dalle-describe", argv, positional="config_file")
    description = describe_file(config.config_file, config.tokenizer)
    if config.json:
        print(json.dumps(description, indent=2))
    else:
        _print(description)


def describe_file(path: str, tokenizer: str | None = None) -> dict:
    """What a configuration file builds: kind, sizes, parts with shapes and parameter counts, layers with masks.

    Raises:
        ValueError: no such file, or its `model` is none of ours
    """
    model = arguments.read_yaml(path).get("model")
    if not isinstance(model, dict):
        raise ValueError(f"{path} has no section `model`; name the configuration of a training")
    classes: dict[str, Any] = {
        "dvae": DVAEModel,
        "prior": PriorModel,
        "clip": CLIPModel,
        "stackgan": StackGANModel,
        "text-encoder": CharCNNRNNModel,
    }
    # the kind whose keys these are, or most of them, so that a misspelt one is answered with its nearest
    kind = max(classes, key=lambda k: len(set(model) & set(classes[k].__dataclass_fields__)))
    return described(kind, arguments.parse_model(classes[kind], model, f"{path}: ", "model."), tokenizer)


def described(kind: str, config: Any, tokenizer_file: str | None) -> dict:
    """What the sizes of a model of a kind build; see `describe_file`."""
    import torch
    from torch import nn

    from dalle.models.clip import CLIP
    from dalle.models.dvae import DVAE
    from dalle.models.prior import Prior
    from dalle.models.stackgan.discriminator import Discriminator
    from dalle.models.stackgan.generators import generator
    from dalle.models.text_encoders.char_cnn_rnn import LetterEncoder
    from dalle.text import Tokenizer

    tokenizer: Any = Tokenizer.load(tokenizer_file) if tokenizer_file else None  # or what stands in for one
    model: nn.Module
    if kind == "clip" and config.architecture is None and tokenizer is None:
        tokenizer = SimpleNamespace(vocabulary=TrainTokenizer.vocabulary)
    with torch.device("meta"):
        if kind == "stackgan":
            model = nn.ModuleDict({"generator": generator(config), "discriminator": Discriminator(config)})
        else:
            others: dict[str, Any] = {"dvae": DVAE, "prior": Prior, "text-encoder": LetterEncoder}
            model = CLIP(config, tokenizer) if kind == "clip" else others[kind](config)
    parameters = {name: list(p.shape) for name, p in model.named_parameters()}
    counts = {name: p.numel() for name, p in model.named_parameters()}
    parts: dict[str, int] = {}
    for name, count in counts.items():
        part = ".".join(name.split(".")[: 2 if kind in ("clip", "stackgan") else 1])
        parts[part] = parts.get(part, 0) + count
    description = {
        "kind": kind,
        "sizes": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()},
        **({"vocabulary": tokenizer.vocabulary} if tokenizer else {}),
        "parameters": sum(counts.values()),
        "parts": parts,
        "shapes": parameters,
    }
    if kind == "dvae":
        description["grid"], description["downsampling"] = config.grid, config.downsampling
    if kind == "prior":
        description["slots"] = config.slots
        assert isinstance(model, Prior)
        description["layers"] = _layers(model.kinds, config)
    return description


def _layers(kinds: list[Kind], config: PriorModel) -> list[dict]:
    """Each layer's mask: its kind, the keys that an image slot sees among the image, and the share of the causal
    triangle that the whole mask keeps."""
    from dalle.masks import attention_mask, image_mask

    facts = {}
    for kind in set(kinds):
        mask = attention_mask(kind, config.text_slots, config.grid, config.conv_kernel)
        causal = config.slots * (config.slots + 1) // 2
        seen = int(image_mask(kind, config.grid, config.conv_kernel).sum(dim=1).max())
        facts[kind] = {"mask": kind, "image_keys": seen, "of_causal": round(int(mask.sum()) / causal, 3)}
    return [{"layer": i, **facts[kind]} for i, kind in enumerate(kinds, 1)]


def _print(description: dict) -> None:
    vocabulary = f", on a vocabulary of {description['vocabulary']:,} tokens" if "vocabulary" in description else ""
    print(f"{description['kind']}: {description['parameters']:,} parameters{vocabulary}")
    for name, value in description["sizes"].items():
        print(f"  {name:22} {value}")
    print("parts")
    for name, count in description["parts"].items():
        print(f"  {name:22} {count:>16,}")
    if "layers" in description:
        print("layers: mask, most image keys seen by a slot, share of the causal triangle")
        for layer in description["layers"]:
            print(f"  {layer['layer']:>3}  {layer['mask']:7} {layer['image_keys']:>6} {layer['of_causal']:>7.3f}")
    print("shapes")
    for name, shape in description["shapes"].items():
        print(f"  {name:60} {' × '.join(map(str, shape))}")
