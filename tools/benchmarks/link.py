"""Updates per second and held-out loss of a prior trained on two machines, with and without compressed gradients.

The machines are network namespaces joined by a link of so many Mbit/s, two processes in each (`machines.py`); weights are
sharded within a machine and replicated between the two, and the whole training loop runs, on drawn and captioned scenes
(`patterns.py`). Peers: the same training with gradients sent as they are, in fp32 (`uncompressed`) and in 16 bits
(`uncompressed_bf16`), and ours with all exchanges begun when the backward pass has ended (`after_backward`). Ours is the
smallest rank from which on the held-out loss, a mean over the seeds, is no more than 1% above the uncompressed one: of every
larger rank that was run, too, since a single small rank may be lucky. The loss depends neither on the link nor on when an
exchange begins, so those trainings run without a limit and beside the backward pass. The limit is that of the link: updates
per second if sending ours were all there is to do. An exchange is exposed while an update waits for it when its backward pass
has ended, arithmetic of the compression included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import machines, patterns

_WORKER = Path(__file__).with_name("link_worker.py")
_MACHINES, _PER_MACHINE = 2, 2
_JOBS_TOGETHER = 5
"""Trainings of one start of the processes, which takes as long as some of them; each leaves some memory behind."""
_TIMEOUT_S = 3600.0
_ROUNDS = 2
"""In which all settings are timed in turn, so that a machine that slows down slows all of them."""
_WARMUP_UPDATES = 2
_TOLERANCE = 0.01
_NUM_TRAIN, _NUM_VALID = 4000, 256
_UNCOMPRESSED, _IN_16_BITS, _AFTER = "uncompressed", "uncompressed_bf16", "after_backward"
_SIZES = ("width", "depth", "batch_size", "step_size", "precision", "format")
_QUICK = {"width": 128, "ranks": [8, 32], "seeds": 1, "steps": 20, "repeats": 2}


@dataclass(frozen=True)
class Setting:
    """Of what machines exchange.

    Args:
        rank: of the compression; null where there is none
        wire: in which the rest is sent
        overlapped: whether exchanges begin within the backward pass
    """

    rank: int | None = None
    wire: str = "fp32"
    overlapped: bool = True

    @property
    def name(self) -> str:
        if self.rank is None:
            return _UNCOMPRESSED if self.wire == "fp32" else _IN_16_BITS
        return str(self.rank) if self.overlapped else _after(str(self.rank))


def _after(rank: str) -> str:
    """The name of the same rank when all is sent after the backward pass."""
    return f"{rank}, {_AFTER}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    formats = "of P and Q: 1-6-9 has as many bytes as bf16, but a CPU needs a fifth of the update for it"
    parser.add_argument("--mbit", type=float, nargs="+", default=[100.0, 1000.0], help="of the link; a case for each")
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 48, 64, 96], help="of the compression")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each setting whose loss is measured")
    parser.add_argument("--steps", type=int, default=120, help="updates of each of those")
    parser.add_argument("--repeats", type=int, default=4, help=f"updates that are timed, in each of {_ROUNDS} rounds")
    parser.add_argument("--format", default="bf16", choices=("fp32", "bf16", "1-6-9"), help=formats)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"), help="of the matrix products")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=4, help="of all processes together")
    parser.add_argument("--step_size", type=float, default=1e-3)
    parser.add_argument("--quick", action="store_true", help="see that it works: a small model, one seed, few updates")
    parser.add_argument("--output", type=Path, help="a .jsonl file of trainings: what is in it is not run again")


def run(options: argparse.Namespace) -> list[dict]:
    """A case for each link."""
    if options.quick:
        vars(options).update(_QUICK)
    if why := machines.why_none():
        sys.exit(f"bench.py link: {why}")
    ranks, plain = sorted(options.ranks), [Setting(), Setting(wire="bf16")]
    with_loss = [*plain, *(Setting(rank) for rank in ranks)]
    settings = [*plain, *(Setting(rank, overlapped=early) for rank in ranks for early in (True, False))]
    timed = {
        mbit: [_job(options, mbit, setting, round_, False) for round_ in range(_ROUNDS) for setting in settings]
        for mbit in options.mbit
    }
    trained = [_job(options, None, setting, seed, True) for seed in range(options.seeds) for setting in with_loss]
    with tempfile.TemporaryDirectory() as folder:
        notes = Notes(options.output or Path(folder) / "trainings.jsonl")
        patterns.write(Path(folder), _NUM_TRAIN, _NUM_VALID)
        for jobs in (*timed.values(), trained):
            _train([job for job in jobs if notes.of(job) is None], Path(folder), notes)
        losses = {each.name: [notes.whole(job)["valid"]["loss"] for job in _of(each, trained)] for each in with_loss}
        cases = []
        for mbit, jobs in timed.items():
            found = {each.name: [notes.whole(job) for job in _of(each, jobs)] for each in settings}
            cases.append(case(options, mbit, _measured_mbit(mbit), found, losses))
    if not options.json:
        _print_tables(cases)
    return cases


def _job(options: argparse.Namespace, mbit: float | None, setting: Setting, seed: int, validate: bool) -> dict:
    steps = options.steps if validate else _WARMUP_UPDATES + options.repeats + 1  # the last one's end is not noted
    own = {"mbit": mbit, **asdict(setting), "seed": seed, "steps": steps, "validate": validate}
    return own | {name: getattr(options, name) for name in _SIZES}


def _setting(job: dict) -> Setting:
    return Setting(job["rank"], job["wire"], job["overlapped"])


def _of(setting: Setting, jobs: list[dict]) -> list[dict]:
    return [job for job in jobs if _setting(job) == setting]


class Notes:
    """What came of each training, in a file that the trainings add lines to.

    Args:
        file: perhaps that of an interrupted benchmark
    """

    def __init__(self, file: Path):
        self.file = file.absolute()
        self.read()

    def read(self) -> None:
        """Take in what the file has now."""
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        records = [json.loads(line) for line in lines]
        self._found = {json.dumps(record["job"], sort_keys=True): record for record in records}

    def of(self, job: dict) -> dict | None:
        """None when it has not been run."""
        return self._found.get(json.dumps(job, sort_keys=True))

    def whole(self, job: dict) -> dict:
        """Of a job that has been run."""
        return self._found[json.dumps(job, sort_keys=True)]


def _train(jobs: list[dict], folder: Path, notes: Notes) -> None:
    """Run jobs over one link and note what comes of them."""
    for first in range(0, len(jobs), _JOBS_TOGETHER):
        some = jobs[first : first + _JOBS_TOGETHER]
        mbit = some[0]["mbit"]
        names = "; ".join(f"{_setting(job).name} (seed {job['seed']})" for job in some)
        link = "no limit" if mbit is None else f"{mbit:g} Mbit/s"
        print(f"{link}, {some[0]['steps']} updates each: {names}", file=sys.stderr, flush=True)
        jobs_file = folder / "jobs.json"
        jobs_file.write_text(json.dumps(some))
        command = [sys.executable, str(_WORKER), str(jobs_file), str(folder), str(notes.file)]
        with machines.joined(_MACHINES, mbit) as joined:
            machines.run(joined, command, _PER_MACHINE, _TIMEOUT_S)
        notes.read()


def _measured_mbit(mbit: float) -> float:
    with machines.joined(_MACHINES, mbit) as joined:
        return machines.measured_mbit(joined[0], joined[1], int(mbit * 1e6 / 8))  # about a second's worth


def case(
    options: argparse.Namespace,
    mbit: float,
    measured_mbit: float,
    timed: dict[str, list[dict]],
    losses: dict[str, list[float]],
) -> dict:
    """The result for one link.

    Args:
        mbit: its limit
        measured_mbit: what a plain socket reached
        timed: by setting, the notes of its timed trainings
        losses: by setting, held-out losses by seed; ranks from the smallest
    """
    loss = {name: statistics.mean(values) for name, values in losses.items()}
    ranks = [name for name in loss if name not in (_UNCOMPRESSED, _IN_16_BITS)]
    bad = [name for name in ranks if loss[name] > (1 + _TOLERANCE) * loss[_UNCOMPRESSED]]
    good = ranks[ranks.index(bad[-1]) + 1 :] if bad else ranks
    chosen = good[0] if good else min(ranks, key=loss.__getitem__)
    rates, sent, exposed_s = {}, {}, {}
    for name, notes in timed.items():
        rates[name] = [1 / value for of_one in notes for value in of_one["update_s"][_WARMUP_UPDATES:]]
        sent[name] = statistics.median([n for of_one in notes for n in of_one["sent_bytes"][_WARMUP_UPDATES:]])
        exposed_s[name] = statistics.median([n for of_one in notes for n in of_one["exposed_s"][_WARMUP_UPDATES:]])
    updates_per_s = {name: statistics.median(values) for name, values in rates.items()}
    bytes_per_s = measured_mbit * 1e6 / 8
    peers = {name: updates_per_s[name] for name in (_UNCOMPRESSED, _IN_16_BITS)}
    peers[_AFTER] = updates_per_s[_after(chosen)]
    return {
        "name": f"link {mbit:g} Mbit/s, rank {chosen}",
        "unit": "updates/s",
        "ours": updates_per_s[chosen],
        "peers": peers,
        "ratio": {peer: updates_per_s[chosen] / value for peer, value in peers.items()},
        "limit": bytes_per_s / sent[chosen],
        "fraction_of_limit": updates_per_s[chosen] * sent[chosen] / bytes_per_s,
        "loss": loss,
        "loss_by_seed": losses,
        "loss_above_uncompressed": loss[chosen] / loss[_UNCOMPRESSED] - 1,
        "updates_per_s": updates_per_s,
        "spread": {name: [max(values), min(values)] for name, values in rates.items()},
        "sent_bytes_per_update": sent,
        "exposed_s": exposed_s,
        "exposed_of_after_backward": exposed_s[chosen] / exposed_s[_after(chosen)],
        "peak_memory_bytes": max(of_one["peak_memory_bytes"] for notes in timed.values() for of_one in notes),
        "settings": {
            "mbit": mbit,
            "measured_mbit": measured_mbit,
            "machines": _MACHINES,
            "processes_per_machine": _PER_MACHINE,
            "parameters": timed[chosen][0]["parameters"],
            "loss_without_limit": True,
            **{name: getattr(options, name) for name in ("ranks", "seeds", "steps", "repeats", *_SIZES)},
        },
    }


def _print_tables(cases: list[dict]) -> None:
    """A row for each setting; the loss is the same over every link, where it was not limited, and after the backward pass."""
    links = [f"{result['settings']['mbit']:g} Mbit/s" for result in cases]
    timed = " | ".join(f"updates/s, {link} | exposed, s" for link in links)
    print(f"| rank | held-out loss | above uncompressed | MB sent | {timed} |")
    print("|" + " --- |" * (4 + 2 * len(links)))
    loss = cases[0]["loss"]
    for name, sent_bytes in cases[0]["sent_bytes_per_update"].items():
        rates = []
        for result in cases:
            rate = result["updates_per_s"]
            rates.append(
                f"{rate[name]:.3f} ({rate[name] / rate[_UNCOMPRESSED]:.2f} ×) | {result['exposed_s'][name]:.2f}"
            )
        told = " | "
        if name in loss:
            by_seed = ", ".join(f"{value:.4f}" for value in cases[0]["loss_by_seed"][name])
            told = f"{loss[name]:.4f} ({by_seed}) | {loss[name] / loss[_UNCOMPRESSED] - 1:+.1%}"
        print(f"| {name} | {told} | {sent_bytes / 1e6:.2f} | {' | '.join(rates)} |")
