"""The plan on disk: for each stage a YAML file that its command takes, which a person may read, run by hand, or change. What was
changed by hand is taken as it is and never written over."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dalle.config import plain_json, plain_yaml
from dalle.outputs.whole import replace_text

STAGES = ("tokenizer", "dvae", "tokens", "prior", "clip")
COMMANDS = {
    "tokenizer": "dalle-train-tokenizer",
    "dvae": "dalle-train-dvae",
    "tokens": "dalle-tokenize",
    "prior": "dalle-train-prior",
    "clip": "dalle-train-clip",
}
_RECORD = "plan.json"


class PlanFiles:
    """The folder `plan` of an output.

    folder: where it is, or will be.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / _RECORD
        self._record: dict[str, Any] = {}
        if path.is_file():
            kinds = {"request": dict[str, Any], "facts": dict[str, Any], "written": dict[str, str]}
            try:
                self._record = plain_json.read_mapping(path, infinite=True, **kinds)
            except plain_json.Damaged as error:
                # without it what was changed by hand cannot be told from what may be written over
                raise ValueError(f"{error.what}; move the folder {folder} away to plan anew") from None
            if other := [*self._record["written"].keys() - {*STAGES}]:  # which would be files of another place
                what = f"written names {ascii(other[0])[:60]}, which is no stage"
                raise ValueError(f"{path} is damaged: {what}; move the folder {folder} away to plan anew")

    @property
    def request(self) -> dict[str, Any] | None:
        """What the plan was made for; null where there is none."""
        whole = all(self.path(stage).is_file() for stage in self._record.get("written", {}))
        return self._record.get("request") if whole else None

    @property
    def facts(self) -> dict[str, Any]:
        """What is to be known of the plan beside its settings."""
        return self._record.get("facts", {})

    @property
    def stages(self) -> list[str]:
        """Of which there are files, in order."""
        return [stage for stage in STAGES if stage in self._record.get("written", {})]

    def path(self, stage: str) -> Path:
        return self.folder / f"{stage}.yaml"

    def edited(self) -> list[str]:
        """Stages whose files are no longer as they were written."""
        return [stage for stage in self.stages if self._is_edited(stage)]

    def settings(self, stage: str) -> dict[str, Any]:
        """What a file says. Raises ValueError when it is no YAML."""
        return plain_yaml.read_mapping(self.path(stage))

    def digest(self, stage: str) -> str:
        """Of what a file says, whatever its comments and order."""
        text = json.dumps(self.settings(stage), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write(self, settings: dict[str, dict[str, Any]], request: dict[str, Any], facts: dict[str, Any]) -> None:
        """The files of all stages that nobody has changed, and what they were made for. The first line of each says which
        command takes it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        written = self._record.get("written", {})
        for stage in [stage for stage in written if stage not in settings and not self._is_edited(stage)]:
            self.path(stage).unlink(missing_ok=True)
        kept = {stage: written[stage] for stage in settings if stage in written and self._is_edited(stage)}
        for stage, values in settings.items():
            if stage not in kept:
                text = f"# Made by dalle-train for {COMMANDS[stage]}. Change it as you like: it is not written over then.\n"
                text += plain_yaml.dump(values)
                replace_text(self.path(stage), text)
                kept[stage] = _hash(text.encode())
        self._record = {"request": request, "facts": facts, "written": {s: kept[s] for s in STAGES if s in kept}}
        replace_text(self.folder / _RECORD, json.dumps(self._record, indent=1))

    def note(self, **facts: Any) -> None:
        """Add to the facts."""
        self._record = self._record | {"facts": self.facts | facts}
        replace_text(self.folder / _RECORD, json.dumps(self._record, indent=1))

    def _is_edited(self, stage: str) -> bool:
        path = self.path(stage)
        return path.is_file() and _hash(path.read_bytes()) != self._record["written"].get(stage)


def merged(settings: dict[str, Any], changes: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested settings with some of them changed.

    Args:
        settings: mappings of names to values, or to mappings
        changes: likewise; words of the command line are read as YAML reads them
        where: what they are settings of, such as "prior.", for what is said

    Raises:
        ValueError: a whole section would be a single value
    """
    result = dict(settings)
    for name, value in changes.items():
        before = result.get(name)
        if isinstance(value, dict):
            result[name] = merged(before if isinstance(before, dict) else {}, value, f"{where}{name}.")
        elif isinstance(before, dict):
            raise ValueError(f"{where}{name} {value}: holds settings of its own, {', '.join(before)}; set one of these")
        else:
            result[name] = _value(value, f"{where}{name}")
    return result


def _value(value: Any, where: str) -> Any:
    """What a word of the command line means: 4000 a number, null nothing."""
    if not isinstance(value, str):
        return value
    return plain_yaml.load(value, where)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
