"""Memory and disk that a plan takes, estimated before anything is begun."""

from __future__ import annotations

from collections.abc import Mapping

from dalle.config.checks import require
from dalle.own.facts import Machine
from dalle.own.plan import Sizes

_PROGRAM_BYTES = 1_500_000_000
"""Of the training process and its loader with nothing to train: PyTorch and DeepSpeed."""
_STATE_BYTES = 20
"""Of a weight while it trains: itself, its gradient, two moments and its average, in fp32."""
_SAVED_BYTES = 16
"""Of a weight in a checkpoint: itself, two moments and its average."""
_CHECKPOINTS = 3
"""Two that stay and one that is being written."""
_PICTURES_BYTES = 50_000_000
"""Of pages, pictures and the gallery."""


def prior_weights(sizes: Sizes) -> int:
    """About how many the prior has: 12 D² a layer, and its embeddings and heads."""
    model = sizes.prior
    tables = 2 * (model.text_vocabulary + model.codebook_size) + model.slots
    return 12 * model.width**2 * model.depth + tables * model.width


def memory_bytes(sizes: Sizes, machine: Machine, batches: Mapping[str, int]) -> int:
    """Of a device, in the stage that takes most. The prior: state, and for the backward pass of each slot of a batch about 34
    bytes a channel and layer (Korthikanti et al., 2022); beside the program.

    batches: samples of an update, over all devices, of "prior" and "dvae" where they are trained.
    """
    model = sizes.prior
    rows = {kind: -(-batch // machine.devices) for kind, batch in batches.items()}
    kept = 34 * rows.get("prior", 0) * model.slots * model.width * model.depth
    pixels = 2 * 4 * 40 * rows.get("dvae", 0) * sizes.dvae.image_size_px**2 * sizes.dvae.encoder_width // 8
    return _PROGRAM_BYTES + max(_STATE_BYTES * prior_weights(sizes) + kept, pixels)


def disk_bytes(sizes: Sizes, data_bytes: int, pairs: int, crops: int) -> int:
    """Of what is still to be written beside the data: checkpoints, models, tokens, pages."""
    weights = prior_weights(sizes) + 12 * sizes.clip.vision_width**2 * 2 * sizes.clip.vision_layers + 2_000_000
    tokens = 2 * pairs * crops * sizes.prior.image_slots
    return _CHECKPOINTS * _SAVED_BYTES * weights + tokens + _PICTURES_BYTES + data_bytes // 20


def check_room(machine: Machine, memory: int, disk: int, output: str) -> list[str]:
    """Sentences about memory and disk.

    Raises:
        ValueError: there is not enough of one of them; one line that says of which and what to do
    """
    require(
        disk <= machine.free_disk_bytes,
        f"output {output}: the training writes about {_size(disk)} and {_size(machine.free_disk_bytes)} are free: make room, or "
        "name an --output on another disk",
    )
    where = "of main memory" if machine.is_cpu else "of each GPU's memory"
    require(
        memory <= machine.memory_bytes,
        f"memory: this plan takes about {_size(memory)} {where}, of which there are {_size(machine.memory_bytes)}: set "
        "--prior.run.batch_size or --prior.model.width lower",
    )
    said = [
        f"takes about {_size(memory)} {where} ({_size(machine.memory_bytes)} are there) and {_size(disk)} of disk "
        f"({_size(machine.free_disk_bytes)} are free)"
    ]
    if memory > 0.7 * machine.memory_bytes:
        said.append("that is most of the memory: close other programs")
    return said


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
