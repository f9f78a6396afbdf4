"""Captions for an image: the joint model scores those that it is given.

The prior models p(caption) · p(image | caption), so by Bayes' rule p(caption | image) ∝ p(caption, image). Its text has no
end token: ln p(caption) is the probability that a text begins so, and every further token makes it smaller. That is why
captions are ranked by ln p(image | caption) unless asked otherwise (docs/captioning.md), and why none are drawn from the
model: it would not know where to stop.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dalle.config import Precision, RankBy
from dalle.config.checks import warn
from dalle.config.plain_json import each_once
from dalle.data.captions import is_encodable
from dalle.models.prior import Prior
from dalle.sampling.pipeline import Pipeline
from dalle.sampling.prompt import central_square, encode_with
from dalle.text import PAD


@dataclass(frozen=True)
class ScoredCaption:
    """A caption and what the prior thinks of it, in nats.

    Args:
        rank: from 1, the best
        caption: as it was given
        tokens: of it that were read
        ln_p_text: ln p(caption), of its tokens with any that may follow
        ln_p_image: ln p(image | caption), of all codes
        gain: ln p(image | caption) − ln p(image | no caption). Means something only of a prior that was trained with
            `caption_dropout`: another one has never seen an image without a caption
        ln_p_joint: ln p(caption, image), the sum of the first two
    """

    rank: int
    caption: str
    tokens: int
    ln_p_text: float
    ln_p_image: float
    gain: float
    ln_p_joint: float


def score(
    pipeline: Pipeline,
    image: Image.Image,
    captions: Sequence[str],
    rank_by: RankBy = "image",
    batch_size: int = 16,
    precision: Precision = "fp32",
) -> list[ScoredCaption]:
    """The captions, best first; those that are equal stay in their order.

    Args:
        pipeline: prior, dVAE and tokenizer; its reranker is not asked
        image: its central square is read
        captions: at least one; a warning shows what is cut from one that is too long
        rank_by: "image", ln p(image | caption), takes all captions for equally likely beforehand; "joint" is
            ln p(caption, image). The gain would rank like "image", being less by one number for the whole image
        batch_size: captions in a forward pass of the prior
        precision: of the prior's matrix products

    Raises:
        ValueError: no captions, an empty one, a batch_size below 1, or another rank_by

    Warns that the gain means nothing where the prior was trained without `caption_dropout`.
    """
    if not captions:
        raise ValueError("captions: there are none to score")
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: must be at least 1")
    if rank_by not in ("image", "joint"):
        raise ValueError(f"rank_by {rank_by}: must be one of image, joint")
    if pipeline.tuning.caption_dropout == 0:
        warn("the gain means nothing: this prior was trained with caption_dropout 0")
    text_CU = pipeline.tokens(captions).to(pipeline.device)
    no_caption_1U = torch.full_like(text_CU[:1], PAD)
    codes_I = image_codes(pipeline, image)
    prior = pipeline.prior_for(precision)
    text_C, image_C = ln_p(prior, torch.cat([no_caption_1U, text_CU]), codes_I, batch_size, precision)
    without, text, given = image_C[0].item(), text_C[1:].tolist(), image_C[1:].tolist()
    keys = {"image": given, "joint": [t + i for t, i in zip(text, given, strict=True)]}[rank_by]
    num_tokens = (text_CU != PAD).sum(dim=1).tolist()
    return [
        ScoredCaption(rank, captions[i], num_tokens[i], text[i], given[i], given[i] - without, text[i] + given[i])
        for rank, i in enumerate(sorted(range(len(captions)), key=keys.__getitem__, reverse=True), 1)
    ]


def image_codes(pipeline: Pipeline, image: Image.Image) -> torch.Tensor:
    """The dVAE's codes int64 [I] of an image's central square, in fp32: which of two close codes it is matters more here
    than the time for one image."""
    pixels_YX3 = central_square(image, pipeline.dvae.config.image_size_px)
    return torch.from_numpy(encode_with(pipeline.dvae, pixels_YX3)).to(pipeline.device)


@torch.inference_mode()
def ln_p(
    prior: Prior, text_CU: torch.Tensor, codes_I: torch.Tensor, batch_size: int, precision: Precision
) -> tuple[torch.Tensor, torch.Tensor]:
    """ln p(caption) and ln p(image | caption) of each caption, in nats: float64 [C] and [C].

    Memory is that of one forward pass, and of the logits of a few rows.

    Args:
        prior: in evaluation mode
        text_CU: caption tokens int64 [C, T − 1], PAD after the end; a row of PAD alone is no caption
        codes_I: of the one image
        batch_size: the most captions in a forward pass
        precision: of the matrix products

    Raises:
        ValueError: the prior's logits are not finite
    """
    # one width for all batches, of which FlexAttention compiles each anew: what the last one lacks are no captions
    num_batches = math.ceil(len(text_CU) / batch_size)
    width = math.ceil(len(text_CU) / num_batches)
    lacking_U = text_CU.new_full((num_batches * width - len(text_CU), text_CU.shape[1]), PAD)
    codes_BI = codes_I.expand(width, -1)
    found = []
    with torch.autocast(text_CU.device.type, torch.bfloat16, enabled=precision == "bf16"):
        for text_BU in torch.cat([text_CU, lacking_U]).split(width):
            # in float64: the differences between captions are small beside sums over all codes
            found.append(torch.stack([ln_p_BN.double().sum(dim=1) for ln_p_BN in prior.ln_p(text_BU, codes_BI)]))
    text_C, image_C = torch.cat(found, dim=1)[:, : len(text_CU)]
    if not (text_C.isfinite().all() and image_C.isfinite().all()):
        raise ValueError(
            f"the prior's logits are not finite: its weights are broken, or no match for precision {precision}; try fp32"
        )
    return text_C, image_C


def read_captions_file(path: str | Path) -> list[str]:
    """The captions of a text file, one a line, or of a .jsonl file of objects that have a "caption" or, as GenEval's
    `evaluation_metadata.jsonl`, a "prompt". Blank lines are left out.

    Raises:
        ValueError: the file cannot be read, is no such file, or has no caption, or an empty one; names the line
    """
    return [entry["prompt"] for entry in read_prompts_file(path)]


def read_prompts_file(path: str | Path) -> list[dict[str, Any]]:
    """The same with all that the file says of each caption, which stands under "prompt"; raises what that does."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".json"):
        raise ValueError(
            f"captions {path}: its lines are no captions; write one a line as .txt, or objects with a caption as .jsonl"
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise ValueError(f"captions {path}: {error.strerror}; name a file that can be read") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"captions {path}: is not UTF-8 text ({error.reason}): convert it first") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line]
    if not numbered:
        raise ValueError(f"captions {path}: has no caption in it; write one a line")
    if suffix != ".jsonl":
        return [{"prompt": line} for _, line in numbered]
    return [_prompt_of(line, f"captions {path}, line {number}") for number, line in numbered]


def _prompt_of(line: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line, object_pairs_hook=each_once)
        caption = entry["caption"] if "caption" in entry else entry["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        caption = None
    if not isinstance(caption, str):
        raise ValueError(f'{where}: must be an object like {{"caption": "a red circle"}}, with each key once')
    if not caption.strip():
        raise ValueError(f"{where}: the caption is empty; write one")
    if not is_encodable(caption):
        raise ValueError(
            f"{where}: the caption holds half a character (\\ud800 to \\udfff), which is no text; write it as UTF-8"
        )
    return {**entry, "prompt": caption}
