"""`dalle`: the commands, what each does, and an example of it."""

from __future__ import annotations

import sys
import textwrap

import dalle
from dalle.cli import arguments
from dalle.config.programs import PROGRAMS


def main() -> None:
    """Console script `dalle`, and `python -m dalle`."""
    arguments.run(lambda: listing(sys.argv[1:]), "dalle")


def listing(argv: list[str]) -> None:
    """Print what is asked for. Raises ValueError for anything but nothing, --help and --version."""
    if argv == ["--version"]:
        print(f"dalle {dalle.__version__}")
    elif argv in ([], ["--help"], ["-h"]):
        print(f"dalle {dalle.__version__}: text to images with a discrete VAE and a sparse transformer.\n")
        for name, program in PROGRAMS.items():
            print(textwrap.fill(f"{name}  {program.summary}", 100, subsequent_indent="    "))
            print(f"    $ {program.example}\n")
        print("Each explains itself with --help.")
    else:
        raise ValueError(f"unexpected {' '.join(argv)!r}; call `dalle` alone, which lists the commands")
    sys.stdout.flush()  # where nobody listens, here and not at the end


if __name__ == "__main__":
    main()
