"""`dalle-export RUN --output DIR`: one `model.safetensors` out of a checkpoint that many processes wrote, or a finished model in
another precision: a single one, or a whole one, whose parts then know one another by their new hashes.

One process does it, also while the run goes on. A tensor at a time is read and written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dalle.cli import arguments
from dalle.config import CharCNNRNNModel, CLIPModel, DVAEModel, Export, PriorModel, StackGANModel
from dalle.config.checks import warn
from dalle.outputs.ownership import claimed, read_mark, remove_mark, unfinished
from dalle.outputs.run_files import WEIGHTS
from dalle.outputs.whole import copy_file, replace_text
from dalle.ready.files import ATTRIBUTION, CARD, PART_FILES, PARTS, STAGE_ONE

if TYPE_CHECKING:
    from dalle.checkpoints.checkpoint import Checkpoint

_COMMAND = "dalle-export"
_MODELS = {
    "dvae": DVAEModel,
    "prior": PriorModel,
    "clip": CLIPModel,
    "stackgan": StackGANModel,
    "text-encoder": CharCNNRNNModel,
}
_FILES = ("config.yaml", "tokenizer.json", "tokenizer.words.json")
"""What a run's folder holds, beside its weights, that its model needs."""
_NO_LINKS = ("kind", "config", "hash", "checksums", "seal")
"""What a header says of its own weights. All else goes with them: what they were trained with, and how they want to be drawn with."""


def main() -> None:
    """Console script."""
    arguments.plain_warnings(_COMMAND)
    arguments.run(export, _COMMAND)


def export(argv: list[str] | None = None) -> None:
    """Parse, check, read every file of the checkpoint for its hash, write."""
    config = arguments.parse(Export, _COMMAND, argv, positional="run")
    if (Path(config.output) / WEIGHTS).exists() and read_mark(config.output, _COMMAND) is None:
        raise ValueError(f"output {config.output} is not empty: it holds a model already; name another --output")
    with claimed(config.output, _COMMAND) as output:
        _export(config, output)
        remove_mark(output, _COMMAND)  # a model that is whole is not written over


def _export(config: Export, output: Path) -> None:
    from dalle.checkpoints.checkpoint import latest
    from dalle.ready.files import parts_of
    from dalle.ready.names import find_model

    path = Path(config.run) if Path(config.run).is_dir() else find_model(config.run, "run")
    if path.parent.name == "checkpoints" or (path / "state.json").is_file():
        print(_in_place(output, lambda partial: _export_checkpoint(config, path, partial)))
    elif (found := latest(path)) is not None:
        print(_in_place(output, lambda partial: _export_checkpoint(config, found, partial)))
    elif config.weights is not None:
        raise ValueError(
            f"weights {config.weights}: {path} holds no complete checkpoint, which alone has both; leave it out"
        )
    elif (path / WEIGHTS).is_file():
        renamed: dict[str, str] = {}
        print(_in_place(output, lambda partial: _export_finished(config, path, partial, renamed)))
        _say_links(path, config.dtype, renamed)
    elif {"prior", "dvae"} <= set(parts_of(path)):
        print(_in_place(output, lambda partial: _export_whole(config, path, partial)))
    else:
        raise ValueError(
            f"{path} holds no complete checkpoint, nor is it one, nor a finished model; name a folder with {WEIGHTS} in it or in prior/ and dvae/"
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _in_place(output: Path, write: Callable[[Path], str]) -> str:
    """What is written into a folder for partial work goes into the output, all of it or nothing. Returns what `write` says."""
    partial = unfinished(output)
    try:
        said = write(partial)
        # of an export of ours that was cut off, perhaps of another model
        for name in (*PARTS, *PART_FILES, STAGE_ONE, CARD, ATTRIBUTION):
            _remove(output / name)
        for path in sorted(partial.iterdir()):  # config.yaml, model.safetensors, tokenizer.json; or folders of such
            os.replace(path, output / path.name)
    except BaseException as error:
        if isinstance(error, OSError):  # a full disk
            raise ValueError(
                f"output {output} was not written ({error}): look at what that names, and call it again"
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return f"{said}: {output}"


def _export_checkpoint(config: Export, path: Path, partial: Path) -> str:
    import torch

    from dalle.checkpoints.checkpoint import open_checkpoint, verify
    from dalle.checkpoints.rewritten import CheckpointWeights
    from dalle.cluster.topology import World
    from dalle.models.folder import save_weights

    checkpoint = open_checkpoint(path)
    kind, sizes, links = _identity(checkpoint)
    run = checkpoint.path.absolute().parent.parent
    renamed: dict[str, str] = {}
    weights = CheckpointWeights(checkpoint, config.weights, config.dtype)
    verify(checkpoint.path, World(0, 1, torch.device("cpu")))
    _export_stage_one(config, sizes, run, partial, renamed)
    links = {name: renamed.get(said, said) for name, said in links.items()}
    save_weights(partial, kind, weights, sizes, _links_of(links, weights.converts), weights.like())
    _copy(_FILES, run, partial)
    return f"{kind}, {weights.source} weights after {checkpoint.step:,} updates, {weights.count:,} numbers in {config.dtype}"


def _export_finished(config: Export, folder: Path, partial: Path, renamed: dict[str, str]) -> str:
    """A single model that is finished. `renamed`: what the models that it was trained with are known by now, by what they were; its
    own is added."""
    from dalle.checkpoints.rewritten import FinishedWeights
    from dalle.models.folder import check_hash, codes_hash, read_config, read_header, save_weights
    from dalle.models.weights import WeightsFile

    check_hash(folder)
    header = read_header(folder)
    sizes = read_config(folder, header["kind"])
    _export_stage_one(config, sizes, folder, partial, renamed)
    links = {name: renamed.get(said, said) for name, said in header.items() if name not in _NO_LINKS}
    with WeightsFile(folder / WEIGHTS) as file:
        weights = FinishedWeights(file, config.dtype)
        save_weights(partial, header["kind"], weights, sizes, _links_of(links, weights.converts), weights.like())
    known_by = codes_hash if header["kind"] == "dvae" else lambda model: read_header(model)["hash"]
    renamed[known_by(folder)] = known_by(partial)
    _copy(_FILES, folder, partial)
    return f"{header['kind']}, {weights.count:,} numbers in {config.dtype}"


def _export_stage_one(config: Export, sizes: Any, folder: Path, partial: Path, renamed: dict[str, str]) -> None:
    """That of a GAN's stage II, which cannot draw without it, from its folder to beside it."""
    if isinstance(sizes, StackGANModel) and sizes.stage == 2:
        if not (folder / STAGE_ONE / WEIGHTS).is_file():
            raise ValueError(
                f"{folder} lacks {STAGE_ONE}/, with which its stage II draws: resume its training, or copy there the folder that "
                "config.yaml names as stage_one"
            )
        _export_finished(config, folder / STAGE_ONE, partial / STAGE_ONE, renamed)


def _export_whole(config: Export, folder: Path, partial: Path) -> str:
    """All single models of a folder. The dVAE comes first, since the others know it by its hash."""
    from dalle.ready.files import ATTRIBUTION, CARD, parts_of, public_config
    from dalle.sampling.model_set import find_models

    parts = sorted(parts_of(folder), key=lambda part: part != "dvae")
    find_models(folder, shortlist="codes-clip" in parts)  # refuses those that do not belong together
    renamed: dict[str, str] = {}
    said = [f"{part}/: {_export_finished(config, folder / part, partial / part, renamed)}" for part in parts]
    for part in parts:
        if (settings := partial / part / "config.yaml").is_file():
            replace_text(settings, public_config(settings))  # which is to be given away
    _copy((CARD, ATTRIBUTION), folder, partial)
    num_bytes = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    return "; ".join([*said, f"{num_bytes / 1e6:.1f} MB"])


def _links_of(links: dict[str, str], converted: bool) -> dict[str, str]:
    """What goes with weights. An encoder of other bits makes other codes, be they few, so a dVAE that was converted is not known by
    those of the one whose encoder it had."""
    return {name: said for name, said in links.items() if not (converted and name == "codes_of_hash")}


def _copy(names: tuple[str, ...], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).is_file():
            copy_file(source / name, target / name)


def _say_links(path: Path, dtype: str, renamed: dict[str, str]) -> None:
    """Of a dVAE that was changed, that models which were trained with it do not know it any more."""
    from dalle.models.folder import read_header

    if read_header(path)["kind"] == "dvae" and any(before != after for before, after in renamed.items()):
        warn(
            f"in {dtype} this dVAE makes other codes now and then, so it has another hash, and priors that were trained with it "
            "refuse it; to convert them together name the folder that holds prior/ and dvae/"
        )


def _identity(
    checkpoint: Checkpoint,
) -> tuple[str, DVAEModel | PriorModel | CLIPModel | StackGANModel | CharCNNRNNModel, dict[str, str]]:
    """Kind, sizes and links of the model that the checkpoint is of."""
    identity = checkpoint.values.get("export")
    if identity is None:
        raise ValueError(
            f"checkpoint {checkpoint.path} does not say what model it is of: another version wrote it; export it with that one"
        )
    kind = identity["kind"]
    if kind not in _MODELS:
        raise ValueError(f"checkpoint {checkpoint.path} is of a model of kind {kind}: known are {', '.join(_MODELS)}")
    sizes: Any = arguments.parse_model(_MODELS[kind], identity["config"], f"checkpoint {checkpoint.path}: ")
    return kind, sizes, identity["links"]
