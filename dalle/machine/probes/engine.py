"""DeepSpeed, which drives every training: does it load?"""

from __future__ import annotations

import importlib.metadata

from dalle.machine.asking import telling


def main() -> None:
    """Tell its version, once it has been loaded."""
    with telling() as tell:
        import dalle.training.engine  # noqa: F401

        tell({"deepspeed": importlib.metadata.version("deepspeed")})


if __name__ == "__main__":
    main()
