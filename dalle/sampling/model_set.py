"""The models of a folder: where they lie, and whether they belong together, which their headers tell before any weights
are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dalle.config import DVAEModel, PriorModel, Sampling
from dalle.models.clip import open_clip_name
from dalle.models.folder import check_link, check_links, read_config, read_header
from dalle.text import Tokenizer


@dataclass(frozen=True)
class Models:
    """Models that belong together.

    prior, dvae: folders. clip: a folder, or ARCHITECTURE:PRETRAINED of open_clip; None without a reranker.
    hashes: content hashes by name, recorded with every drawing; of an open_clip model its name.
    """

    prior: Path
    dvae: Path
    clip: str | None
    tokenizer: Tokenizer
    prior_config: PriorModel
    dvae_config: DVAEModel
    hashes: dict[str, str]


def find_models(
    folder: str | Path,
    dvae: str | Path | None = None,
    prior: str | Path | None = None,
    clip: str | Path | None = None,
    rerank: bool = True,
) -> Models:
    """The models of a folder that has `prior/`, `dvae/` and, for reranking, `clip/` in it; no weights are read.

    Args:
        folder: the folder
        dvae, prior: folders of single models that stand in for those in `folder`
        clip: likewise, or `ARCHITECTURE:PRETRAINED` of open_clip
        rerank: whether a reranker is needed

    Raises:
        ValueError: a model is missing or of another kind, or was trained with another dVAE or tokenizer
    """
    folder = Path(folder)
    prior, dvae = Path(prior or folder / "prior"), Path(dvae or folder / "dvae")
    prior_config = read_config(prior, "prior")  # names what is wrong with the folder before anything else does
    tokenizer = Tokenizer.load(prior / "tokenizer.json")
    dvae_config = read_config(dvae, "dvae")
    check_links(prior, dvae, tokenizer)
    hashes = {"prior": read_header(prior)["hash"], "dvae": read_header(dvae)["hash"], "tokenizer": tokenizer.hash}
    source = None
    if rerank:
        source = str(clip or folder / "clip")
        hashes["clip"] = _check_clip(source, hashes)
    return Models(prior, dvae, source, tokenizer, prior_config, dvae_config, hashes)


def _check_clip(source: str, hashes: dict[str, str]) -> str:
    """The reranker's hash; of an open_clip model its name."""
    if not Path(source).is_dir():
        open_clip_name(source)
        return source
    read_config(source, "clip")
    header = read_header(source)
    for name, said in (("dvae", "dVAE"), ("tokenizer", "tokenizer")):
        if trained_with := header.get(f"{name}_hash"):
            check_link(f"the reranker {source} was trained for another {said}", trained_with, hashes[name])
    return header["hash"]


def check_sampling(sampling: Sampling, config: PriorModel) -> None:
    """Raises ValueError for settings that do not fit this prior."""
    if sampling.top_k is not None and sampling.top_k > config.codebook_size:
        raise ValueError(
            f"sampling.top_k {sampling.top_k}: this prior chooses among {config.codebook_size} codes; give at most that "
            "many, or null for all"
        )
