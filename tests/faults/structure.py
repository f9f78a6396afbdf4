"""JSON and YAML that is well-formed and says something else: values of other kinds and sizes in the place of others, keys that are not
there, twice there or misspelt, values that have changed places, and lists of other lengths."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.faults.damage import outcome
from tests.faults.kinds import KINDS, Kind

CORPUS = Path(__file__).with_name("corpus")
"""What was found to end otherwise than it should: `KIND/WHAT`, each for the place of its kind."""
STRUCTURED = [
    name for name in KINDS if Path(name).suffix in (".json", ".jsonl", ".yaml", ".md") or name.startswith(".dalle-")
]
"""Kinds that are JSON, lines of JSON, YAML, or begin with YAML."""


class _Object(list):
    """[key, value] each, where a key may be there twice."""


def _object(values: dict[str, Any]) -> _Object:
    return _Object([key, value] for key, value in values.items())


class Text(str):
    """A value as it stands in the file, whether or not it is one."""


_WRONG = [
    *("null", "true", "false", "0", "-1", "1", "2", "2.5", "-0.0", "1e-400", "1e999", "-1e999", "NaN", "Infinity", "-Infinity"),
    *("1000000000000", str(2**31), str(2**63), str(-(2**63)), str(10**30), "9" * 5000, "017", "0x10", "1_000"),
    *('""', '" "', '"x"', '"nan"', '"1"', '"null"', '"\\ud800"', '"\\udcff x"', '"\\u0000"', '"\\n"', '"\\u001b[31m"', '"\\u202e"'),
    *('"../../x"', '"/etc/passwd"', '"' + "B" * 10_000 + '"', '"' + "\\u65e5" * 300 + '"', '"1:30"', '"é́́"'),
    *("[]", "[null]", "[[]]", "{}", '{"": {}}', '{"x": 1, "x": 2}', "[" * 60 + "]" * 60, "[" * 3000 + "]" * 3000),
    *('{"class_path": "stranger.Thing"}', '{"type": "Sequence"}', "[1, 1, 1]", '["a", 1, null]', "[1e308, 1e308]"),
]  # fmt: skip
_WRONG_YAML = [
    *(".inf", "-.inf", ".nan", "1:30", "0o17", "0b1", "2001-02-03", "yes", "~", "x", "!!python/name:os.system ''", "!!int x", "!!set {a}"),
    *("&a [*a]", "*nowhere", "{<<: {x: 1}}", "{1: 2}", "{? [1] : 2}", "!!binary eA==", "'\\ud800'"),
]  # fmt: skip
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4).map(_object),
    max_leaves=6,
)


def _parsed(text: str, place: str) -> list:
    """The documents of a file."""
    if place.endswith((".yaml", ".md")):
        text = json.dumps(yaml.safe_load(text))
    lines = text.splitlines() if place.endswith(".jsonl") else [text]
    return [json.loads(line, object_pairs_hook=lambda pairs: _Object(map(list, pairs))) for line in lines]


def _written(value: Any, as_yaml: bool) -> str:
    if isinstance(value, Text):
        return value
    if isinstance(value, _Object):
        return "{" + ", ".join(f"{_written(key, False)}: {_written(v, as_yaml)}" for key, v in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_written(each, as_yaml) for each in value) + "]"
    if as_yaml and isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return json.dumps(value)


def _places(draw: st.DrawFn, held: list, at: int) -> Iterator[tuple[list, int]]:
    """Where a value and those within it are held, and at which index; of many alike the first, the last and some."""
    yield held, at
    value = held[at]
    if isinstance(value, list):
        last = len(value) - 1
        few = (
            {0, 1, last - 1, last, draw(st.integers(0, last)), draw(st.integers(0, last))}
            if last > 16
            else range(last + 1)
        )
        for each in few:
            yield from _places(draw, *((value[each], 1) if isinstance(value, _Object) else (value, each)))


def _place(draw: st.DrawFn, documents: list) -> tuple[list, int]:
    chosen = draw(st.integers(0, len(documents) - 1))
    return draw(st.sampled_from([*_places(draw, documents, chosen)]))


def _copied(value: Any) -> Any:
    return type(value)(map(_copied, value)) if isinstance(value, list) else value


@st.composite
def damaged(draw: st.DrawFn, text: str, place: str) -> str:
    """The text of a file with one or two changes. place: its name, whose end tells JSON from YAML."""
    before, text, after = text.split("---\n", 2) if place.endswith(".md") else ("", text, "")
    as_yaml = place.endswith((".yaml", ".md"))
    documents = _parsed(text, place)
    wrong = st.sampled_from(_WRONG + _WRONG_YAML * as_yaml).map(Text) | _ANY
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        if not documents:
            break
        held, at = _place(draw, documents)
        value = held[at]
        how = draw(
            st.sampled_from(
                ["replace", "replace", "put within", "swap", "copy", "leave out", "double", "rename", "add"]
            )
        )
        if how == "put within":
            held[at] = draw(st.sampled_from([[value], _Object([["x", value]]), [value, value]]))
        elif how in ("swap", "copy"):
            other, place_of_other = _place(draw, documents)
            held[at] = _copied(other[place_of_other])
            if how == "swap":
                other[place_of_other] = _copied(value)
        elif how in ("leave out", "double", "rename") and isinstance(value, list) and value:
            chosen = draw(st.integers(0, len(value) - 1))
            if how == "leave out":
                del value[chosen]
            elif how == "double":
                again = _copied(value[chosen])
                value.insert(draw(st.integers(0, len(value))), again)
                if isinstance(value, _Object) and draw(st.booleans()):
                    again[1] = draw(wrong)
            elif isinstance(value, _Object):
                value[chosen][0] = draw(st.text(max_size=4) | st.sampled_from(["class_path", "x" * 3000, "\ud800"]))
        elif how == "add" and isinstance(value, list):
            value.append([draw(st.text(max_size=4)), draw(wrong)] if isinstance(value, _Object) else draw(wrong))
        else:
            held[at] = draw(wrong)
    written = "\n".join(_written(document, as_yaml) for document in documents)
    return f"{before}---\n{written}\n---\n{after}" if place.endswith(".md") else written


def fuzz_structure(folder: Path, name: str, kind: Kind, count: int, number: int) -> Counter[str]:
    """What became of as many files, in a word each. number: of the draws, which are the same for the same one."""
    outcomes: Counter[str] = Counter()
    sound, place, numbers = folder / "sound", name.split(" ")[0], itertools.count()
    sound.mkdir()
    kind.make(sound)
    shutil.copytree(sound, folder / "first")
    expected = kind.read(folder / "first")

    # what is found goes into the corpus, and not into a folder that is on one machine alone
    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        report_multiple_bugs=False,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(damaged((sound / place).read_text(encoding="utf-8"), place))
    def read(text: str) -> None:
        it = folder / f"damaged-{next(numbers)}"
        shutil.copytree(sound, it)
        (it / place).write_bytes(text.encode("utf-8", "surrogatepass"))
        outcomes[outcome(kind, place, it, expected)] += 1
        shutil.rmtree(it)

    read()
    assert kind.tolerant or outcomes["refused by name"] > count / 10, outcomes
    return outcomes
