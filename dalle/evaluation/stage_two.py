"""Stage two's loss on held-out pairs: what a token of text and of the image costs, in all and by row of the grid.

It is the cross-entropy that training minimises (section 2.2): text over the caption tokens without pads, images over all
codes, the mean over all tokens of the data, weighted 1/8 and 7/8. Here each pair counts once, with its first caption and,
where the data are images, the codes of the central square. Only losses over the same codes can be compared, so priors of
one plot share their dVAE.

Images are independent, tokens of one image are not: standard errors are those over images. Sums are float64, and what is
held does not grow with the number of images. The axes are B images of a batch, U caption tokens, I codes, G rows of the
grid, V what is known of an image: its text's nats, its caption tokens, and the mean nats of each row's codes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle.config import Precision, PriorObjective
from dalle.evaluation.held_out_pairs import Batch, Pairs
from dalle.evaluation.measures.moments import Moments
from dalle.evaluation.report.section import Section, curve, prose, table
from dalle.models.folder import check_link, load_prior, read_header
from dalle.models.prior import Prior
from dalle.text import Cuts, Tokenizer, pad


@dataclass(frozen=True)
class Loss:
    """A mean over tokens.

    Args:
        nats: of a token
        error: its standard error over images, nats; null of a single image
    """

    nats: float
    error: float | None

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float | None:
        """Null where it is beyond any number that JSON has."""
        return math.exp(self.nats) if self.nats < 700 else None

    def to_json(self) -> dict[str, float | None]:
        """Of metrics.json."""
        return {"nats": self.nats, "error_nats": self.error, "bits": self.bits, "perplexity": self.perplexity}


@dataclass(frozen=True)
class HeldOut:
    """The losses of a prior on held-out pairs.

    Args:
        name: of the prior, as it was named
        prior_hash, dvae_hash, tokenizer_hash: content hashes
        source: of the pairs
        pairs_hash: SHA-256 over the codes and captions in order
        images, caption_tokens, cut_captions: how many were counted
        codebook_size: K
        precision: of the prior's products
        text_weight: of the text in `weighted`
        text: a caption token; 0 where no caption has any, as in training
        image: a code
        weighted: text_weight · text + (1 − text_weight) · image
        rows: a code in each row of the grid, from the top
        notes: what a reader should know
    """

    name: str
    prior_hash: str
    dvae_hash: str
    tokenizer_hash: str
    source: str
    pairs_hash: str
    images: int
    caption_tokens: int
    cut_captions: int
    codebook_size: int
    precision: Precision
    text_weight: float
    text: Loss
    image: Loss
    weighted: Loss
    rows: tuple[Loss, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Of metrics.json."""
        plain = ["prior_hash", "dvae_hash", "tokenizer_hash", "source", "pairs_hash", "images", "caption_tokens"]
        plain += ["cut_captions", "codebook_size", "precision", "text_weight"]
        losses = {name: getattr(self, name).to_json() for name in ("text", "image", "weighted")}
        return {
            **{name: getattr(self, name) for name in plain},
            **losses,
            "rows": [row.to_json() for row in self.rows],
        }


def held_out_losses(
    priors: Sequence[str | Path],
    pairs: Pairs,
    batch_size: int = 16,
    precision: Precision = "fp32",
    text_weight: float = PriorObjective.text_weight,
    device: str | torch.device | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[HeldOut]:
    """`held_out_loss` of several priors, one after the other. All are checked before the first is loaded."""
    for prior in priors:
        _belonging(prior, pairs)
    return [held_out_loss(prior, pairs, batch_size, precision, text_weight, device, progress) for prior in priors]


def held_out_loss(
    prior: str | Path,
    pairs: Pairs,
    batch_size: int = 16,
    precision: Precision = "fp32",
    text_weight: float = PriorObjective.text_weight,
    device: str | torch.device | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> HeldOut:
    """The losses of a prior on all pairs.

    Args:
        prior: its folder
        pairs: from `held_out_pairs.token_pairs` or `image_pairs`
        batch_size: images in a forward pass
        precision: of the prior's products
        text_weight: of the text in the weighted loss
        device: null takes a GPU where there is one
        progress: told how many images are done

    Raises:
        ValueError: the prior was trained with another dVAE, whose hash is shown beside that of the pairs; it is damaged or
            not finite; or batch_size or text_weight is out of range
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: must be at least 1")
    PriorObjective(text_weight)  # refuses what is none
    tokenizer, header = _belonging(prior, pairs)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_prior(prior, device, precision)
    moments, digest = Moments(2 + model.config.grid), hashlib.sha256()
    cuts = Cuts(model.config.caption_tokens)
    for codes_BI, captions in _rebatched(pairs.batches(), batch_size):
        for codes_I, caption in zip(codes_BI.astype("<i8"), captions, strict=True):
            digest.update(codes_I.tobytes() + json.dumps(caption).encode())
        ids = [tokenizer.encode(caption) for caption in captions]
        cuts.add(len(each) > cuts.limit for each in ids)
        known_BV = _known(model, pad(ids, cuts.limit), codes_BI, batch_size, precision)
        if not np.isfinite(known_BV).all():
            raise ValueError(
                f"the logits of the prior {prior} are not finite: its weights are broken, or no match for precision "
                f"{precision}; try fp32"
            )
        moments.add(known_BV)
        progress(moments.count)
    notes = pairs.notes + ((f"{prior}: {cuts}",) if cuts.cut else ())
    text, image, weighted, rows = _losses(moments, text_weight)
    return HeldOut(
        name=str(prior),
        prior_hash=header["hash"],
        dvae_hash=header["dvae_hash"],
        tokenizer_hash=tokenizer.hash,
        source=pairs.source,
        pairs_hash=digest.hexdigest(),
        images=moments.count,
        caption_tokens=round(moments.count * moments.mean_E[1]),
        cut_captions=cuts.cut,
        codebook_size=model.config.codebook_size,
        precision=precision,
        text_weight=text_weight,
        text=text,
        image=image,
        weighted=weighted,
        rows=rows,
        notes=notes,
    )


def section(found: Sequence[HeldOut]) -> Section:
    """The losses of some priors on the same pairs: a table, and a plot over the rows of the grid with a line for each.

    Raises:
        ValueError: they are not of the same codes, both hashes shown, or two have one name
    """
    first = found[0]
    for other in found[1:]:
        check_link(f"{other.name} was trained with another dVAE than {first.name}", first.dvae_hash, other.dvae_hash)
        check_link(f"{other.name} was measured on other pairs than {first.name}", first.pairs_hash, other.pairs_hash)
    if len({each.name for each in found}) < len(found):
        raise ValueError(f"priors {', '.join(each.name for each in found)}: name each once")
    notes = list(dict.fromkeys(note for each in found for note in each.notes))
    if len({each.tokenizer_hash for each in found}) > 1:
        notes.append(
            "the priors have different tokenizers: their text losses a token, and so the weighted ones, cannot be compared"
        )
    about = prose(
        f"Cross-entropy of {first.images:,} held-out pairs of {first.source}, in fp32 sums of {first.precision} products: a mean "
        f"over all caption tokens, and over all codes. ± is the standard error over images. A code that is drawn blindly costs "
        f"{math.log(first.codebook_size):.3f} nats, ln K. The weighted loss is what training minimises, with "
        f"{first.text_weight:g} for text."
    )
    header = ["prior", "text, nats a token", "±", "bits", "perplexity", "image, nats a code", "±", "bits", "perplexity"]
    header += ["weighted, nats", "±"]
    rows = [
        [each.name, *_cells(each.text), *_cells(each.image), each.weighted.nats, each.weighted.error] for each in found
    ]
    numbers = range(1, len(first.rows) + 1)
    lines = {each.name: (numbers, [row.nats for row in each.rows]) for each in found}
    plot = curve("image loss by row of the grid from the top, nats a code", lines)
    figures = {"pairs_hash": first.pairs_hash, "priors": {each.name: each.to_json() for each in found}}
    return Section(
        "stage_two", "Stage two: loss on held-out pairs", about + table(header, rows) + plot, figures, tuple(notes)
    )


def _cells(loss: Loss) -> list[float | None]:
    return [loss.nats, loss.error, loss.bits, loss.perplexity]


def _belonging(prior: str | Path, pairs: Pairs) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer and the header of a prior that was trained on such codes."""
    header = read_header(prior)
    if header["kind"] != "prior":
        raise ValueError(f"{prior} holds a {header['kind']}, not a prior; name one")
    check_link(
        f"the codes of {pairs.source} are of another dVAE than that of the prior {prior}",
        header["dvae_hash"],
        pairs.dvae_hash,
    )
    tokenizer = Tokenizer.load(Path(prior) / "tokenizer.json")
    check_link(f"the prior {prior} was trained with another tokenizer", header["tokenizer_hash"], tokenizer.hash)
    return tokenizer, header


def _rebatched(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """The same pairs, so many at a time; the last are perhaps fewer."""
    codes = np.empty((0, 0), np.int64)
    captions: list[str] = []
    for more_BI, more in batches:
        codes = np.concatenate([codes, more_BI]) if len(captions) else more_BI
        captions = captions + more
        while len(captions) >= size:
            yield codes[:size], captions[:size]
            codes, captions = codes[size:], captions[size:]
    if captions:
        yield codes, captions


@torch.inference_mode()
def _known(prior: Prior, text_BU: np.ndarray, codes_BI: np.ndarray, width: int, precision: Precision) -> np.ndarray:
    """What is known of each image, float64 [B, V]. The batch is filled up to one width, of which FlexAttention compiles each
    anew."""
    device, count = prior.image_head.weight.device, len(codes_BI)
    filled = np.arange(width) % count
    text_WU, codes_WI = (torch.from_numpy(each[filled]).to(device) for each in (text_BU, codes_BI))
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        text_ln_p_BU, image_ln_p_BI = (ln_p[:count].cpu().double() for ln_p in prior.ln_p(text_WU, codes_WI))
    rows_BG = -image_ln_p_BI.unflatten(1, (prior.config.grid, prior.config.grid)).mean(dim=2)
    tokens_B = (text_BU >= 0).sum(axis=1)
    return np.column_stack([-text_ln_p_BU.sum(dim=1).numpy(), tokens_B, rows_BG.numpy()])


def _error(moments: Moments, slope_V: np.ndarray) -> float | None:
    """The standard error of a function of the means with these derivatives; null of a single image."""
    if moments.count < 2:
        return None
    return math.sqrt(max(0.0, slope_V @ moments.covariance() @ slope_V) / moments.count)


def _losses(moments: Moments, text_weight: float) -> tuple[Loss, Loss, Loss, tuple[Loss, ...]]:
    """Of text, images, both, and each row. The text loss is a ratio of means, of captions' nats and captions' tokens, and its
    error to first order that of its linear form."""
    nats, tokens = moments.mean_E[:2]
    unit_VV = np.eye(len(moments.mean_E))
    text, text_V = 0.0, 0 * unit_VV[0]
    if tokens > 0:
        text = nats / tokens
        text_V = (unit_VV[0] - text * unit_VV[1]) / tokens
    image, image_V = moments.mean_E[2:].mean(), unit_VV[2:].mean(axis=0)
    both, both_V = (
        text_weight * of_text + (1 - text_weight) * of_image for of_text, of_image in ((text, image), (text_V, image_V))
    )
    rows = [(moments.mean_E[v], unit_VV[v]) for v in range(2, len(unit_VV))]
    losses = [
        Loss(float(value), _error(moments, slope_V))
        for value, slope_V in ((text, text_V), (image, image_V), (both, both_V), *rows)
    ]
    return losses[0], losses[1], losses[2], tuple(losses[3:])
