"""What a training takes over from the finished model that it starts from: whether the two fit, and what is told of it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from dalle.checkpoints.checkpoint import latest, open_checkpoint
from dalle.cluster.topology import World
from dalle.config import TrainCLIP, TrainDVAE, TrainPrior
from dalle.models.dvae import is_of_decoder
from dalle.models.folder import check_link, codes_hash, read_header, read_start
from dalle.training.stage import Start

_MAKE_A_DECODER = ("decoder_input_width", "decoder_width", "decoder_blocks_per_group")
_OF_THE_DECODER = (*_MAKE_A_DECODER, "init", "min_ln_b")
"""Sizes that may differ where the decoder alone is trained; where the first do, none of its weights fit."""
_LINKS = ("started_from_hash", "codes_of_hash")


def start_of(
    config: TrainDVAE | TrainPrior | TrainCLIP, kind: str, world: World, links: dict[str, str] | None = None
) -> Start | None:
    """What `start_from` names; null where it names nothing. A run that is resumed has all of it in its checkpoint.

    Args:
        config: of the training
        kind: "dvae", "prior" or "clip"
        world: the processes, which all call it
        links: hashes of what the model has to have been trained with

    Raises:
        ValueError: there is no finished model, or it is of other sizes, or was trained with something else
    """
    if config.start_from is None:
        return None
    if config.resume:
        # one answer, whatever each file system shows
        recorded = world.gather(_recorded(Path(config.output)) if world.is_main else None)[0]
        if recorded is not None:
            return Start(config.start_from, {n: recorded[n] for n in _LINKS if n in recorded}, reads=False)
    found = read_start(config.start_from, kind)
    frozen = isinstance(config, TrainDVAE) and config.freeze == "encoder"
    other = [f.name for f in fields(found) if getattr(found, f.name) != getattr(config.model, f.name)]
    for name in other:
        if not (frozen and name in _OF_THE_DECODER):
            advice = (
                f"leave it out, for only these may differ: {', '.join(_OF_THE_DECODER)}"
                if frozen
                else "leave it out, or start from another"
            )
            raise ValueError(
                f"model.{name} {getattr(config.model, name)}: start_from {config.start_from} has {getattr(found, name)}; "
                f"{advice}"
            )
    header = read_header(config.start_from)
    for name, expected in (links or {}).items():
        said = {"dvae_hash": "dVAE", "tokenizer_hash": "tokenizer"}[name]
        complaint = f"start_from {config.start_from} was trained with another {said} than this training has"
        check_link(complaint, header.get(name, "none"), expected)
    told = {"started_from_hash": header["hash"]}
    if frozen:
        told["codes_of_hash"] = codes_hash(config.start_from)
    begins_anew = frozen and any(name in _MAKE_A_DECODER for name in other)
    return Start(config.start_from, told, reads=True, takes=lambda name: not (begins_anew and is_of_decoder(name)))


def _recorded(output: Path) -> dict[str, str] | None:
    """What the newest checkpoint says its model is linked to; null where there is none."""
    found = latest(output)
    try:
        return open_checkpoint(found).values["export"]["links"] if found else None
    except (ValueError, KeyError):  # who restores it says what is wrong with it
        return {}
