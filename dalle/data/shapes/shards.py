"""Writing the drawn data set as webdataset shards, laid out as img2dataset writes them: KEY.png, KEY.txt, KEY.json in one tar.

The tars are written with the standard library: importing webdataset imports torch, two seconds for each worker process.
"""

import json
import tarfile
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from dalle.data.shapes.captions import captions
from dalle.data.shapes.claim import Claim
from dalle.data.shapes.draw import draw, png_bytes
from dalle.data.shapes.scene import sample_scene
from dalle.outputs.whole import whole_file

SPLITS = ("train", "valid")


def write_shards(
    folder: str | Path,
    num_train: int = 20_000,
    num_valid: int = 1_000,
    size_px: int = 64,
    seed: int = 0,
    num_workers: int = 1,
    shard_size: int = 2_500,
) -> list[Path]:
    """Draw train-000.tar, ... and valid-000.tar, ... into a folder (made where missing) and return their paths, training first.

    Each sample: KEY.png of size_px by size_px; KEY.txt, one caption; KEY.json with three "captions" (the first is the one in KEY.txt),
    the claim they share under "scene" (see Claim.from_json), "background", "width" and "height". Validation scenes hold attribute
    combinations training never shows. The bytes depend on seed, size_px and shard_size, not on num_workers, and
    a larger num_train only adds to what a smaller one writes. A shard gets its name once it is complete.
    Memory is one shard's compressed bytes per worker at most. ValueError for counts or sizes that make no data set, and for a folder
    with shards that would stay there beside the new ones.
    """
    if min(num_train, num_valid) < 0 or num_train + num_valid == 0:
        raise ValueError(
            f"num_train {num_train}, num_valid {num_valid}: neither may be negative, and one must be positive"
        )
    if not 1 <= shard_size <= 10_000:
        raise ValueError(f"shard_size {shard_size}: must be from 1 to 10000 (keys have four digits within a shard)")
    if seed < 0 or num_workers < 0:
        raise ValueError(f"seed {seed}, num_workers {num_workers}: neither may be negative")
    draw(sample_scene(np.random.default_rng(seed)), size_px)  # a wrong size fails here, before any process starts
    folder, jobs = Path(folder), []
    for split, total in zip(SPLITS, (num_train, num_valid), strict=True):
        for shard, start in enumerate(range(0, total, shard_size)):
            path = folder / f"{split}-{shard:03d}.tar"
            jobs.append((path, split, shard, min(shard_size, total - start), size_px, seed))
    if others := sorted({*folder.glob("*.tar")} - {path for path, *_ in jobs}):
        raise ValueError(f"{folder} already holds {others[0].name}, which is none of these shards: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if min(num_workers, len(jobs)) <= 1:
        return [_write_shard(*job) for job in jobs]
    # Spawned, not forked: the caller may have threads (torch, CUDA) that a fork would break.
    with ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        return list(pool.map(_write_shard, *zip(*jobs, strict=True)))


def _write_shard(path: Path, split: str, shard: int, num_samples: int, size_px: int, seed: int) -> Path:
    # A generator per shard, so that shards can be written in any order by any process.
    rng = np.random.default_rng([seed, SPLITS.index(split), shard])
    with whole_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(num_samples):
            scene = sample_scene(rng, held_out=split == "valid")
            texts = captions(scene, rng)
            about = {
                "captions": texts,
                "scene": Claim.of(scene).to_json(),
                "background": scene.background,
                "width": size_px,
                "height": size_px,
            }
            key = f"{shard:05d}{index:04d}"
            _add(tar, f"{key}.png", png_bytes(draw(scene, size_px)))
            _add(tar, f"{key}.txt", texts[0].encode())
            _add(tar, f"{key}.json", json.dumps(about).encode())
    return path


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # TarInfo's own defaults (time 0, no owner) are what makes the bytes the same everywhere.
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, BytesIO(content))
