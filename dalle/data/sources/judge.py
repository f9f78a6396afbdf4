"""Filters of captions and sizes (appendix C): what each leaves out, as a function of one caption or one image alone."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from dalle.config import Filters
from dalle.config.checks import installed
from dalle.data.counts import Filtered

_MONTHS = "jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?|dec(ember)?"
_DATE = (
    rf"(\w+day,? )?((\d{{1,2}}(st|nd|rd|th)?( of)? )?({_MONTHS})\.?( \d{{1,2}}(st|nd|rd|th)?)?,?( \d{{4}})?"
    r"|\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|(18|19|20)\d\d)"
)
_THING = "(this |the |a |an )?(photo(graph)?|image|picture|pic|file|shot|snapshot|screenshot)"
_VERB = "(photograph(ed)?|tak(en|e)|captur(ed|e)|shot|upload(ed)?|creat(ed|e)|post(ed)?|publish(ed)?|updat(ed|e)|scann(ed)?)"
_BOILERPLATE = (
    # "photographed on 3 May 2014" is the paper's own example
    rf"({_THING} )?(was )?{_VERB}:? ((on|in|at) )?{_DATE}( at \d+[:.]\d+.*)?",
    rf"(?=.*\d){_DATE}",
    rf"({_THING} )?(by|credits?|courtesy( of)?|copyright|via|source):? ?(unknown|anonymous|getty images|shutterstock|n/?a)",
    r"(©|\(c\)|copyright)( \d{4})?.{0,40}",
    r".{0,40}all rights reserved.{0,20}",
    r"(https?://|www\.)\S+",
    r"(img|image|dsc[nf]?|pxl|mvimg|p|photo|picture|screenshot|scan|file|untitled)[\s_\-]*\d[\d\s_\-():.]*(at [\d.:]+)?",
    r"[\d\s_\-():.]{5,}",  # a shorter one may be a label, such as that of a digit
    r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?|heic)",
    r"(no|without|missing|add|your|enter|insert)( a| an| the)? (caption|description|title|(alt )?text)"
    r"( here| available| provided)?",
    rf"(untitled|unnamed|unknown|undefined|null|none|nan|n/?a|tbd|todo|test|caption|description|title|alt|{_THING})",
    r"(click|tap|press)( here| on (it|the image))?( to| for) (enlarge|zoom|view|see|download|more|open).{0,40}",
    r"(view|see|show|open|download)( the)? (full[- ]?size|larger|original|high[- ]res\w*)( image| version| picture)?",
    r"image (may contain|unavailable|not (available|found)).{0,60}",
    r"[!-/:-@\[-`{-~\s…·•–—]+",  # not all that is no letter: a picture of a face may be captioned with one
)


@lru_cache
def _boilerplate(further: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in (*_BOILERPLATE, *further)), re.IGNORECASE)


def caption_reason(caption: str, filters: Filters) -> str | None:
    """Why a caption is left out; null where it stays. Spaces are single ones."""
    if filters.min_caption_chars is not None and len(caption) < filters.min_caption_chars:
        return f"shorter than filters.min_caption_chars {filters.min_caption_chars}"
    if filters.max_caption_chars is not None and len(caption) > filters.max_caption_chars:
        return f"longer than filters.max_caption_chars {filters.max_caption_chars}"
    if filters.boilerplate is not None and _boilerplate(filters.boilerplate).fullmatch(
        caption.rstrip(" .!") or caption
    ):
        return "boilerplate, which says nothing of the picture"
    if _is_foreign(caption, filters):
        return f"another language than filters.language {filters.language}"
    return None


def _is_foreign(caption: str, filters: Filters) -> bool:
    if filters.language is None or len(caption) < filters.language_min_chars:
        return False
    return in_another_language(caption, filters.language) >= filters.language_confidence


def image_filtered(size: tuple[int, int], filters: Filters) -> Filtered | None:
    """Why an image is left out by its width and height in pixels; null where it stays."""
    if filters.min_side_px is not None and min(size) < filters.min_side_px:
        return Filtered(f"shorter side under filters.min_side_px {filters.min_side_px}", f"{size[0]}×{size[1]}")
    if filters.max_aspect_ratio is not None and max(size) > filters.max_aspect_ratio * min(size):
        return Filtered(
            f"longer than filters.max_aspect_ratio {filters.max_aspect_ratio:g} times its shorter side",
            f"{size[0]}×{size[1]}",
        )
    return None


def in_another_language(text: str, language: str) -> float:
    """The probability that a text is in any language but one, of those that the detector knows."""
    return sum(probability for name, probability in _detector().rank(text) if name != language)


def check_language(filters: Filters) -> None:
    """Raises ValueError where the detector is wanted and missing, or does not know the language."""
    if filters.language is None:
        return
    known = sorted(_detector().labels)
    if filters.language not in known:
        raise ValueError(
            f"filters.language {filters.language}: is none that the detector knows; known are {', '.join(known)}"
        )


@lru_cache
def _detector() -> Any:
    with installed("filters.language: needs a detector of languages: pip install 'dalle[data]'"):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
