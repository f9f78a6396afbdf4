"""From a folder of models to what draws."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import overload

import torch

from dalle.config import Precision, Sampling
from dalle.config.checks import require
from dalle.models.clip import CLIP, load_clip
from dalle.models.folder import check_link, load_dvae, load_generator, load_prior
from dalle.models.text_encoders import open_text_encoder
from dalle.outputs.run_files import WEIGHTS
from dalle.ready.names import find_clip, find_model
from dalle.sampling.adversarial.gan_pipeline import GANPipeline
from dalle.sampling.adversarial.gan_set import GANModels, find_gan, is_gan
from dalle.sampling.model_set import Models, check_clip, find_models
from dalle.sampling.pipeline import Pipeline
from dalle.sampling.ranking.shortlist import Viewer

Found = Models | GANModels


def load(
    folder: str | Path,
    dvae: str | Path | None = None,
    prior: str | Path | None = None,
    clip: str | Path | None = None,
    rerank: bool | None = None,
    device: str | torch.device | None = None,
    precision: Precision = Sampling.precision,
    shortlist: bool = False,
    codes_clip: str | Path | None = None,
    text_encoder: str | None = None,
) -> Pipeline | GANPipeline:
    """A model, ready to draw.

    Args:
        folder: the model: a folder that has `prior/`, `dvae/` and, for reranking, `clip/` in it, and `codes-clip/` for a shortlist;
            or the name of one that comes with the package, such as "icons"; or `owner/name[@revision]` of the Hugging Face
            Hub, which is fetched where it is not in the Hub's cache; or the folder of a StackGAN
        dvae, prior: single models that stand in for those in `folder`, by the same names
        clip: likewise, or `ARCHITECTURE:PRETRAINED` of open_clip
        rerank: load the reranker; null loads it where the model has one
        device: null takes a GPU where there is one
        precision: of the matrix products that the prior is held for; it is read again when another one is asked for
        shortlist: load the reader of codes
        codes_clip: it, in place of that in `folder`
        text_encoder: of a StackGAN, where it lies now; null takes the name that it was trained with

    Raises:
        ValueError: there is no such model; a part is missing or damaged, its weights are not finite, or it was trained with another
            dVAE or tokenizer
    """
    found = find(folder, dvae, prior, clip, rerank, shortlist, codes_clip, text_encoder)
    return load_models(found, device, precision)


def load_transformer(
    folder: str | Path,
    dvae: str | Path | None = None,
    prior: str | Path | None = None,
    rerank: bool | None = None,
    device: str | torch.device | None = None,
    precision: Precision = Sampling.precision,
    shortlist: bool = False,
    codes_clip: str | Path | None = None,
) -> Pipeline:
    """`load` for those who need codes. Raises ValueError likewise, and for a GAN."""
    found = find(folder, dvae, prior, None, rerank, shortlist, codes_clip)
    if isinstance(found, GANModels):
        raise ValueError(f"model {folder}: is a GAN, which has no codes; name a transformer")
    return load_models(found, device, precision)


def find(
    folder: str | Path,
    dvae: str | Path | None = None,
    prior: str | Path | None = None,
    clip: str | Path | None = None,
    rerank: bool | None = None,
    shortlist: bool = False,
    codes_clip: str | Path | None = None,
    text_encoder: str | None = None,
) -> Found:
    """What `load` would load, before any weights are read; of a transformer as `find_models` has it. Raises ValueError likewise."""
    if prior is None and dvae is None:
        whole = find_model(folder)
        if is_gan(whole):
            require(
                not shortlist and codes_clip is None,
                f"shortlist, codes_clip: read codes, and {folder} is a GAN, which has none; leave them out",
            )
            return _with_clip(find_gan(whole, text_encoder), whole, clip, rerank)
        folder = whole  # looked up once
    require(text_encoder is None, f"text_encoder {text_encoder}: is a GAN's, and {folder} is none; leave it out")
    return find_models(folder, dvae, prior, clip, rerank, shortlist, codes_clip)


def _with_clip(models: GANModels, folder: Path, clip: str | Path | None, rerank: bool | None) -> GANModels:
    """Those models with a reranker, where one is there or asked for: any that reads pixels."""
    if rerank is False or (clip is None and rerank is None and not (folder / "clip" / WEIGHTS).is_file()):
        return models
    source = find_clip(clip or folder / "clip")
    return replace(models, clip=source, hashes={**models.hashes, "clip": check_clip(source, None)})


@overload
def load_models(
    models: Models, device: str | torch.device | None = None, precision: Precision = Sampling.precision
) -> Pipeline: ...


@overload
def load_models(
    models: GANModels, device: str | torch.device | None = None, precision: Precision = Sampling.precision
) -> GANPipeline: ...


@overload
def load_models(
    models: Found, device: str | torch.device | None = None, precision: Precision = Sampling.precision
) -> Pipeline | GANPipeline: ...


def load_models(
    models: Found, device: str | torch.device | None = None, precision: Precision = Sampling.precision
) -> Pipeline | GANPipeline:
    """The same of models that were found before."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    reranker = None if models.clip is None else load_clip(models.clip, device)
    if isinstance(models, GANModels):
        return _load_gan(models, device, reranker)
    read_prior = partial(load_prior, models.prior, device)
    dvae = load_dvae(models.dvae, device)
    return Pipeline(
        read_prior(precision),
        dvae,
        models.tokenizer,
        reranker,
        models.hashes,
        models.tuning,
        read_prior,
        None if models.codes_clip is None else load_clip(models.codes_clip, device),
    )


def _load_gan(models: GANModels, device: str | torch.device, reranker: CLIP | None) -> GANPipeline:
    encoder = open_text_encoder(models.text_encoder, device)
    check_link(
        f"text_encoder {models.text_encoder}: the model was trained with another",
        models.hashes["text_encoder"],
        encoder.hash,
    )
    folders = [models.first, *([] if models.second is None else [models.second])]
    return GANPipeline([load_generator(each, device) for each in folders], encoder, reranker, models.hashes)


def load_viewer(models: Models) -> Viewer:
    """What decodes a shortlist that other processes drew. Raises ValueError when a model is damaged."""
    assert models.clip is not None, "a shortlist without a reranker was refused"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Viewer(load_dvae(models.dvae, device), load_clip(models.clip, device))
