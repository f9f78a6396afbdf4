"""`dalle-train-tokenizer`: learn a BPE vocabulary from captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dalle.cli import arguments
from dalle.config import TrainTokenizer


def main() -> None:
    """Console script."""
    arguments.run(train_tokenizer, "dalle-train-tokenizer")


def train_tokenizer(argv: list[str] | None = None) -> None:
    """Parse, check, learn, write."""
    config = arguments.parse(TrainTokenizer, "dalle-train-tokenizer", argv)
    output = Path(config.output)
    if output.is_dir():
        raise ValueError(f"output {output} is a folder; name a file, such as {output / 'tokenizer.json'}")
    arguments.check_output(output.parent)

    from dalle.text import Tokenizer

    tokenizer = Tokenizer.train(_captions(config.data), config.vocabulary, config.min_count)
    tokenizer.save(output)
    print(f"{tokenizer.vocabulary:,} tokens: {output}")


def _captions(data: str) -> Iterator[str]:
    from dalle.data.pairs import read_all_captions

    texts = [Path(name) for name in data.split() if name.endswith(".txt")]
    shards = " ".join(name for name in data.split() if not name.endswith(".txt"))
    for path in texts:
        if not path.is_file():
            raise ValueError(f"no such file: {path}")
        with path.open(encoding="utf-8") as lines:
            yield from (line.strip() for line in lines if line.strip())
    if shards:
        yield from read_all_captions(shards)
