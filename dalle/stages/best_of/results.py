"""What was kept, beside what was not: statistics of each shard, of all of them, and a picture.

Axes: C captions of a shard, N candidates of each, K kept ones, I image slots, V codes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from dalle.config import BestOf
from dalle.models.likelihood import to_pixels
from dalle.outputs.whole import replace_text, save_picture
from dalle.reporting.best_of import FILE, PICTURE
from dalle.sampling.drawing import Drawing, fingerprint
from dalle.sampling.grid import make_grid
from dalle.sampling.pipeline import Pipeline
from dalle.stages.best_of.judging import Judged

_SHOWN = 12
"""Captions in the picture, of each of which the best kept one stands beside the worst."""


def statistics(captions: Sequence[str], judged: Judged, kept: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Of a shard, as tensors: all scores [C, N]; caption and candidate of each kept one [K, 2]; how many candidates differ [C];
    how alike they are [C] (`agreement`); how often each code came, in all and in the kept ones [2, V]; and of captions that have a
    kept one and a worse one, the first S: the best and the worst [S, 2, I]."""
    codes_CNI = judged.codes_CNI
    kept_K2 = np.array(kept, dtype=np.int64).reshape(-1, 2)
    codes = int(codes_CNI.max()) + 1
    picked_KI = codes_CNI[kept_K2[:, 0], kept_K2[:, 1]]
    best = {caption: candidate for caption, candidate in reversed(kept)}
    worst_C, scores_CN = judged.scores_CN.argmin(1), judged.scores_CN
    # of a caption whose candidates are all as good there would be the same picture twice
    shown = [c for c in sorted(best) if scores_CN[c, worst_C[c]] < scores_CN[c, best[c]]][:_SHOWN]
    pairs = [(caption, (best[caption], int(worst_C[caption]))) for caption in shown]
    shown_S2I = [codes_CNI[caption, list(both)] for caption, both in pairs]
    texts = json.dumps([captions[caption] for caption in shown], ensure_ascii=False)
    return {
        "scores_CN": judged.scores_CN,
        "kept_K2": kept_K2,
        "differing_C": np.array([len({fingerprint(codes_I) for codes_I in codes_NI}) for codes_NI in codes_CNI]),
        "agreement_C": np.array([agreement(codes_NI) for codes_NI in codes_CNI]),
        "code_counts_2V": np.stack([np.bincount(each.ravel(), minlength=codes) for each in (codes_CNI, picked_KI)]),
        "shown_S2I": np.stack(shown_S2I) if shown else np.empty((0, 2, codes_CNI.shape[2]), np.uint16),
        "shown_scores_S2": np.array([judged.scores_CN[c, list(both)] for c, both in pairs]).reshape(-1, 2),
        "shown_utf8": np.frombuffer(texts.encode(), np.uint8),
    }


def agreement(codes_NI: np.ndarray) -> float:
    """The share of places at which two different candidates of a caption have the same code, over all pairs of them: 1 where
    all are the same picture. 0 of a single one."""
    count, slots = codes_NI.shape
    if count < 2:
        return 0.0
    ordered_NI = np.sort(codes_NI, axis=0)
    # equal codes of a place stand in runs; a run of length r has r (r - 1) / 2 pairs, counted as each joins those before it
    run_I, pairs = np.zeros(slots, np.int64), 0
    for row in range(1, count):
        run_I = np.where(ordered_NI[row] == ordered_NI[row - 1], run_I + 1, 0)
        pairs += int(run_I.sum())
    return pairs / (slots * count * (count - 1) / 2)


def entropy_bits(counts_V: np.ndarray) -> float:
    """Of codes that came so often."""
    shares_V = counts_V[counts_V > 0] / max(1, counts_V.sum())
    return float(-(shares_V * np.log2(shares_V)).sum())


def write_results(folder: Path, shards: Sequence[Path], best_of: BestOf, pipeline: Pipeline) -> dict[str, Any]:
    """Write `best-of.json` and the picture, and return what the former holds."""
    read = [_read(path) for path in shards]
    scores_CN = np.concatenate([each["scores_CN"] for each in read])
    kept_scores = np.concatenate([each["scores_CN"][tuple(each["kept_K2"].T)] for each in read])
    counts_2V = np.zeros((2, max(each["code_counts_2V"].shape[1] for each in read)), np.int64)
    for each in read:
        counts_2V[:, : each["code_counts_2V"].shape[1]] += each["code_counts_2V"]
    prints = {fingerprint(codes_I) for each in read for codes_I in each["codes_NI"]}
    captions = len(scores_CN)
    results: dict[str, Any] = {
        "judge": best_of.judge,
        "captions": captions,
        "candidates": scores_CN.size,
        "kept": len(kept_scores),
        "captions_with_kept": sum(len(np.unique(each["kept_K2"][:, 0])) for each in read),
        "score_all": float(scores_CN.mean()),
        "score_kept": float(kept_scores.mean()) if len(kept_scores) else None,
        # how far a caption's candidates lie apart, which is what choosing among them can gain
        "score_spread": float(scores_CN.std(axis=1).mean()),
        "kept_first_drawn": sum(int((each["kept_K2"][:, 1] == 0).sum()) for each in read),
        "kept_like_another": len(kept_scores) - len(prints),
        "differing": float(np.concatenate([each["differing_C"] for each in read]).mean()),
        "agreement": float(np.concatenate([each["agreement_C"] for each in read]).mean()),
        "code_bits_all": entropy_bits(counts_2V[0]),
        "code_bits_kept": entropy_bits(counts_2V[1]),
        "shard_sizes": [len(each["codes_NI"]) for each in read],
    }
    results["lines"] = _lines(results, best_of)
    if any(len(each["shown_S2I"]) for each in read):
        _draw(folder / PICTURE, read, pipeline, best_of)
    replace_text(folder / FILE, json.dumps(results, ensure_ascii=False, indent=2))
    return results


def _lines(found: dict[str, Any], best_of: BestOf) -> list[str]:
    lines = [
        f"kept {found['kept']:,} of {found['candidates']:,} candidates of {found['captions']:,} captions, by {best_of.judge}; "
        f"{found['captions'] - found['captions_with_kept']:,} captions have none"
    ]
    if best_of.judge == "checker":
        lines.append(f"the checker accepts {found['score_all']:.1%} of all candidates")
    elif found["kept"]:
        gain = (found["score_kept"] - found["score_all"]) / max(found["score_spread"], 1e-12)
        lines.append(
            f"mean score {found['score_kept']:.4f} of the kept ones, {found['score_all']:.4f} of all: {gain:.2f} times the standard "
            "deviation among a caption's candidates"
        )
    lines.append(
        f"of {best_of.candidates} candidates of a caption {found['differing']:.1f} differ, and two have the same code at "
        f"{found['agreement']:.1%} of the places; {found['kept_like_another']:,} kept ones are like another kept one"
    )
    lines.append(
        f"entropy of the codes {found['code_bits_kept']:.2f} bits in the kept ones, {found['code_bits_all']:.2f} in all"
    )
    return lines


def _draw(path: Path, read: Sequence[dict[str, np.ndarray]], pipeline: Pipeline, best_of: BestOf) -> None:
    codes_S2I = np.concatenate([each["shown_S2I"] for each in read])[:_SHOWN]
    scores_S2 = np.concatenate([each["shown_scores_S2"] for each in read])[:_SHOWN]
    captions = [caption for each in read for caption in json.loads(each["shown_utf8"].tobytes())][:_SHOWN]
    codes_BI = torch.from_numpy(codes_S2I.reshape(-1, codes_S2I.shape[2]).astype(np.int64)).to(pipeline.device)
    images_BYX3 = to_pixels(pipeline.decode(codes_BI, best_of.sampling.precision))
    drawings = [
        Drawing(Image.fromarray(image_YX3), captions[i // 2], float(scores_S2[i // 2, i % 2]), i, 0, {})
        for i, image_YX3 in enumerate(images_BYX3)
    ]
    save_picture(make_grid(drawings, columns=2), path)


def _read(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
