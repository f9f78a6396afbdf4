"""Every stage for a moment, by the commands that a user would run: `python -m dalle.cli.doctor.self_test FOLDER`.

A process of its own, which tells {"begins": STAGE} and then how it went; see `dalle.machine.asking`.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dalle.config.checks import Cause
from dalle.machine.asking import Told, telling
from dalle.machine.finding import Finding

_ALL = shlex.split("""
--run.precision fp32 --run.loader_workers 0 --run.log_every_steps 1 --run.checkpoint_every_minutes 0 --run.ema_decay 0.8
--run.batch_size 8 --run.steps 20 --optimizer.step_size.start 3e-3 --optimizer.step_size.end 3e-3
""")
_DVAE = shlex.split("""
--model.image_size_px 32 --model.codebook_size 16 --model.encoder_width 8 --model.width_multipliers [1,2,2,2]
--model.blocks_per_group 1 --model.decoder_input_width 8 --model.init he --model.logit_norm_gain 3 --model.min_ln_b -1
--model.post_gain 0.5 --images.augmentation none
""")
_PRIOR = shlex.split("""
--model.text_slots 24 --model.grid 4 --model.text_vocabulary 300 --model.codebook_size 16 --model.width 32
--model.depth 4 --model.heads 2 --model.conv_kernel 3 --optimizer.clip_norm 4
""")
_CLIP = shlex.split("""
--model.image_size_px 32 --model.patch_px 8 --model.vision_width 64 --model.vision_layers 1 --model.text_width 64
--model.text_layers 1 --model.text_slots 24 --model.embedding_width 16 --images.augmentation none
--optimizer.step_size.start 1e-3 --optimizer.step_size.end 1e-3 --run.batch_size 16 --run.steps 16
""")
_TEXT_ENCODER = shlex.split("""
--class_key scene --model.channels 32 --model.first_widths [32,32] --model.embedding_width 32 --optimizer.weight_decay 0
--optimizer.step_size.start 1e-2 --optimizer.step_size.end 1e-2 --run.steps 30
""")
_GAN = shlex.split("""
--model.image_size_px 16 --model.text_width 32 --model.channels 4 --model.discriminator_channels 4
--model.noise_width 5 --model.condition_width 8 --images.augmentation none --optimizer.weight_decay 0
--discriminator_optimizer.step_size.start 4e-3 --discriminator_optimizer.step_size.end 4e-3
--discriminator_optimizer.weight_decay 0 --optimizer.step_size.start 4e-3 --optimizer.step_size.end 4e-3
""")
_CAPTION = "a red circle"
_READY = "shapes"
_REPORT = "run the stage's command by itself for all that it says, and report it"


Stages = dict[str, tuple[tuple[str, ...], Callable[[], str]]]
"""Of each stage, by its name: those that it needs, and what runs it and tells what it found."""


def main(folder: Path) -> None:
    """Try all stages, and tell of each."""
    with telling() as tell:
        from dalle.cluster.topology import joined

        with joined():
            for told in tried(_stages(folder)):
                tell(told)


def tried(stages: Stages) -> Iterator[Told]:
    """What is told of each stage: by name, those that it needs, and what runs it and returns what it found."""
    failed: set[str] = set()
    for name, (needed, run) in stages.items():
        lacking = [each for each in needed if each in failed]
        if lacking:
            failed.add(name)
            yield _told(Finding(name, "warn", f"not tried: it needs what {lacking[0]} makes", f"mend {lacking[0]}"))
            continue
        yield {"begins": name}
        began_s = time.monotonic()
        try:
            found = run()
        # whatever comes up is what is to be told
        except (Exception, SystemExit) as error:
            failed.add(name)
            said = " ".join(str(error).split())[:300]
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            yield _told(Finding(name, "fail", f"{kind}{said}, after {time.monotonic() - began_s:.1f} s", _REPORT))
        else:
            yield _told(Finding(name, "ok", f"{found}, in {time.monotonic() - began_s:.1f} s"))


def _told(finding: Finding) -> Told:
    return {"stage": finding.name, "verdict": finding.verdict, "fact": finding.fact, "advice": finding.advice}


def _stages(folder: Path) -> Stages:
    data, tokenizer = f"{folder}/data/train-*.tar", str(folder / "tokenizer.json")
    pairs, codes = [*_ALL, "--data", data], ["--dvae", str(folder / "dvae"), "--tokenizer", tokenizer]

    def train(kind: str, options: list[str]) -> str:
        from dalle.cli.train import train
        from dalle.config import TrainCLIP, TrainDVAE, TrainPrior, TrainStackGAN, TrainTextEncoder

        classes = {
            **{"dvae": TrainDVAE, "prior": TrainPrior, "clip": TrainCLIP},
            **{"text-encoder": TrainTextEncoder, "stackgan": TrainStackGAN},
        }
        train(kind, classes[kind], [*options, "--output", str(folder / kind)], alone=False)
        return losses(folder / kind, falls=kind != "stackgan")

    def gan() -> str:
        said = train("stackgan", [*pairs, *_GAN, "--text_encoder", f"chars:{folder}/text-encoder"])
        return f"{said}; {_drawn(folder / 'of-gan', ['--model', str(folder / 'stackgan'), '--n', '2'])}"

    return {
        "data": ((), lambda: _data(folder)),
        "tokenizer": (("data",), lambda: _tokenizer(data, tokenizer)),
        "dvae": (("data",), lambda: train("dvae", [*pairs, *_DVAE])),
        "tokenize": (("dvae",), lambda: _tokenize(data, folder)),
        "prior": (
            ("tokenizer", "tokenize"),
            lambda: train("prior", [*_ALL, *_PRIOR, "--data", str(folder / "tokens"), *codes]),
        ),
        "clip": (("tokenizer", "dvae"), lambda: train("clip", [*pairs, *_CLIP, *codes])),
        "text-encoder": (
            ("clip",),
            lambda: train("text-encoder", [*pairs, *_TEXT_ENCODER, "--features", f"clip:{folder}/clip"]),
        ),
        "stackgan": (("text-encoder",), gan),
        "sample": ((), lambda: _drawn(folder / "of-ready", ["--model", _READY, "--n", "4"])),
    }


def losses(run: Path, falls: bool) -> str:
    """What became of a training's loss. falls: whether its last updates must have a smaller one than its first. Raises Cause."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found = [line["loss"] for line in lines if "loss" in line]
    if None in found or not found:
        raise Cause(f"the loss is not finite in {found.count(None)} of {len(found)} updates")
    some = min(5, len(found) // 2)
    first, last = (sum(part) / some for part in (found[:some], found[-some:]))
    if falls and not last < first:
        raise Cause(f"the loss does not fall: {first:.3g} at first, {last:.3g} at last, in {len(found)} updates")
    if falls:
        return f"the loss falls from {first:.3g} to {last:.3g} in {len(found)} updates"
    return f"{len(found)} updates have a finite loss"


def _data(folder: Path) -> str:
    from dalle.cli.data.draw_shapes import draw_shapes

    numbers = ["--num_train", "64", "--num_valid", "8", "--size_px", "32", "--workers", "1"]
    draw_shapes(["--output", str(folder / "data"), *numbers])
    return "64 captioned drawings"


def _tokenizer(data: str, file: str) -> str:
    from dalle.cli.data.train_tokenizer import train_tokenizer
    from dalle.text import Tokenizer

    train_tokenizer(["--data", data, "--output", file, "--vocabulary", "300"])
    tokenizer = Tokenizer.load(file)
    back = tokenizer.decode(tokenizer.encode(_CAPTION))
    if back != _CAPTION:
        raise Cause(f"{_CAPTION!r} comes back as {back!r}")
    return f"{tokenizer.vocabulary} tokens, and a caption comes back from them"


def _tokenize(data: str, folder: Path) -> str:
    from dalle.cli.data.tokenize import tokenize
    from dalle.data.tokens import TokenShards

    tokenize(["--data", data, "--dvae", str(folder / "dvae"), "--output", str(folder / "tokens")])
    shards = TokenShards(str(folder / "tokens"))
    if len(shards) != 64:
        raise Cause(f"of 64 drawings {len(shards)} have codes")
    return f"{len(shards)} drawings as {shards.meta.grid**2} codes each"


def _drawn(output: Path, options: list[str]) -> str:
    """Draw a caption's candidates, and look at the pictures. Raises Cause."""
    import numpy as np
    from PIL import Image

    from dalle.cli.sample import sample

    sample([_CAPTION, *options, "--output", str(output), "--sampling.chunk", "4"])
    pictures = sorted((output / "images").rglob("*.png"))
    if not pictures:
        raise Cause("no picture was written")
    for path in pictures:
        with Image.open(path) as picture:
            # numbers that are none become one colour
            if np.asarray(picture.convert("L"), dtype=float).std() < 1:
                raise Cause("a drawn picture is of one colour, as of numbers that are not finite")
    return f"{len(pictures)} picture{'s' * (len(pictures) > 1)} drawn"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
