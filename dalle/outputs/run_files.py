"""What a training leaves in its folder, by name: in one place, for the command that may not write over it and for the demo that
may remove it."""

from __future__ import annotations

from fnmatch import fnmatch

WEIGHTS = "model.safetensors"
"""Of a finished model."""
_WRITTEN = (
    "config.yaml",
    f"{WEIGHTS}*",  # with what is left of one that was cut off
    "tokenizer.json",
    "tokenizer.words.json",
    "metrics.jsonl",
    "run.json",
    "report.html",
    "samples.json",
    "pictures/*.png",
    "tensorboard/events.out.tfevents.*",
    "checkpoints/step-*",
    "embeddings.safetensors*",
    "stage_one/config.yaml",
    f"stage_one/{WEIGHTS}",
    "best-of/tokens-*.safetensors",
    "best-of/meta.json",
    "best-of/best-of.json",
    "best-of/kept-and-dropped.png",
)
_SET_ASIDE = "previous-*/*"
"""Of an earlier run, under a number that is free."""

WRITES = tuple(dict.fromkeys(pattern.partition("/")[0] for pattern in _WRITTEN))
"""Names, some of them globs, of what a training writes into its folder."""


def is_of_a_run(path: str) -> bool:
    """Whether a training may have made a file, by its path within the folder, with `/`."""
    return any(fnmatch(path, pattern) for pattern in (*_WRITTEN, _SET_ASIDE))
