"""`dalle-sample`: candidates for a caption, ranked, as a grid and a gallery."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from dalle.cli import arguments
from dalle.cli.allocator import keep_freed_memory
from dalle.config import Sample
from dalle.config.checks import printable, warn
from dalle.outputs.ownership import claimed, claimed_file
from dalle.outputs.whole import when_there_is_room

if TYPE_CHECKING:
    import numpy as np

    from dalle.sampling.candidates import Part, Source, Work
    from dalle.sampling.drawing import Drawing
    from dalle.sampling.gallery import Gallery
    from dalle.sampling.loading import Found
    from dalle.sampling.output import Output
    from dalle.sampling.prompt import Prompt
    from dalle.sampling.ranking.shortlist import Shortlist, Viewer

_COMMAND = "dalle-sample"


def main() -> None:
    """Console script."""
    arguments.plain_warnings(_COMMAND)
    arguments.run(sample, _COMMAND)


def sample(argv: list[str] | None = None) -> None:
    """Parse, check, draw, write."""
    config = arguments.parse(Sample, _COMMAND, argv, positional="caption")
    if config.list:
        _list()
        return
    if config.again is not None:
        path = Path(config.output) / f"{Path(config.again).stem}-again.png"
        with claimed_file(path, _COMMAND, config.overwrite or _is_drawing(path)):
            _again(config, path)
        return
    with claimed(config.output, _COMMAND, overwrite=config.overwrite) as folder:
        _sample(config, folder)


def _list() -> None:
    """Print what the models that come with the package draw, and how to draw with them."""
    from dalle.ready.facts import ready_facts

    facts = ready_facts()
    if not facts:
        print(
            "no ready models in this installation; dalle-demo trains one in minutes, and --model takes any folder, or owner/name "
            "of the Hugging Face Hub"
        )
    for each in facts:
        print("\n".join(map(printable, each.lines())) + "\n")


def _sample(config: Sample, folder: Path) -> None:
    import torch

    from dalle.outputs.bar import progress_bar
    from dalle.sampling.candidates import Work
    from dalle.sampling.output import Output
    from dalle.sampling.ranking.shortlist import Shortlist
    from dalle.sampling.workers import WorkerDied
    from dalle.text import CaptionWarning

    models = _find_models(config)
    sampling = models.settle(config.sampling)
    warnings.filterwarnings("ignore", message="sampling.guidance")  # which has just been said
    origin = _origin(config)
    captions = _captions(config, origin)
    # what is wrong with one, cut from it or unknown in it is told before models are loaded, and once for all
    models.check(captions)
    warnings.filterwarnings("ignore", category=CaptionWarning)
    prompt = _prompt(config, models, origin)
    work = Work(captions, config.n, config.keep, config.seed, sampling, prompt, config.shortlist)
    title = captions[0] if config.captions is None else f"{len(captions)} captions of {Path(config.captions).name}"
    many = config.captions is not None
    output = Output(folder, work, title, models.hashes, many, config.overwrite, _gallery(config))
    if output.replaced is not None:
        print(
            f"the gallery in {folder} will show these in place of its drawings for {output.replaced!r}, whose files stay in "
            f"{folder / 'images'}",
            file=sys.stderr,
        )
    if skipped := len(captions) - len(output.todo):
        print(f"{skipped} of {len(captions)} captions are there already", file=sys.stderr)
    work = replace(work, captions=output.todo)
    total = config.n * len(output.todo)
    processes = config.processes or max(1, torch.cuda.device_count())
    stopped: BaseException | None = None
    with progress_bar(total=total, unit=" images") as bar:
        steps, worth_telling = models.steps

        def tell(step: int) -> None:
            if (step + 1) % worth_telling == 0:  # a chunk may take minutes
                bar.set_postfix_str(f"step {step + 1}/{steps} of a chunk")

        parts, viewer = _parts(config, work, models, min(processes, total), tell)
        shortlist = None if config.shortlist is None else Shortlist(work, lambda drawings: viewer().view(drawings))
        try:
            for part in parts:
                output.add(part if shortlist is None else shortlist.take(part))
                bar.update(part.drawn)
        except (KeyboardInterrupt, WorkerDied, ValueError) as error:
            parts.close()  # ends the workers
            stopped = error
            if shortlist is not None:
                _add_rest(shortlist, output)
    if stopped is None:
        print(f"the best {output.count()}: {when_there_is_room(_COMMAND, output.finish)}")
        return
    why = str(stopped) or "interrupted"
    if output.drawn:
        print(f"dalle-sample: {why}; {output.drawn} of {total} candidates were drawn", file=sys.stderr)
    if output.drawn and not output.empty:
        best = "so far" if config.captions is not None else output.count()
        print(f"the best {best}: {when_there_is_room(_COMMAND, output.finish)}")
    elif not isinstance(stopped, ValueError):
        done = "decoded" if output.drawn else "drawn"
        print(f"dalle-sample: {why}, before anything was {done}", file=sys.stderr)
    if isinstance(stopped, WorkerDied):
        sys.exit(1)
    raise stopped


def _add_rest(shortlist: Shortlist, output: Output) -> None:
    """Of what was drawn before the end, the shortlist; nothing when that is interrupted too, or is what went wrong."""
    try:
        for part in shortlist.rest():
            output.add(part)
    except (KeyboardInterrupt, ValueError):
        pass


def _find_models(config: Sample) -> Found:
    """The models that are asked for. Raises ValueError where they cannot rank and something was asked for that needs it."""
    from dalle.sampling.loading import find

    ranked, shortlist = config.rerank, config.shortlist is not None
    if ranked is None and (shortlist or config.clip is not None):
        ranked = True
    models = find(
        *(config.model, config.dvae, config.prior, config.clip, ranked),
        shortlist=shortlist,
        codes_clip=config.codes_clip,
        text_encoder=config.text_encoder,
    )
    if models.clip is None:
        config.check_unranked()
        if ranked is None and config.keep < config.n:
            told = f"of {config.n} candidates the first {config.keep} that differ are kept"
            print(f"{_COMMAND}: {config.model} has no reranker: {told}, in the order of their seeds", file=sys.stderr)
    return models


def _captions(config: Sample, origin: Drawing | None) -> tuple[str, ...]:
    from dalle.sampling.captioning import read_captions_file

    if config.captions is not None:
        lines = (" ".join(line.split()) for line in read_captions_file(config.captions))
        return tuple(dict.fromkeys(lines))  # one that stands there twice is drawn once
    if config.caption:
        return (config.caption,)
    assert origin is not None
    return (origin.caption,)


def _gallery(config: Sample) -> Callable[[Path, str, dict[str, str]], Gallery]:
    """What shows the drawings, in the layout that is asked for."""
    from dalle.evaluation.layout_gallery import LayoutGallery
    from dalle.sampling.captioning import read_prompts_file
    from dalle.sampling.gallery import Gallery

    if config.layout == "gallery":
        return Gallery
    assert config.captions is not None
    prompts = read_prompts_file(config.captions)
    return partial(LayoutGallery, prompts=prompts, candidates=config.n, keep=config.keep, overwrite=config.overwrite)


def _origin(config: Sample) -> Drawing | None:
    from dalle.sampling.drawing import read_drawing

    if config.variations_of is None:
        return None
    try:
        return read_drawing(config.variations_of)
    except ValueError as error:
        raise ValueError(f"variations_of {error}, or give an image of another kind as prompt_image") from None


def _prompt(config: Sample, models: Found, origin: Drawing | None) -> Prompt | None:
    """What is given of an image. Its codes come from a CPU, so that they are the same wherever the rest is drawn."""
    from dalle.models.folder import load_dvae
    from dalle.sampling.adversarial.gan_set import GANModels
    from dalle.sampling.drawing import codes_of
    from dalle.sampling.prompt import encode_with, known_codes, make_prompt, read_image

    if origin is None and config.prompt_image is None:
        return None
    if isinstance(models, GANModels):
        raise ValueError(f"an image prompt is made of codes, and {config.model} is a GAN, which has none: leave it out")
    grid, size_px = models.prior_config.grid, models.dvae_config.image_size_px
    known = None
    if origin is None:
        assert config.prompt_image is not None
        image = read_image(config.prompt_image, "prompt_image")
    else:
        assert config.variations_of is not None
        image = origin.picture
        known = known_codes(config.variations_of, origin, codes_of(models.hashes), models.prior_config, size_px)

    def encode(image_YX3: np.ndarray) -> np.ndarray:
        return encode_with(load_dvae(models.dvae), image_YX3)

    return make_prompt(image, config.rows, config.region_px(), grid, size_px, encode, known)


def _parts(
    config: Sample, work: Work, models: Found, processes: int, tell: Callable[[int], None]
) -> tuple[Generator[Part, None, None], Callable[[], Viewer]]:
    """What is drawn, in this process, which tells each slot that it has come to, or in several; and what decodes a shortlist of
    it here. Models are loaded when they are first needed."""
    from dalle.sampling.candidates import draw
    from dalle.sampling.loading import load_models, load_viewer
    from dalle.sampling.model_set import Models
    from dalle.sampling.pipeline import Pipeline
    from dalle.sampling.workers import draw_with_workers

    load_these = partial(load_models, models, precision=config.sampling.precision)
    if processes > 1:
        load_there = partial(_load_in_worker, load_these)

        @cache
        def viewer_here() -> Viewer:
            assert isinstance(models, Models), "a shortlist of a GAN was refused"
            return load_viewer(models)

        return draw_with_workers(load_there, work, processes), viewer_here
    pipeline = cache(load_these)

    def parts() -> Generator[Part, None, None]:
        if work.captions:
            yield from draw(pipeline(), work, progress=tell)

    def viewer() -> Viewer:
        drawing = pipeline()
        assert isinstance(drawing, Pipeline), "a shortlist of a GAN was refused"
        return drawing.viewer()

    return parts(), viewer


def _load_in_worker(load: Callable[..., Source], device: str) -> Source:
    keep_freed_memory()  # of the worker; in this process it is so already
    return load(device=device)


def _is_drawing(path: Path) -> bool:
    """Whether a file is there that this program drew."""
    if not path.exists():
        return False
    from dalle.sampling.drawing import read_drawing

    try:
        read_drawing(path)
    except ValueError:
        return False
    return True


def _again(config: Sample, path: Path) -> None:
    """Draw a file's image once more, write it, and say whether it is the same; exit code 1 when it is not."""
    from dalle.sampling.again import choose_device, count_differing_pixels, differences, draw_again, read_record
    from dalle.sampling.drawing import save_drawing
    from dalle.sampling.loading import find, load_models

    models = find(config.model, config.dvae, config.prior, rerank=False, text_encoder=config.text_encoder)
    assert config.again is not None
    drawing = read_record(config.again, models.hashes)
    device = choose_device(drawing.settings)
    if found := differences(drawing.settings, device, models.kernels(device, drawing.settings["compile"])):
        warn(f"another machine may round otherwise, and draw other bits: {'; '.join(found)}")
    precision = drawing.settings["precision"]
    pipeline = load_models(models, device, precision)
    again = draw_again(pipeline, drawing)
    save_drawing(again, path)
    if drawing.picture.size != again.picture.size:
        now, drawn = (f"{each.picture.width}×{each.picture.height}" for each in (drawing, again))
        print(f"{path}: {config.again} has {now} px, and was drawn with {drawn}")
        sys.exit(1)
    differing = count_differing_pixels(drawing, again)
    if differing:
        print(
            f"{path}: {differing} of {again.picture.width * again.picture.height} pixels are not those of {config.again}"
        )
        sys.exit(1)
    print(f"{path}: all pixels are those of {config.again}")
