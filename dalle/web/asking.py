"""What a request may ask for, as a JSON schema, and a request that was checked by it.

The schema is the only place where the rules stand: it is what `/schema` shows, and what a request is refused by. Of JSON
Schema only those words are understood that it uses.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from typing import Any

from dalle.config import Serve

_MOST_SEED = 2**53 - 1
"""Beyond it a browser's numbers are not exact."""


@dataclass(frozen=True)
class Ask:
    """A request. image: base64 of a file; rows or region say what is kept of it. top_k and others are those of `Sampling`."""

    caption: str
    model: str
    n: int
    seed: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    guidance: float | None
    image: str | None
    rows: int
    region: tuple[int, int, int, int] | None


def request_schema(models: list[str], limits: Serve) -> dict[str, Any]:
    """Of what `POST /generate` takes. models: those that may be named, the first of which is taken where none is."""
    number, whole = {"type": "number"}, {"type": "integer"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What POST /generate takes",
        "type": "object",
        "required": ["caption"],
        "additionalProperties": False,
        "properties": {
            "caption": {
                "description": "What to draw.",
                **{"type": "string", "minLength": 1, "maxLength": limits.most_caption_chars},
            },
            "model": {"description": "What draws it.", "type": "string", "enum": models, "default": models[0]},
            "n": {
                "description": "Candidates that are drawn.",
                **{**whole, "minimum": 1, "maximum": limits.most_n, "default": min(16, limits.most_n)},
            },
            "seed": {
                "description": "Of the first candidate; candidate i has seed + i.",
                **{**whole, "minimum": -_MOST_SEED, "maximum": _MOST_SEED, "default": 0},
            },
            "temperature": {
                "description": "Divides the logits; null takes the one that the model was tuned for.",
                **{**number, "type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 100, "default": None},
            },
            "top_k": {
                "description": "Keep the k likeliest codes; null keeps all.",
                **{"type": ["integer", "null"], "minimum": 1, "default": None},
            },
            "top_p": {
                "description": "Keep the likeliest codes that together have this probability; null keeps all.",
                **{"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1, "default": None},
            },
            "guidance": {
                "description": "Scale of classifier-free guidance; 1 is none, another one takes twice the work; null takes the model's own.",
                **{**number, "type": ["number", "null"], "minimum": 0, "maximum": 100, "default": None},
            },
            "image": {
                "description": "An image file in base64, of which some is kept; it takes rows or region.",
                **{"type": ["string", "null"], "minLength": 1, "default": None},
            },
            "rows": {
                "description": "Rows of codes that are kept of the image, from the top.",
                **{**whole, "minimum": 0, "default": 0},
            },
            "region": {
                "description": "left, top, right and bottom in pixels of the image: what is drawn; the rest is kept.",
                **{"type": ["array", "null"], "minItems": 4, "maxItems": 4, "items": {**whole, "minimum": 0}},
                "default": None,
            },
        },
    }


def read_ask(values: Any, schema: dict[str, Any]) -> Ask:
    """A request that keeps to the schema.

    Raises:
        ValueError: one line that names the setting, its value and what is allowed
    """
    if not isinstance(values, dict):
        raise ValueError('the request: must be a JSON object, such as {"caption": "a red circle"}')
    rules = schema["properties"]
    for name in values:
        if name not in rules:
            near = difflib.get_close_matches(name, rules, n=1, cutoff=0.5)
            known = f"the nearest known one is {near[0]}" if near else f"known are {', '.join(rules)}"
            raise ValueError(f"{_shown(name)}: unknown; {known}")
    for name in schema["required"]:
        if name not in values:
            raise ValueError(f"{name}: is missing; send it")
    taken = {name: _checked(name, values.get(name, rule.get("default")), rule) for name, rule in rules.items()}
    if not taken["caption"].strip():
        raise ValueError("caption: is empty; say what to draw")
    taken["caption"] = " ".join(taken["caption"].split())
    if taken["region"] is not None:
        taken["region"] = tuple(taken["region"])
    assert {field.name for field in fields(Ask)} == set(taken)
    ask = Ask(**taken)
    if (ask.image is None) == (ask.rows > 0 or ask.region is not None):
        raise ValueError(
            "image: give it with rows, which are kept, or with a region, which is drawn, and neither without an image"
        )
    if ask.rows and ask.region is not None:
        raise ValueError("rows and region: give one of them, the rows to keep or the region to draw")
    return ask


def _checked(name: str, value: Any, rule: dict[str, Any]) -> Any:
    kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    if value is None and "null" in kinds:
        return None
    if "integer" in kinds and type(value) is float and value.is_integer():
        value = int(value)  # as JSON Schema has it
    sound = {
        "string": isinstance(value, str),
        "integer": type(value) is int,
        "number": type(value) in (int, float) and math.isfinite(value),
        "array": isinstance(value, list),
    }[kinds[0]]
    if kinds[0] == "string" and sound:
        _check_text(name, value, rule)
        return value
    if kinds[0] == "array" and sound and rule["minItems"] <= len(value) <= rule["maxItems"]:
        return [_checked(f"{name}[{place}]", item, rule["items"]) for place, item in enumerate(value)]
    within = kinds[0] != "array" and sound and rule.get("minimum", value) <= value <= rule.get("maximum", value)
    if within and value > rule.get("exclusiveMinimum", -math.inf):
        return value
    raise ValueError(f"{name} {_shown(value)}: must be {_allowed(rule)}")


def _check_text(name: str, value: str, rule: dict[str, Any]) -> None:
    if "enum" in rule and value not in rule["enum"]:
        raise ValueError(f"{name} {_shown(value)}: no such one here; there are {', '.join(rule['enum'])}")
    if len(value) < rule.get("minLength", 0):
        raise ValueError(f"{name}: is empty; say what to draw" if name == "caption" else f"{name}: is empty; give one")
    if len(value) > rule.get("maxLength", len(value)):
        raise ValueError(
            f"{name}: has {len(value):,} characters, of which at most {rule['maxLength']:,} are taken; send fewer"
        )


def _allowed(rule: dict[str, Any]) -> str:
    kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    if kinds[0] == "array":
        return f"a list of {rule['minItems']} whole numbers, none negative" + (", or null" if "null" in kinds else "")
    what = {"string": "text", "integer": "a whole number", "number": "a number"}[kinds[0]]
    low = rule.get("minimum", rule.get("exclusiveMinimum"))
    bound = "" if low is None else f" of at least {low}" if "minimum" in rule else f" above {low}"
    bound += f"{' and' if bound else ' of'} at most {rule['maximum']}" if "maximum" in rule else ""
    return what + bound + (", or null" if "null" in kinds else "")


def _shown(value: Any) -> str:
    """Anything that somebody sent, in a few characters of one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
