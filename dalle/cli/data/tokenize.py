"""`dalle-tokenize`: run the dVAE once over image-text shards and write token shards."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dalle.cli import arguments
from dalle.config import DVAEModel, Tokenize
from dalle.outputs.ownership import claimed, read_mark

_COMMAND = "dalle-tokenize"


def main() -> None:
    """Console script."""
    arguments.run(tokenize, _COMMAND)


def tokenize(argv: list[str] | None = None) -> None:
    """Parse, check, encode."""
    config = arguments.parse(Tokenize, _COMMAND, argv)
    from dalle.data.naming import expand
    from dalle.data.token_files.parts import number_of_parts, other_parts, part_folder, share_of
    from dalle.data.token_files.reading import META
    from dalle.models.folder import codes_hash, read_config
    from dalle.ready.names import find_part

    config = replace(config, dvae=str(find_part(config.dvae, "dvae")))
    model, digest = read_config(config.dvae, "dvae"), codes_hash(config.dvae)
    files = expand(config.data, config.images.pipes)
    request, output = _request(config, digest, files), Path(config.output)
    if config.part is not None:
        if (output / META).is_file():
            raise ValueError(f"output {output}: holds token shards that are no parts: name another --output")
        number, parts = config.share
        files, output = share_of(files, number, parts), part_folder(output, number, parts)
        if other := [path for path in other_parts(output) if number_of_parts(path) != parts]:
            raise ValueError(
                f"part {config.part}: {other[0]} is of another number of parts; take that, or name another --output"
            )
    with claimed(output, _COMMAND, overwrite=config.overwrite) as folder:
        for made in [] if config.overwrite else [folder, *other_parts(folder)]:
            _check_request(made, request)
        try:
            _encode(config, folder, model, digest, request, files)
        except ValueError as error:  # such as of a share of which nothing can be used
            if config.part is None:
                raise
            raise ValueError(f"part {config.part}: {error}; or take fewer parts") from error


def _request(config: Tokenize, digest: str, files: list[str]) -> dict[str, Any]:
    """All that decides which pairs the shards hold, by setting: the data by what they are, not by how they are named."""
    from dalle.data.identity import identity

    settings = asdict(config) | {"data": identity(files)}
    images = {f"images.{name}": value for name, value in settings.pop("images").items()}
    for name in ("output", "overwrite", "batch_size", "part"):
        settings.pop(name)
    return json.loads(json.dumps({**settings, **images, "dvae": digest[:16]}))  # as it is read back


def _check_request(folder: Path, request: dict[str, Any]) -> None:
    """Raises ValueError where there are shards made with other settings, which may have taken days."""
    from dalle.data.identity import difference
    from dalle.data.token_files.reading import META

    before = read_mark(folder, _COMMAND) or {}
    if not (folder / META).is_file():
        return
    for name, value in request.items():
        if name in before and before[name] != value:
            told = f"{name} was {json.dumps(before[name])}, is {json.dumps(value)}"
            if name == "data" and isinstance(before[name], dict):
                told = f"of other data: {difference(before[name], value)}"
            raise ValueError(
                f"output {folder}: holds token shards made with other settings ({told}): name another --output, or write over them "
                "with --overwrite"
            )


def _encode(
    config: Tokenize, folder: Path, model: DVAEModel, digest: str, request: dict[str, Any], files: list[str]
) -> None:
    import torch

    from dalle.data.counts import Counts
    from dalle.data.loading import load
    from dalle.data.pairs import PairPasses
    from dalle.data.tokens import Meta, TokenWriter
    from dalle.models.folder import load_dvae
    from dalle.outputs.bar import progress_bar

    images = replace(config.images, augmentation=config.images.augmentation if config.crops > 1 else "none")
    passes = PairPasses(files, images, model.image_size_px, config.batch_size, config.crops, config.seed)
    batches = load(passes, workers=1, prefetch_factor=2)  # they are decoded while the dVAE is loaded, too
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dvae = load_dvae(config.dvae, device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    meta = Meta(model.grid, model.codebook_size, digest, precision=config.precision)
    with (
        TokenWriter(folder, meta, config.pairs_per_shard, request) as writer,
        progress_bar(unit=" images") as bar,
    ):
        for batch in batches:
            if isinstance(batch, Counts):
                counts = batch
                continue
            with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
                codes_BYX = dvae.encode(batch["images_BCYX"].to(device))
            for codes_I, captions in zip(codes_BYX.flatten(1).cpu().numpy(), batch["captions"], strict=True):
                writer.add(codes_I, captions)
            bar.update(len(codes_BYX))
        sizes = writer.close(counts).shard_sizes
    print(f"{sum(sizes):,} pairs in {len(sizes)} token shards: {folder}; {counts.line()}")
