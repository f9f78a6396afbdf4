"""Ranking N candidates of one caption whose codes are drawn: decoding all and ranking them by pixels, against a shortlist by codes.

Both sides do what `dalle-sample` does, by its own functions: `full` decodes N with a dVAE of the published size and scores the
pictures with a ViT-B/32; `ours` scores the N codes with a reader of codes, and does the same for the best S of them alone. Their
weights are random, which decides nothing of the time. `full` is timed on `--images_timed` of the N and multiplied: it works
in batches of one width. The limit is the dVAE's operations for S images at the measured rate of its heaviest convolution.

A case has besides: `seconds` of each side, and `with_drawing`, the same with the codes drawn by a prior as `bench.py sample` has
it by default, timed on one chunk and multiplied. With `--model DIR`, a folder of the demo's models with a `codes-clip/`, there
is `accuracy`: shares of the captions of held-out drawings whose picture shows what they say, to the drawn data's checker. The
full ranking and the shortlist are made of the same candidates.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import sides_sample
from benchmarks.sides import DEVICE, Side, best_rate, case, convolution, running, seconds

_READER = {"reader_patch": 4, "reader_width": 256, "reader_layers": 4}
_QUICK = {
    **{"n": 6, "shortlist": 2, "images_timed": 4, "repeats": 1, "image_size_px": 32, "chunk": 4, "quick_width": 8},
    **{"reader_patch": 2, "reader_width": 64, "reader_layers": 1, "prior_width": 64, "prior_depth": 2},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--n", type=int, default=512, help="candidates")
    parser.add_argument("--shortlist", type=int, default=64, help="that are decoded")
    parser.add_argument("--image_size_px", type=int, default=256)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"), help="of dVAE and prior")
    parser.add_argument("--chunk", type=int, default=512 if DEVICE == "cuda" else 64, help="drawn together")
    parser.add_argument("--images_timed", type=int, help="that `full` decodes and scores; by default all N")
    parser.add_argument("--repeats", type=int, default=3, help="calls of each side that are counted")
    for name, default in _READER.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--draw", action=switch, default=True, help="time drawing too")
    parser.add_argument("--model", help="folder of the demo, with codes-clip/, for the accuracy")
    parser.add_argument("--codes_clip", help="folder of the reader of codes, in place of the model's")
    parser.add_argument("--shards", help="held-out drawings; by default the model's data/valid-*.tar")
    parser.add_argument("--captions", type=int, default=256, help="that are drawn for the accuracy")
    parser.add_argument("--quick", action="store_true", help="see that it works: tiny models")
    parser.set_defaults(prior_width=512, prior_depth=8, quick_width=None)


def run(options: argparse.Namespace) -> list[dict]:
    """One case."""
    if options.quick:
        vars(options).update(_QUICK)
    options.images_timed = min(options.images_timed or options.n, options.n)
    result = _timed(options)
    if options.model:
        result["accuracy"] = accuracy(options)
    if not options.json:
        _print(result)
    return [result]


def _print(result: dict) -> None:
    for name, both in (("ranking alone", result["seconds"]), ("with drawing", result.get("with_drawing"))):
        if both:
            print(f"{name}: {both['full']:.3g} s in full, {both['ours']:.3g} s with a shortlist: {both['ratio']:.2f} ×")
    for name, value in result.get("accuracy", {}).items():
        print(f"  {name}: {value:.4g}")


# ---- time


def _timed(options: argparse.Namespace) -> dict:
    """Both sides and the prior, in turns."""
    from dalle.config import DVAEModel, PriorModel, Sampling
    from dalle.models.flops import dvae_flops

    width = {} if options.quick_width is None else {"encoder_width": options.quick_width, "decoder_input_width": 8}
    dvae = DVAEModel(image_size_px=options.image_size_px, **width)
    with tempfile.TemporaryDirectory() as folder:
        builds: dict[str, Callable] = {
            "full": partial(_full, dvae, options.images_timed, options),
            "ours": partial(_shortlist, dvae, options),
        }
        if options.draw:
            sizes = {"width": options.prior_width, "depth": options.prior_depth, "heads": options.prior_width // 64}
            prior = PriorModel(grid=dvae.grid, codebook_size=dvae.codebook_size, **sizes)
            sampling = Sampling(chunk=min(options.chunk, options.n), precision=options.precision)
            notes = Path(folder) / "drawn.jsonl"
            builds["draw"] = partial(sides_sample.ours, prior, min(options.chunk, options.n), sampling, notes)
        sides = {name: partial(Side, name, build, True) for name, build in builds.items()}
        with running(sides) as built:
            calls = {name: partial(side.call, "image" if name == "draw" else "rank") for name, side in built.items()}
            taken_s = seconds(calls, options.repeats)
            peaks = {name: side.peak_memory_bytes for name, side in built.items()}
    whole = {"full": options.n / options.images_timed, "ours": 1, "draw": options.n / min(options.chunk, options.n)}
    whole_s = {name: [whole[name] * s for s in values] for name, values in taken_s.items()}
    drawn_s = whole_s.pop("draw", None)
    rate = best_rate(*convolution(torch.bfloat16 if options.precision == "bf16" else torch.float32))
    flops = dvae_flops(dvae)["decode"]
    taken = ("n", "shortlist", "image_size_px", "precision", "chunk", "images_timed", "repeats", *_READER)
    settings = {name: getattr(options, name) for name in taken}
    result = case(
        f"rerank N={options.n}, S={options.shortlist}",
        "candidates/s",
        {name: [options.n / s for s in values] for name, values in whole_s.items()},
        options.n / (options.shortlist * flops / rate),
        {name: peaks[name] for name in whole_s},
        {**settings, "decode_flops_per_image": flops, "limit_flops_per_s": rate},
    )
    result["seconds"] = _compared({name: statistics.median(values) for name, values in whole_s.items()})
    if drawn_s is not None:
        drawing_s = statistics.median(drawn_s)
        both_s = {name: statistics.median(values) + drawing_s for name, values in whole_s.items()}
        result["with_drawing"] = {**_compared(both_s), "drawing": drawing_s}
    return result


def _compared(whole_s: dict[str, float]) -> dict[str, float]:
    return {**whole_s, "ratio": whole_s["full"] / whole_s["ours"]}


def _models(dvae, options: argparse.Namespace):
    """The dVAE, the reranker, a caption embedded by it, and its tokenizer; all with random weights."""
    from dalle.config import CLIPModel
    from dalle.models.clip import CLIP
    from dalle.models.dvae import DVAE
    from dalle.text import Tokenizer

    tokenizer = Tokenizer.train(["a red circle"], vocabulary=260)
    if options.quick:
        small = CLIPModel(vision_width=64, vision_layers=1, text_width=64, text_layers=1, embedding_width=16)
        clip = CLIP(small, tokenizer)
    else:
        clip = CLIP(CLIPModel(architecture="ViT-B-32"))
    made = (DVAE(dvae), clip)
    return *(model.to(DEVICE).eval().requires_grad_(False) for model in made), tokenizer


def _codes(dvae, rows: int) -> torch.Tensor:
    return torch.randint(0, dvae.codebook_size, (rows, dvae.grid**2), device=DEVICE)


def _full(dvae, rows: int, options: argparse.Namespace) -> dict[str, Callable]:
    """The call "rank": so many rows decoded and scored, chunk by chunk."""
    from dalle.sampling.ranking.viewer import embed_captions, view

    model, clip, _ = _models(dvae, options)
    codes_RI = _codes(dvae, rows)

    def rank() -> None:
        text_1E = embed_captions(clip, ["a red circle"], codes_RI.device, "reranker")
        for codes_NI in codes_RI.split(options.chunk):
            view(model, clip, codes_NI, text_1E.expand(len(codes_NI), -1), options.precision, options.chunk)

    return {"rank": rank}


def _shortlist(dvae, options: argparse.Namespace) -> dict[str, Callable]:
    """The call "rank": all N rows read as codes, chunk by chunk, and the best of them decoded and scored."""
    from dalle.config import CLIPModel
    from dalle.models.clip import CLIP
    from dalle.sampling.ranking.viewer import embed_captions, score_codes, view

    model, clip, tokenizer = _models(dvae, options)
    sizes = {"patch_px": options.reader_patch, "vision_width": options.reader_width}
    reader = CLIP(
        CLIPModel(
            reads="codes",
            image_size_px=dvae.grid,
            codebook_size=dvae.codebook_size,
            vision_layers=options.reader_layers,
            **sizes,
        ),
        tokenizer,
    )
    reader = reader.to(DEVICE).eval().requires_grad_(False)
    codes_RI = _codes(dvae, options.n)

    def rank() -> None:
        device = codes_RI.device
        read_1E = embed_captions(reader, ["a red circle"], device, "reader of codes")
        scores_N = np.concatenate(
            [
                score_codes(reader, codes_NI, read_1E.expand(len(codes_NI), -1))
                for codes_NI in codes_RI.split(options.chunk)
            ]
        )
        best = torch.from_numpy(np.argsort(-scores_N)[: options.shortlist]).to(device)
        text_1E = embed_captions(clip, ["a red circle"], device, "reranker")
        view(model, clip, codes_RI[best], text_1E.expand(len(best), -1), options.precision, options.chunk)

    return {"rank": rank}


# ---- accuracy


def accuracy(options: argparse.Namespace) -> dict[str, float]:
    """Shares of right pictures over the captions: `full`, the best by pixels of all N; `shortlist`, the best by pixels of the
    shortlist; `codes_alone`, the best by codes; `unranked`, the first. `listed`: how often the best of all is in the shortlist."""
    from tqdm import tqdm

    from dalle.config import Sampling
    from dalle.data.naming import escape
    from dalle.data.shapes import Claim, shows
    from dalle.evaluation.accuracy import distinct
    from dalle.sampling.loading import load_transformer

    pipeline = load_transformer(
        options.model, shortlist=True, codes_clip=options.codes_clip, precision=options.precision
    )
    shards = options.shards or f"{escape(Path(options.model))}/data/valid-*.tar"
    pairs = distinct(shards, pipeline.dvae.config.image_size_px, options.captions)
    sampling = Sampling(chunk=options.chunk, precision=options.precision)
    totals: dict[str, float] = {}
    for pair in tqdm(pairs, unit=" captions", disable=not sys.stderr.isatty()):
        claim = Claim.from_json(pair.scene)
        picked = _picked(pipeline, pair.captions[0], options.n, options.shortlist, sampling)
        shares = {name: float(shows(np.asarray(drawing.image), claim)) for name, drawing in picked.items()}
        shares["listed"] = float(picked["full"].seed == picked["shortlist"].seed)
        for name, share in shares.items():
            totals[name] = totals.get(name, 0.0) + share / len(pairs)
    points = 100 * (totals["shortlist"] - totals["full"])
    return {**totals, "points": points, "captions": len(pairs), "n": options.n, "shortlist_of": options.shortlist}


def _picked(pipeline, caption: str, n: int, shortlist: int, sampling) -> dict:
    """The drawing that each way of ranking puts first, all of the same n candidates."""
    from dataclasses import replace

    from dalle.sampling.candidates import Best
    from dalle.sampling.drawing import Drawing
    from dalle.sampling.ranking.viewer import score_codes

    read_1E = pipeline.read([caption], as_codes=True).embeddings_CE
    full, listed, first = Best(1), Best(shortlist), None
    by_seed: dict[int, Drawing] = {}
    for chunk in pipeline.candidates([caption], n, 0, sampling):
        drawings = chunk.part(0).drawings
        first = first or drawings[0]
        codes_RI = torch.from_numpy(chunk.codes_CNI[0]).to(pipeline.device)
        scores = score_codes(pipeline.codes_clip, codes_RI, read_1E.expand(len(codes_RI), -1))
        full.add(drawings)
        by_seed |= {drawing.seed: drawing for drawing in drawings}
        listed.add(replace(drawing, score=float(s)) for drawing, s in zip(drawings, scores, strict=True))
    ranked = listed.ranked()
    best = Best(1)
    best.add(by_seed[drawing.seed] for drawing in ranked)
    return {
        "full": full.ranked()[0],
        "shortlist": best.ranked()[0],
        "codes_alone": by_seed[ranked[0].seed],
        "unranked": first,
    }
