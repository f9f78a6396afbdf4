"""`dalle-train-tokenizer`: learn a BPE vocabulary from captions."""

from __future__ import annotations

from pathlib import Path

from dalle.cli import arguments
from dalle.config import TrainTokenizer
from dalle.outputs.ownership import check_file, claimed_file
from dalle.outputs.whole import remove_partial, when_there_is_room


def main() -> None:
    """Console script."""
    arguments.run(train_tokenizer, "dalle-train-tokenizer")


def train_tokenizer(argv: list[str] | None = None) -> None:
    """Parse, check, learn, write."""
    config = arguments.parse(TrainTokenizer, "dalle-train-tokenizer", argv)
    if Path(config.output).is_dir():
        raise ValueError(f"output {config.output} is a folder; name a file, such as {config.output}/tokenizer.json")
    with claimed_file(config.output, "dalle-train-tokenizer", config.overwrite) as output:
        from dalle.data.captions import read_all_captions
        from dalle.data.counts import Counts
        from dalle.text import Tokenizer
        from dalle.text.tokenizer import counts_file

        check_file(counts_file(output), config.overwrite)
        remove_partial(output.parent, counts_file(output).name)

        counts = Counts()
        captions = read_all_captions(config.data, config.pipes, counts)
        tokenizer = Tokenizer.train(captions, config.vocabulary, config.min_count)
        when_there_is_room("dalle-train-tokenizer", lambda: tokenizer.save(output))
    print(f"{tokenizer.vocabulary:,} tokens: {output}" + (f"; {counts.line()}" if counts.read else ""))
