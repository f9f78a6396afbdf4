"""What `dalle-completion` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shell = Literal["bash", "zsh", "fish"]


@dataclass(frozen=True)
class Completion:
    """Print a script with which the shell completes the keys and values of all these commands.

    Args:
        shell: shell that the script is for
    """

    shell: Shell
