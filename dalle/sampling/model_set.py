"""The models of a folder: where they lie, and whether they belong together, which their headers tell before any weights
are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dalle.config import DVAEModel, PriorModel, Sampling
from dalle.config.checks import warn
from dalle.decoding.kernels import kernels
from dalle.models.clip import open_clip_name
from dalle.models.folder import check_link, check_links, codes_hash, read_config, read_header
from dalle.outputs.run_files import WEIGHTS
from dalle.ready.files import read_settings
from dalle.ready.names import find_clip, find_model, find_part
from dalle.sampling.drawing import codes_of
from dalle.text import Tokenizer, caption_tokens


@dataclass(frozen=True)
class Tuning:
    """What a prior's folder tells of how it wants to be drawn with.

    Args:
        caption_dropout: that it was trained with; null where nothing says it
        temperature, guidance: that it was tuned for
    """

    caption_dropout: float | None = None
    temperature: float = 1.0
    guidance: float = 1.0

    def complete(self, sampling: Sampling) -> Sampling:
        """The settings, and the prior's own where they leave it to the prior."""
        return replace(
            sampling,
            temperature=self.temperature if sampling.temperature is None else sampling.temperature,
            guidance=self.guidance if sampling.guidance is None else sampling.guidance,
        )


@dataclass(frozen=True)
class Models:
    """Models that belong together.

    prior, dvae: folders. clip: a folder, or ARCHITECTURE:PRETRAINED of open_clip; None without a reranker. codes_clip: the
    folder of the reader of codes; None without a shortlist.
    hashes: content hashes by name, recorded with every drawing; of an open_clip model its name; "codes" is what the dVAE's
    codes are known by where that is another's hash. tuning: the prior's.
    """

    prior: Path
    dvae: Path
    clip: str | None
    tokenizer: Tokenizer
    prior_config: PriorModel
    dvae_config: DVAEModel
    hashes: dict[str, str]
    tuning: Tuning
    codes_clip: str | None = None

    @property
    def image_size_px(self) -> int:
        """Side of what is drawn."""
        return self.dvae_config.image_size_px

    @property
    def steps(self) -> tuple[int, int]:
        """How many steps a chunk is drawn in, and after how many of them that is worth telling: slots, and those of a row."""
        return self.prior_config.image_slots, self.prior_config.grid

    def settle(self, sampling: Sampling) -> Sampling:
        """The settings with the prior's own where they leave it open (`settle`)."""
        return settle(sampling, self.prior_config, self.tuning)

    def check(self, captions: Sequence[str]) -> None:
        """Raises ValueError for captions that cannot be drawn, and warns of what is cut from them or unknown in them."""
        caption_tokens(self.tokenizer, captions, self.prior_config.caption_tokens)

    def kernels(self, device: str, compiled: bool) -> str:
        """What computes between the matrix products, as drawings record it."""
        head_width = self.prior_config.width // self.prior_config.heads
        return kernels(torch.device(device), compiled, head_width).name


def find_models(
    folder: str | Path,
    dvae: str | Path | None = None,
    prior: str | Path | None = None,
    clip: str | Path | None = None,
    rerank: bool | None = None,
    shortlist: bool = False,
    codes_clip: str | Path | None = None,
) -> Models:
    """The models of a whole one, `prior/`, `dvae/` and, for reranking, `clip/` in it, and `codes-clip/` for a shortlist; no weights
    are read, but of what comes from the Hub their hashes are checked. Each name is looked up once: load what is found by
    `dalle.sampling.loading.load_models`.

    Args:
        folder: the model: a folder, a ready model, or `owner/name[@revision]` of the Hub (`dalle.ready.names`)
        dvae, prior: single models that stand in for those in `folder`, by the same names
        clip: likewise, or `ARCHITECTURE:PRETRAINED` of open_clip
        rerank: whether a reranker is needed; null takes that of `folder` where it has one. One that was trained for another
            dVAE or tokenizer than those that were named in place of its own is then left out, with a warning
        shortlist: whether a reader of codes is needed
        codes_clip: it, in place of that in `folder`

    Raises:
        ValueError: a model is missing or of another kind, or was trained with another dVAE or tokenizer
    """
    whole: Path | None = None
    # whoever names all that draws needs no whole model, unless something else of it is asked for
    if prior is None or dvae is None or (rerank and clip is None) or (shortlist and codes_clip is None):
        whole = find_model(folder)
    replaced = prior is not None or dvae is not None

    def own(name: str) -> Path:
        assert whole is not None
        return whole / name

    prior = own("prior") if prior is None else find_part(prior, "prior")
    dvae = own("dvae") if dvae is None else find_part(dvae, "dvae")
    prior_config = read_config(prior, "prior")  # names what is wrong with the folder before anything else does
    tokenizer = Tokenizer.load(prior / "tokenizer.json")
    dvae_config = read_config(dvae, "dvae")
    check_links(prior, dvae, tokenizer)
    _check_sizes(prior, prior_config, dvae_config, tokenizer)
    hashes = {"prior": read_header(prior)["hash"], "dvae": read_header(dvae)["hash"], "tokenizer": tokenizer.hash}
    if (codes := codes_hash(dvae)) != hashes["dvae"]:
        hashes["codes"] = codes
    source = None
    if rerank or (clip is not None and rerank is None):
        source = find_clip(clip or own("clip"))
        hashes["clip"] = check_clip(source, hashes)
    elif rerank is None and whole is not None and (whole / "clip" / WEIGHTS).is_file():
        source = str(whole / "clip")
        try:
            hashes["clip"] = check_clip(source, hashes)
        except ValueError as error:
            if not replaced:
                raise
            warn(f"nothing is ranked: {error}")
            source = None
    reader = None
    if shortlist:
        reader = str(find_part(codes_clip, "codes-clip") if codes_clip else own("codes-clip"))
        hashes["codes_clip"] = _check_codes_clip(reader, hashes)
    return Models(prior, dvae, source, tokenizer, prior_config, dvae_config, hashes, _tuning(prior), reader)


def _check_sizes(prior: Path, config: PriorModel, dvae: DVAEModel, tokenizer: Tokenizer) -> None:
    """Raises ValueError unless each can read what the other says, whatever hashes their headers claim."""
    for said, ours, theirs in (
        ("codes", config.codebook_size, dvae.codebook_size),
        ("codes a side", config.grid, dvae.grid),
        ("tokens of captions at most", config.text_vocabulary, max(config.text_vocabulary, tokenizer.vocabulary)),
    ):
        if ours != theirs:
            raise ValueError(
                f"the prior {prior} has {ours:,} {said}, and what it was trained with {theirs:,}; take what it was trained with"
            )


def _tuning(prior: Path) -> Tuning:
    """From the weights' header, or, where an earlier version wrote that, from the configuration beside it."""
    header = read_header(prior)
    if "caption_dropout" in header:
        try:
            tuning = Tuning(
                float(header["caption_dropout"]),
                float(header["sampling_temperature"]),
                float(header.get("sampling_guidance", 1.0)),  # an earlier version wrote none
            )
            Sampling(temperature=tuning.temperature, guidance=tuning.guidance)  # refuses what is none
        except (KeyError, ValueError) as error:
            raise ValueError(f"the header of the weights in {prior} is damaged: {error}; take another copy") from None
        return tuning
    try:
        return Tuning(float(read_settings(prior / "config.yaml")["caption_dropout"]))
    except (OSError, KeyError, TypeError, ValueError):
        return Tuning()


def check_clip(source: str, hashes: dict[str, str] | None) -> str:
    """The reranker's hash; of an open_clip model its name.

    Args:
        source: a folder, or ARCHITECTURE:PRETRAINED of open_clip
        hashes: of the models that draw, which it has to be trained for; null where it ranks images of others

    Raises:
        ValueError: it reads codes, or was trained for others
    """
    if not Path(source).is_dir():
        open_clip_name(source)
        return source
    if read_config(source, "clip").reads != "pixels":
        raise ValueError(f"the reranker {source} reads codes, not pixels: give it as --codes_clip, for a shortlist")
    return (
        read_header(source)["hash"] if hashes is None else _check_trained_for(f"the reranker {source}", source, hashes)
    )


def _check_codes_clip(source: str, hashes: dict[str, str]) -> str:
    """The hash of the reader of codes."""
    if not Path(source).is_dir():
        raise ValueError(
            f"shortlist: no such reader of codes: {source}; train one with dalle-train-clip --model.reads codes, or name its "
            "folder with --codes_clip"
        )
    if read_config(source, "clip").reads != "codes":
        raise ValueError(f"the reader of codes {source} reads pixels: name one of dalle-train-clip --model.reads codes")
    return _check_trained_for(f"the reader of codes {source}", source, hashes)


def _check_trained_for(which: str, source: str, hashes: dict[str, str]) -> str:
    """The hash of a CLIP of ours, which was trained for the dVAE and tokenizer that are there, or for none."""
    header = read_header(source)
    for name, said, found in (("dvae", "dVAE", codes_of(hashes)), ("tokenizer", "tokenizer", hashes["tokenizer"])):
        if trained_with := header.get(f"{name}_hash"):
            assert found is not None
            check_link(f"{which} was trained for another {said}", trained_with, found)
    return header["hash"]


def settle(sampling: Sampling, config: PriorModel, tuning: Tuning) -> Sampling:
    """The settings as `Tuning.complete` has them. Warns of guidance where nothing says whether the prior can be guided.

    Raises:
        ValueError: they do not fit this prior
    """
    if sampling.top_k is not None and sampling.top_k > config.codebook_size:
        raise ValueError(
            f"sampling.top_k {sampling.top_k}: this prior chooses among {config.codebook_size} codes; give at most that "
            "many, or null for all"
        )
    settled = tuning.complete(sampling)
    if settled.guidance != 1 and tuning.caption_dropout == 0:
        raise ValueError(
            f"sampling.guidance {settled.guidance}: this prior was trained with caption_dropout 0, so what it thinks "
            "likely without a caption means nothing; leave guidance at 1, or train a prior with --caption_dropout 0.1"
        )
    if settled.guidance != 1 and tuning.caption_dropout is None:
        warn(
            f"sampling.guidance {settled.guidance}: nothing says whether this prior was trained with caption_dropout; "
            "one that was not draws less of its captions the more it is guided"
        )
    return settled
