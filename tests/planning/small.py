"""A small prior's training to plan."""

from dalle.config import Compression, Optimizer, PriorModel, Run, Schedule
from dalle.planning.layout import Layout, Sizes

MODEL = PriorModel(text_slots=8, grid=4, text_vocabulary=40, codebook_size=24, width=64, depth=2, heads=2)


def layout(machines: int, gpus: int, rank: int | None = None, optimizer: dict | None = None, **run) -> Layout:
    compression = None if rank is None else Compression(rank, "bf16")
    settings = Run(**{"steps": 10, "batch_size": 8, "compression": compression, **run})
    return Layout(Sizes(MODEL), settings, Optimizer(Schedule(1e-3, 1e-3), **(optimizer or {})), machines, gpus)
