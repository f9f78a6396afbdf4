"""The commands: what each is asked for, and an example that its help opens with."""

from __future__ import annotations

from dataclasses import dataclass

from dalle.config.commands.caption import Caption
from dalle.config.commands.completion import Completion
from dalle.config.commands.data import Filter, Tokenize
from dalle.config.commands.doctor import Doctor
from dalle.config.commands.evaluation.dedup import Dedup
from dalle.config.commands.evaluation.evaluate import Evaluate
from dalle.config.commands.evaluation.study import Study
from dalle.config.commands.own import TrainFolder
from dalle.config.commands.planning.plan import Plan
from dalle.config.commands.publish import Export, Publish
from dalle.config.commands.sample import Sample
from dalle.config.commands.serve import Serve
from dalle.config.commands.stackgan import TrainStackGAN
from dalle.config.commands.stages import (
    Demo,
    Describe,
    DrawShapes,
    TrainCLIP,
    TrainDVAE,
    TrainPrior,
    TrainTokenizer,
)
from dalle.config.commands.text_encoder import TrainTextEncoder


@dataclass(frozen=True)
class Program:
    """A console script.

    Args:
        config: the dataclass of its settings, whose docstring says what it does
        example: a command line that works, but for its paths
        positional: name of the setting that may be given without its `--name`, or names of several, in their order
        several: name of a setting that takes all the words behind its `--name`
    """

    config: type
    example: str
    positional: str | tuple[str, ...] | None = None
    several: str | None = None

    @property
    def summary(self) -> str:
        """What it does, in the first paragraph of its settings' docstring."""
        return " ".join((self.config.__doc__ or "").split("\n\n")[0].split())


PROGRAMS = {
    "dalle-demo": Program(Demo, "dalle-demo --output demo"),
    "dalle-doctor": Program(Doctor, "dalle-doctor --output runs"),
    "dalle-train": Program(TrainFolder, "dalle-train pictures --output runs/mine", "source"),
    "dalle-sample": Program(Sample, 'dalle-sample "a 3d emoji of a chicken"', "caption"),
    "dalle-serve": Program(Serve, "dalle-serve --model icons runs/mine", several="model"),
    "dalle-caption": Program(Caption, "dalle-caption cat.png --model demo --captions captions.txt", "image"),
    "dalle-evaluate": Program(
        Evaluate,
        "dalle-evaluate --model model --reference valid.tar --train 'shards/{000..006}.tar' --output evaluation",
    ),
    "dalle-filter": Program(Filter, "dalle-filter pictures prepared", ("source", "output")),
    "dalle-train-tokenizer": Program(
        TrainTokenizer, "dalle-train-tokenizer --data 'shards/{000..006}.tar' --output model/tokenizer.json"
    ),
    "dalle-train-dvae": Program(
        TrainDVAE, "dalle-train-dvae --config emoji/dvae --data 'shards/{000..006}.tar' --output model/dvae"
    ),
    "dalle-tokenize": Program(
        Tokenize, "dalle-tokenize --data 'shards/{000..006}.tar' --dvae model/dvae --output model/tokens"
    ),
    "dalle-train-prior": Program(
        TrainPrior,
        "dalle-train-prior --config emoji/prior --data model/tokens --dvae model/dvae --tokenizer model/tokenizer.json "
        "--output model/prior",
    ),
    "dalle-train-clip": Program(
        TrainCLIP,
        "dalle-train-clip --config emoji/clip --data 'shards/{000..006}.tar' --dvae model/dvae "
        "--tokenizer model/tokenizer.json --output model/clip",
    ),
    "dalle-train-stackgan": Program(
        TrainStackGAN,
        "dalle-train-stackgan --config stackgan/f --data 'shards/{000..006}.tar' --text_encoder bert:all-minilm-l6-v2 --output gan",
    ),
    "dalle-train-text-encoder": Program(
        TrainTextEncoder,
        "dalle-train-text-encoder --config text-encoder/small --data 'shards/{000..006}.tar' --class_key name "
        "--output model/text-encoder",
    ),
    "dalle-dedup": Program(
        Dedup, "dalle-dedup --data 'shards/{000..006}.tar' --evaluation shards/valid.tar --output overlap"
    ),
    "dalle-study": Program(Study, 'dalle-study --images "ours theirs" --output study'),
    "dalle-describe": Program(Describe, "dalle-describe paper/12b", "config_file"),
    "dalle-plan": Program(Plan, "dalle-plan --config cluster/12b-hybrid --machines 128 --gpus 8 --memory 24"),
    "dalle-export": Program(Export, "dalle-export model --output smaller --dtype fp16", "run"),
    "dalle-publish": Program(Publish, "dalle-publish model --repo owner/name --licence mit --dry_run", "folder"),
    "dalle-completion": Program(Completion, "dalle-completion bash", "shell"),
    "dalle-draw-shapes": Program(DrawShapes, "dalle-draw-shapes --output shapes --num_train 20000"),
}
