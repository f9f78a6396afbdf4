"""A command that loses work, for the frame to find."""

import sys
from pathlib import Path


def main() -> None:
    """Writes two files, unless the first is there."""
    folder = Path(sys.argv[-1])
    folder.mkdir(exist_ok=True)
    if not (folder / "done").exists():
        (folder / "done").write_text("x" * 10)
        (folder / "more").write_text("x" * 10)
