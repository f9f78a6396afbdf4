"""What a command says: it is there to be read, and what nobody can read stops no work.

Python ends a program whose words find no room, as where its log is on a full disk, and says nothing where they are lost at its
very end. A stream that is closed as the program begins is worse: the next file that is opened takes its number, and what
libraries then say to people is written into it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""What a terminal would obey, but for tabs and ends of lines, and what Unicode cannot encode."""


class _Stream:
    """A stream that goes on after an error, which it remembers. All else is that of the one it stands for.

    Args:
        stream: that one
        ends_with_its_reader: a reader who has gone away is an error that is raised
        is_text: it has no bar that moves: what a terminal would obey is somebody else's, such as a name of a file, and is written
            out, as JSON would have it
    """

    def __init__(self, stream: Any, ends_with_its_reader: bool, is_text: bool) -> None:
        self._stream, self._ends_with_its_reader, self._is_text = stream, ends_with_its_reader, is_text
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self._stream.write, _OBEYED.sub(_written_out, text) if self._is_text else text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, do: Any, *arguments: Any) -> None:
        if self.error is not None:
            return
        try:
            do(*arguments)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and self._ends_with_its_reader:
                raise
            self.error = error
            # what waits in the buffer would be tried again, and fail again, as the program ends
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _written_out(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


@contextmanager
def kept_open() -> Iterator[None]:
    """Within the block what cannot be said ends nothing, except that a reader of the standard output who has gone away ends the
    command, as is the custom.

    Raises:
        OSError: after the block, where what went to the standard output was lost
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        _Stream(before[0], ends_with_its_reader=True, is_text=True),
        _Stream(before[1], ends_with_its_reader=False, is_text=False),
    )
    said = sys.stdout
    try:
        yield
        said.flush()
        if said.error is not None:
            raise OSError(
                said.error.errno,
                f"{said.error.strerror}: its work is done, its last words are lost; send it elsewhere",
                "standard output",
            )
    finally:
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Give standard streams that are closed to nobody, before a file of ours takes their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
        setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115 (for good)
