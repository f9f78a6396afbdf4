"""What happens to the gradients between the backward pass and the optimiser: unscaling, averaging over the machines,
compression, the norm, clipping, and the decision to skip. Nothing of it is read on the host; from stage 1 on DeepSpeed
then reads the norm.

The gradients of matrices that are compressed live in the error buffers alone: with weights sharded they are unscaled and added
there in every micro-batch, as DeepSpeed has reduced them, and come out decompressed when DeepSpeed is about to update its next
sub-group. Below stage 3, and with moments in main memory, they are added when all micro-batches are there.

With weights sharded, unscaling and what machines exchange begin in the backward pass, group by group of gradients, and go
on beside it (`overlap.py`); whether all were finite, the norm, and with it what the optimiser is given, wait for all of them.
Elsewhere gradients are first reduced when the backward pass has ended, and all begins then, in the same order. Of
micro-batches the last alone sends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from dalle.checkpoints.restoring import Restoring
from dalle.cluster.topology import World
from dalle.config import Run
from dalle.gradients.exchange import Exchange, Steps
from dalle.gradients.overlap import Overlap
from dalle.gradients.partition import Piece, Shards, Whole
from dalle.gradients.powersgd import PowerSGD
from dalle.gradients.scaling import GradientScales

_BUCKET_ELEMENTS = 2**22
"""Number of uncompressed gradients from which on they are averaged in a call of their own: 16 MB, or 8 in 16 bits, of
which a network need not have more at a time, and the first of which need not wait for the last."""


class BeforeStep:
    """Makes each process's gradients those of the global batch, clipped.

    Args:
        shards: where the gradients are
        world: all processes; without `machines` DeepSpeed has averaged over all of them already
        run: compression, and in what the rest is exchanged
        clip_norm: largest global norm; null clips nothing
        scales: of 16-bit gradients; null in fp32 and bf16
        matrices: names of the resblocks' matrices, and how many matrices each holds side by side
        exchange: what averages over the machines
    """

    def __init__(
        self,
        shards: Shards,
        world: World,
        run: Run,
        clip_norm: float | None,
        scales: GradientScales | None,
        matrices: dict[str, int],
        exchange: type[Exchange] = Exchange,
    ):
        self.shards, self.world, self.machines, self.scales = shards, world, world.machines, scales
        self.clip_norm = clip_norm or math.inf
        self.powersgd: PowerSGD | None = None
        self._whole = isinstance(shards, Whole)
        shared_out = None if self._whole else self.machines
        self._num_shards = 1 if shared_out is None else shared_out.ranks_per_machine
        self._shard = 0 if shared_out is None else shared_out.ordinal
        if run.compression is not None:
            assert self.machines is not None
            wire = exchange(self.machines.replicas, run.compression.format)
            shapes = {name: self._rows(name, parts) for name, parts in matrices.items()}
            # before there is room for it elsewhere, so that there never are two
            shards.hand_over(frozenset(shapes), self._take, self._give)
            compressed = (shapes, run.compression, self._num_shards, self._shard, wire, world.device)
            self.powersgd = PowerSGD(*compressed, _blocks(shapes))
        self._plain = exchange(self.machines.replicas, run.wire) if self.machines else None
        self._gradients: dict[str, torch.Tensor] = {}  # of this update
        self._factor = torch.empty(0)  # that clips it
        # whether gradients were finite, for each scale: those that were handed over come in a stream of their own
        num_flags = 1 if scales is None else len(scales.failures)
        self._finite, self._taken_finite = torch.ones(2, num_flags, dtype=torch.bool, device=world.device)
        self._groups = self._in_order()
        self._overlap = Overlap([names for _, names in self._groups], self._exchange, world.device)
        self._is_early = bool(self._groups) and shards.tell_reduced(self._overlap.arrived)

    def _rows(self, name: str, parts: int) -> tuple[int, int, int]:
        """What PowerSGD has to know of this process's rows of a matrix."""
        rows, columns = self.shards.pieces[name].shape
        if rows % (parts * self._num_shards):
            raise ValueError(
                f"run.compression with {self._num_shards} processes a machine: {name} has {rows // parts} rows, which do "
                "not divide by them; set run.compression to null, or run.ranks_per_machine to what divides them"
            )
        return rows // self._num_shards, columns, parts

    def _in_order(self) -> list[tuple[int | None, list[str]]]:
        """Gradients that machines exchange together: the number of PowerSGD's group, None for what is never compressed, and
        names. First what the backward pass has first: gradients come from the last parameter to the first."""
        groups: list[tuple[int | None, list[str]]] = list(enumerate(self.powersgd.groups)) if self.powersgd else []
        compressed = {name for _, names in groups for name in names}
        pieces = self.shards.pieces
        plain = [name for name in reversed(pieces) if name not in compressed] if self.world.num_machines > 1 else []
        while plain:
            count, size = 0, 0
            while count < len(plain) and size < _BUCKET_ELEMENTS:
                size += math.prod(pieces[plain[count]].shape) // self._num_shards
                count += 1
            groups.append((None, plain[:count]))
            plain = plain[count:]
        places = {name: place for place, name in enumerate(pieces)}
        return sorted(groups, key=lambda group: -min(places[name] for name in group[1]))

    def open(self) -> None:
        """The last backward pass of an update begins: what is complete of its gradients may be sent."""
        if self._is_early:
            self._gradients = self.shards.gradients()  # the memory that they will be in
            self._overlap.open()

    def close(self) -> None:
        """The update is over, whether it was skipped or not."""
        if self.powersgd:
            self.powersgd.close()
        for flags in (self._finite, self._taken_finite):
            flags.fill_(True)

    def _take(self, name: str, gradient: torch.Tensor) -> None:
        """What is done to a micro-batch's gradient that is handed over."""
        assert self.powersgd is not None
        self._unscale({name: gradient}, self._taken_finite)
        self.powersgd.add(name, gradient)

    def _give(self, name: str, gradient: torch.Tensor) -> None:
        """Fill the memory of a gradient with what its weight is to be updated with."""
        assert self.powersgd is not None
        decompressed = self.powersgd.applied(name)
        torch.mul(decompressed, self._factor, out=gradient.view(decompressed.shape))

    def _exchange(self, number: int) -> Steps:
        """What is done to one of the groups as soon as its gradients are there."""
        group, names = self._groups[number]
        mine = {name: self._gradients[name] for name in names if name in self._gradients}
        self._unscale(mine, self._finite)
        if group is not None:
            assert self.powersgd is not None
            for name, gradient in mine.items():  # that have not been handed over
                self.powersgd.add(name, gradient)
            yield from self.powersgd.factorise(group)
        elif mine:
            assert self._plain is not None
            held = list(mine.values())
            mean_N = yield from self._plain.mean(torch.cat([tensor.flatten() for tensor in held]))
            for tensor, part in zip(held, mean_N.split([t.numel() for t in held]), strict=True):
                tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def __call__(self) -> dict[str, torch.Tensor]:
        """Prepare the gradients for the optimiser, or make it skip this update.

        Returns:
            device scalars: `gradient_norm` before clipping, 0 where it is not finite; `skipped`, 1 or 0; `hopeless`, 1 where
            it was skipped and no smaller gradient scale can help
        """
        gradients = self._gradients = self.shards.gradients()
        self._overlap.finish()
        exchanged = {name for _, names in self._groups for name in names}
        self._unscale({name: gradient for name, gradient in gradients.items() if name not in exchanged}, self._finite)
        finite = self._update_scales()
        squares = self.powersgd.squares() if self.powersgd else torch.zeros((), device=self.world.device)
        compressed = self.powersgd.shapes if self.powersgd else {}
        plain = [gradient for name, gradient in gradients.items() if name not in compressed]
        if plain:
            squares = squares + torch.stack(torch._foreach_norm(plain)).square().sum()
        norm = self._over_shards(squares).sqrt()
        applied = finite & norm.isfinite()
        factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        if not self._whole:
            factor = factor.where(applied, torch.nan)  # DeepSpeed skips an update whose norm is not a number
        if plain:
            torch._foreach_mul_(plain, factor)
        self._factor = factor
        if self.powersgd:
            self.powersgd.decide(applied)
            for name in compressed.keys() & gradients.keys():
                self._give(name, gradients[name])
        self.shards.write_gradients(gradients)
        self._gradients = {}
        if self._whole:
            optimizer: Any = self.shards.optimizer  # ours, or PyTorch's fused one, which looks for it
            optimizer.found_inf = (~applied).float()
        hopeless = ~applied if self.scales is None else ~(applied | self.scales.falling)
        return {
            "gradient_norm": norm.where(norm.isfinite(), 0),
            "skipped": (~applied).float(),
            "hopeless": hopeless.float(),
        }

    def _unscale(self, gradients: dict[str, torch.Tensor], flags: torch.Tensor) -> None:
        """Take scales out of some gradients, in place, and note in the flags what was not finite."""
        if self.scales is not None:
            parameters = self.shards.parameters
            pairs = ((parameters[name], gradient) for name, gradient in gradients.items())
            flags &= self.scales.unscale(pairs)

    def _update_scales(self) -> torch.Tensor:
        """Whether the gradients of all processes are finite, after the scales have learnt of it."""
        if self.scales is None:
            return self._finite.all()
        finite = self._finite & self._taken_finite
        return self.scales.update(self.world.sum((~finite).float()) == 0)

    def _over_shards(self, squares: torch.Tensor) -> torch.Tensor:
        """The sum over a whole model's shards, not finite when any process's is not."""
        if self._whole:
            # all processes hold the same gradients, but for the decision to skip, which compression may see differently
            return self.world.mean(squares) if self.powersgd else squares
        return self.world.sum(squares) / (self.machines.count if self.machines else 1)

    def error_buffers(self, writer: Callable[[str], int]) -> Iterator[tuple[str, Piece, torch.Tensor]]:
        """The sum over the machines of each error buffer, and the scales of the factors, on the one machine that writes it.
        All processes have to take all. Each machine goes on with an equal part of the sums, as it would if it was resumed from
        them: the same run, bit for bit.

        Args:
            writer: from a tensor's name to that machine's number
        """
        if self.powersgd is None:
            return
        assert self.machines is not None
        for name in self.powersgd.shapes:
            number, total = writer(f"error/{name}"), self.powersgd.waiting(name)
            dist.reduce(total, group=self.machines.replicas, group_dst=number)
            dist.broadcast(total, group=self.machines.replicas, group_src=number)
            self.powersgd.set_waiting(name, total / self.machines.count)
            if self.machines.number == number:
                # together they would be as large as the gradients
                yield f"error/{name}", self.shards.pieces[name], total.cpu()
        if self.machines.number == writer("error_scales"):
            piece = Piece((self._num_shards, 2), 2 * self._shard, 2, shared=self._whole)
            yield "error_scales", piece, self.powersgd.scales

    def load_error_buffers(self, restoring: Restoring) -> None:
        """Share a sum of error buffers out among the machines: the sum stays what it was. A checkpoint without them, of a
        run that did not compress, leaves them empty."""
        if self.powersgd is None or "error_scales" not in restoring:
            return
        assert self.machines is not None
        for name in self.powersgd.shapes:
            piece = self.shards.pieces[name]
            total = torch.empty(piece.size, device=self.world.device)
            restoring.fill(f"error/{name}", total, piece.start, piece.shared)
            self.powersgd.set_waiting(name, total / self.machines.count)
        scales = restoring.read("error_scales")
        self.powersgd.scales.copy_(scales[self._shard] if len(scales) == self._num_shards else scales.amin(dim=0))


def _blocks(names: Iterable[str]) -> list[list[str]]:
    """Names of weights by the module that they are in, which is a resblock's, the last first."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(name.rsplit(".", 2)[0], []).append(name)
    return list(reversed(blocks.values()))
