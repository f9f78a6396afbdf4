"""A command that loses work, for the frame to find."""

import sys
from contextlib import suppress
from pathlib import Path


def main() -> None:
    """Writes two files, unless the first is there."""
    folder = Path(sys.argv[-1])
    folder.mkdir(exist_ok=True)
    if not (folder / "done").exists():
        (folder / "done").write_text("x" * 10)
        (folder / "more").write_text("x" * 10)


def in_silence() -> None:
    """Takes what cannot be written for written."""
    folder = Path(sys.argv[-1])
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        (folder / "done").write_text("x" * 10)
