"""From a folder of models to a pipeline."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from dalle.config import Precision, Sampling
from dalle.models.clip import load_clip
from dalle.models.folder import load_dvae, load_prior
from dalle.sampling.model_set import Models, find_models
from dalle.sampling.pipeline import Pipeline
from dalle.sampling.ranking.shortlist import Viewer


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
) -> Pipeline:
    """A model, ready to draw.

    Args:
        folder: the model: a folder that has `prior/`, `dvae/` and, for reranking, `clip/` in it, and `codes-clip/` for a shortlist;
            or the name of one that comes with the package, such as "icons"; or `owner/name[@revision]` of the Hugging Face
            Hub, which is fetched where it is not in the Hub's cache
        dvae, prior: single models that stand in for those in `folder`, by the same names
        clip: likewise, or `ARCHITECTURE:PRETRAINED` of open_clip
        rerank: load the reranker; null loads it where the model has one
        device: null takes a GPU where there is one
        precision: of the matrix products that the prior is held for; it is read again when another one is asked for
        shortlist: load the reader of codes
        codes_clip: it, in place of that in `folder`

    Raises:
        ValueError: there is no such model; a part is missing or damaged, its weights are not finite, or it was trained with another
            dVAE or tokenizer
    """
    return load_models(find_models(folder, dvae, prior, clip, rerank, shortlist, codes_clip), device, precision)


def load_models(
    models: Models, device: str | torch.device | None = None, precision: Precision = Sampling.precision
) -> Pipeline:
    """The same of models that were found before, by `find_models`."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    reranker = None if models.clip is None else load_clip(models.clip, device)
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


def load_viewer(models: Models) -> Viewer:
    """What decodes a shortlist that other processes drew. Raises ValueError when a model is damaged."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Viewer(load_dvae(models.dvae, device), load_clip(models.clip, device))
