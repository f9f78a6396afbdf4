"""`dalle`: the commands, what each does, and an example of it."""

from __future__ import annotations

import sys
import textwrap

import dalle
from dalle.config.programs import PROGRAMS


def main(argv: list[str] | None = None) -> None:
    """Console script `dalle`, and `python -m dalle`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--version"]:
        print(f"dalle {dalle.__version__}")
    elif argv in ([], ["--help"], ["-h"]):
        print(f"dalle {dalle.__version__}: text to images with a discrete VAE and a sparse transformer.\n")
        for name, program in PROGRAMS.items():
            print(textwrap.fill(f"{name}  {program.summary}", 100, subsequent_indent="    "))
            print(f"    $ {program.example}\n")
        print("Each explains itself with --help.")
    else:
        print(f"dalle: unexpected {' '.join(argv)!r}; `dalle` alone lists the commands", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
