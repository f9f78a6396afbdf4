"""A plan in lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SCARCE_BYTES = 10**9
"""What CUDA, NCCL and an allocator's gaps may well take."""
_IF = {"activations": "activations, if kept", "activations, recomputed": "activations, if recomputed"}
"""Names of `Planned.figures`, and how what is not so is told: what they would take where they are the other way."""


def lines(plan: Mapping[str, Any]) -> list[str]:
    """What `dalle-plan` prints of `Planned.figures`."""
    verdict = "fits" if plan["fits"] else "does not fit"
    left = plan["memory_bytes"] - plan["peak_bytes"]
    room = f"{gb(plan['peak_bytes'])} GB of {gb(plan['memory_bytes'])} at the peak"
    if plan["fits"]:
        scarce = ", which may be too little: no plan knows what they take" if left < _SCARCE_BYTES else ""
        room += f", {gb(left)} left for libraries and the allocator{scarce}"
    told = [f"{plan['parameters']:,} parameters; {verdict}: {room}", *_settings(plan["settings"])]
    told += ["memory of a GPU that stays, GB", *_rows(plan["stays_bytes"]), _row("together", gb(plan["stay_bytes"]))]
    other = "activations" if plan["settings"]["run.recompute"] else "activations, recomputed"
    goes = {_IF[kind] if kind == other else kind: size for kind, size in plan["comes_and_goes_bytes"].items()}
    told += ["memory that comes and goes, GB", *_rows(goes)]
    told.append(_row("while it is set up, GB", gb(plan["while_made_bytes"])))
    told.append(_row("main memory of a process, GB", gb(plan["main_memory_bytes"])))
    told += ["traffic of a GPU in an update, GB each way", *_rows(plan["traffic_bytes"])]
    told += ["an update, by the rates given"]
    told += [_row(f"{what}, s", f"{seconds:.3f}") for what, seconds in plan["seconds"].items()]
    told.append(_row("operations, PFLOP", f"{plan['flops'] / 1e15:,.2f}"))
    told.append(_row("utilisation of that rate", f"{plan['utilisation']:.0%}"))
    told += [f"all {plan['updates']:,} updates", _row("days", f"{plan['days']:.2f}")]
    told.append(_row("GPU hours", f"{plan['gpu_hours']:,.{0 if plan['gpu_hours'] >= 100 else 2}f}"))
    if plan["cost"] is not None:
        told.append(_row("cost", f"{plan['cost']:,.0f}"))
    told.append(_row("a checkpoint, GB", gb(plan["checkpoint_bytes"])))
    told.append(_row("to write it, s", f"{plan['checkpoint_seconds']:.1f}"))
    return told


def options(settings: Mapping[str, Any]) -> str:
    """Settings as they are given on a line, but for what they make together."""
    told = []
    for name, value in settings.items():
        if name == "micro_batch":
            continue
        if isinstance(value, Mapping):
            told += [f"--{name}.{key} {each}" for key, each in value.items() if key != "seed"]
        else:
            told.append(f"--{name} {'null' if value is None else str(value).lower()}")
    return " ".join(told)


def gb(num_bytes: float) -> str:
    """10⁹ bytes, two digits after the point."""
    return f"{num_bytes / 1e9:,.2f}"


def _settings(settings: Mapping[str, Any]) -> list[str]:
    count = settings["micro_batch"]
    return [f"  {options(settings)}", f"  {count} sample{'s' if count > 1 else ''} of a GPU at a time"]


def _rows(sizes: Mapping[str, float]) -> list[str]:
    return [_row(kind, gb(size)) for kind, size in sizes.items()]


def _row(name: str, value: str) -> str:
    return f"  {name:28} {value:>12}"
