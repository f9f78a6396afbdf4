"""Hung, dead and differing ranks, with real gloo processes: all end in bounded time, and who was at fault is named."""

import faulthandler
import multiprocessing
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dalle.cluster import watch as watching
from dalle.cluster.agreement import check_same, facts
from dalle.cluster.topology import joined
from dalle.cluster.watch import EXIT_CODE, Watch
from dalle.cluster.watch_hub import Hub, Limits, Member, judge, spans
from dalle.config import DrawShapes

LIMIT_S = 3.0
LIMITS = Limits.of(LIMIT_S)
# noticed, judged and told within so long; the rest is for two busy cores
BOUND_S = LIMITS.silent_s + LIMITS.settle_s + 4 * LIMITS.beat_s + 5.0
RANK_2 = r"rank 2 \(host \S+, process \d+\)"


class Ranks:
    """Processes that train nothing together, forked from one that has imported everything."""

    def __init__(self, folder: Path, count: int, act):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        places = [
            {
                **{"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                **{"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count), "CUDA_VISIBLE_DEVICES": ""},
            }
            for rank in range(count)
        ]
        self.processes = [context.Process(target=_start, args=(place, folder, act), daemon=True) for place in places]

    def __enter__(self) -> "Ranks":
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *error) -> None:
        for process in self.processes:
            process.kill()

    def wait_until_training(self) -> None:
        deadline = time.monotonic() + 60
        while len(list(self.folder.glob("*.training"))) < len(self.processes):
            assert time.monotonic() < deadline, self.errors()
            time.sleep(0.05)

    def signal(self, rank: int, number: int) -> None:
        os.kill(self.processes[rank].pid, number)

    def exit_codes(self, *ranks: int) -> list[int | None]:
        """Of these ranks, once they have ended; None for those that have not within the bound."""
        deadline = time.monotonic() + BOUND_S
        for rank in ranks:
            self.processes[rank].join(max(0.0, deadline - time.monotonic()))
        return [self.processes[rank].exitcode for rank in ranks]

    def errors(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.stderr")))


def _start(place: dict[str, str], folder: Path, act) -> None:
    os.dup2(os.open(folder / f"{place['RANK']}.stderr", os.O_CREAT | os.O_WRONLY), 2)
    os.environ.update(place)
    torch.set_num_threads(1)
    with joined() as world:
        act(world, folder)


def _train(world, folder: Path, steps: int = 1_000_000, before=lambda rank, step: None) -> None:
    with Watch(world, LIMIT_S) as watch:
        for step in range(steps):
            watch.mark(step, "waiting for data")
            before(world.rank, step)
            watch.mark(step, "update")
            world.sum(torch.ones(1))
            if step == 3:
                (folder / f"{world.rank}.training").touch()
            time.sleep(0.01)


def _train_alone(world, folder: Path) -> None:
    """As with NCCL, where a collective does not end because a peer has."""
    with Watch(world, 20 * LIMIT_S) as watch:
        watch.mark(7, "update")
        (folder / f"{world.rank}.training").touch()
        time.sleep(600)


def _stall(rank: int, step: int) -> None:
    if (rank, step) == (2, 5):
        time.sleep(600)


def _stall_in_data(world, folder: Path) -> None:
    _train(world, folder, before=_stall)


def _fail(rank: int, step: int) -> None:
    if (rank, step) == (2, 5):
        raise ValueError("the shard is\ndamaged")


def _fail_in_one(world, folder: Path) -> None:
    _train(world, folder, before=_fail)


def _fail_in_all(world, folder: Path) -> None:
    with Watch(world, 30 * LIMIT_S):
        time.sleep(0.3 * world.rank)
        raise ValueError("the loss is not finite")


def _finish_one_by_one(world, folder: Path) -> None:
    _train(world, folder, steps=5)
    with Watch(world, LIMIT_S) as watch:  # a second one in the same process; rank 0 waits longer than the limit
        for part in range(world.rank):
            watch.mark(part, "saving a checkpoint")
            time.sleep(0.6 * LIMIT_S)


def _finish_while_the_hub_is_slow(world, folder: Path) -> None:
    """Rank 0 hears first that all is over, and its process ends as soon as it may."""
    send = Hub._send

    def send_one_by_one(hub, ranks, data: bytes, wait_s: float = 0.0) -> None:
        for rank in sorted(ranks):
            send(hub, [rank], data, wait_s)
            time.sleep(0.3 if b"over" in data else 0)

    Hub._send = send_one_by_one
    with Watch(world, LIMIT_S):
        pass
    os._exit(0)


def _without_a_timer(world, folder: Path) -> None:
    """There is no memory for the timer's thread, as often as it is begun."""

    def begin(*_, **options) -> None:
        raise RuntimeError("unable to start watchdog thread")

    faulthandler.dump_traceback_later = begin
    with Watch(world, LIMIT_S) as watch:
        (folder / f"{world.rank}.training").touch()
        for step in range(6):
            watch.mark(step, "update")
            time.sleep(LIMITS.beat_s)
    os._exit(0)


def _differ(world, folder: Path) -> None:
    same = facts(DrawShapes(output="x"))
    check_same(world, same)
    (folder / f"{world.rank}.training").touch()
    other = facts(replace(DrawShapes(output="x"), seed=3)) | {"dalle code": "3f2a"}
    check_same(world, other if world.rank == 2 else same)


@pytest.mark.parametrize("act", [_train, _train_alone])
def test_a_killed_rank_is_named(tmp_path, act):
    with Ranks(tmp_path, 3, act) as ranks:
        ranks.wait_until_training()
        ranks.signal(2, signal.SIGKILL)
        assert ranks.exit_codes(0, 1) == [EXIT_CODE, EXIT_CODE]
        # one line in all, for all three share the machine, and none of the collective's own complaint
        assert re.fullmatch(RANK_2 + r" has ended, last seen .* update \d+; ending\n+", ranks.errors())


def test_a_watch_without_memory_for_its_timer_goes_on(tmp_path):
    with Ranks(tmp_path, 2, _without_a_timer) as ranks:
        assert ranks.exit_codes(0, 1) == [0, 0] and ranks.errors() == ""


@pytest.mark.parametrize("write", [watching._write_within, watching._write_without_a_thread])
def test_what_is_said_at_the_end_is_written_as_far_as_somebody_reads(write):
    text = bytes(range(256)) * 2000

    def written(seconds, reader):
        """What is read of it by the end."""
        end, into = os.pipe()
        os.write(into, b"x")  # so that no number of whole pages fits
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(reader, end)
            began_s = time.monotonic()
            write(seconds, into, text)
            took_s = time.monotonic() - began_s
            rest = b"" if reader is _all_of else os.read(end, 2**20)
            os.close(into)
            found = reading.result() + rest
        os.close(end)
        return found[1:], took_s

    found, took_s = written(0.3, lambda end: b"")
    assert 0.3 <= took_s < 3 and 4096 <= len(found) < len(text) and text.startswith(found)
    found, took_s = written(30.0, _all_of)
    assert found == text and took_s < 10
    found, took_s = written(0.3, _a_little_at_a_time)
    assert 0.3 <= took_s < 3 and len(found) < len(text)
    write(0.3, 2**20, text)  # no such file
    with open(os.devnull) as unwritable:
        write(0.3, unwritable.fileno(), text)


def _all_of(end):
    return b"".join(iter(lambda: os.read(end, 2**16), b""))


def _a_little_at_a_time(end):
    found, until_s = b"", time.monotonic() + 3
    while time.monotonic() < until_s and len(found) < 2**17:
        found += os.read(end, 4096)
        time.sleep(0.05)
    return found


def test_without_memory_for_a_thread_the_last_words_are_written_all_the_same(monkeypatch):
    def begin(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(watching, "Thread", begin)
    end, into = os.pipe()
    watching._write_within(5.0, into, b"ending")
    assert os.read(end, 100) == b"ending"
    os.close(end), os.close(into)


def test_a_suspended_rank_is_named_and_ends_itself(tmp_path):
    with Ranks(tmp_path, 3, _train) as ranks:
        ranks.wait_until_training()
        ranks.signal(2, signal.SIGSTOP)
        assert ranks.exit_codes(0, 1) == [EXIT_CODE, EXIT_CODE]
        assert re.fullmatch(RANK_2 + r" has been silent for \d s, last seen .* update \d+; ending\n+", ranks.errors())
        ranks.signal(2, signal.SIGCONT)
        assert ranks.exit_codes(2)[0] not in (0, None)


def test_a_rank_without_data_is_named(tmp_path):
    with Ranks(tmp_path, 3, _stall_in_data) as ranks:
        assert ranks.exit_codes(0, 1, 2) == [EXIT_CODE] * 3, ranks.errors()
    line, _, stacks = ranks.errors().partition("\n")
    waiting = (
        " has not moved for 3 s, waiting for data at update 5, while ranks 0-1 .* are further, in update 5; ending"
    )
    assert re.fullmatch(RANK_2 + waiting, line)
    # the odd one out first, with the line it stands in
    assert (
        re.match(rf"main thread of {RANK_2}:", stacks)
        and "time.sleep(600)" in stacks.partition("main thread of ranks 0-1")[0]
    )
    assert "all_reduce" in stacks.partition("main thread of ranks 0-1")[2]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_death_of_rank_0_is_noticed(tmp_path, number):
    with Ranks(tmp_path, 3, _train) as ranks:
        ranks.wait_until_training()
        ranks.signal(0, number)
        assert ranks.exit_codes(1, 2) == [EXIT_CODE, EXIT_CODE]
        what = "has ended" if number == signal.SIGKILL else r"has been silent for \d s"
        line = rf"rank 0 \(host \S+, process \d+\) {what}, noticed in update \d+; ending\n+"
        assert re.fullmatch(line, ranks.errors())


def test_an_error_of_one_rank_ends_the_others(tmp_path):
    with Ranks(tmp_path, 3, _fail_in_one) as ranks:
        assert ranks.exit_codes(0, 1, 2) == [1, 1, 1]
    assert re.search(
        RANK_2 + r" failed waiting for data at update 5: ValueError: the shard is damaged; ending", ranks.errors()
    )


def test_an_error_of_all_ranks_is_everyones_own(tmp_path):
    with Ranks(tmp_path, 3, _fail_in_all) as ranks:
        assert ranks.exit_codes(0, 1, 2) == [1, 1, 1]
    assert ranks.errors().count("ValueError: the loss is not finite") == 3
    assert "ending" not in ranks.errors()


def test_ranks_may_finish_one_by_one(tmp_path):
    with Ranks(tmp_path, 3, _finish_one_by_one) as ranks:
        assert ranks.exit_codes(0, 1, 2) == [0, 0, 0]
    assert ranks.errors() == ""


def test_all_hear_that_all_is_over(tmp_path):
    with Ranks(tmp_path, 3, _finish_while_the_hub_is_slow) as ranks:
        assert ranks.exit_codes(0, 1, 2) == [0, 0, 0]
    assert ranks.errors() == ""


def test_a_rank_that_differs_is_named_on_all(tmp_path):
    with Ranks(tmp_path, 3, _differ) as ranks:
        ranks.wait_until_training()  # what is the same passes
        assert ranks.exit_codes(0, 1, 2) == [1, 1, 1]
    code = facts(DrawShapes(output="x"))["dalle code"]
    line = (
        rf"ValueError: {RANK_2}: dalle code 3f2a differs from rank 0's {code}; {RANK_2}: seed 3 differs from rank 0's 0"
    )
    assert len(re.findall(line, ranks.errors())) == 3


@pytest.mark.parametrize(
    "said",
    [b"[" * 60_000 + b"\n", b'{"token": 1e999}\n', b"\xff\n", b"null\n", b'{"token": "other", "rank": 0}\n', b""],
)
def test_connections_of_strangers_end_no_watch(said):
    """Whatever they say, or that they say nothing and are very many: the ranks are heard, and all ends in order."""
    listener = socket.create_server(("127.0.0.1", 0))
    hub = Hub(listener, "secret", _members(1), LIMITS)
    hub.start()
    address = listener.getsockname()
    strangers = [socket.create_connection(address) for _ in range(1 if said else 200)]
    if said:
        strangers[0].sendall(said)
        strangers[0].settimeout(20)
        while strangers[0].recv(100):  # until it is sent away
            pass
    with socket.create_connection(address) as rank:
        rank.settimeout(20)
        rank.sendall(b'{"token": "secret", "rank": 0}\n{"left": true}\n')
        heard = b""
        while b"over" not in heard:
            data = rank.recv(100)
            assert data, "the hub has ended"
            heard += data
    assert hub.join(20)
    assert len(hub._received) <= 1 + 64 + len(hub.members)
    for stranger in strangers:
        stranger.close()


def _members(count: int, **each) -> list[Member]:
    return [Member(rank, f"node-{rank // 8:02d}", 100 + rank, **each) for rank in range(count)]


def test_a_lost_machine_is_one_of_many():
    members = _members(1024, step=1200, phase="update")
    for member in members:
        member.heard_s = 39.0 if member.host == "node-07" else 99.0
    verdict = judge(members, Limits.of(600), now_s=100.0)
    assert verdict.line == "ranks 56-63 (host node-07) have been silent for 61 s, last seen in update 1200; ending"
    assert verdict.gone == list(range(56, 64))


def test_what_follows_from_a_death_is_not_blamed():
    """A collective raises where a peer is gone; that may be heard of before the death is."""
    members = _members(4, heard_s=100.0)
    members[1].state, members[1].since_s, members[1].error = "failed", 99.0, "RuntimeError: connection closed"
    assert judge(members, Limits.of(600), now_s=100.0) is None  # the cause may still come
    members[3].state, members[3].since_s = "ended", 99.5
    assert judge(members, Limits.of(600), now_s=102.4) is None
    assert judge(members, Limits.of(600), now_s=102.6).gone == [3]


def test_who_is_behind_is_named():
    members = _members(16, step=8, phase="update", still_s=601.0)
    verdict = judge(members, Limits.of(600), now_s=0.0)
    assert verdict.line == (
        "ranks 0-15 (hosts node-00, node-01) have not moved for 601 s, in update 8: no rank is behind the others; ending"
    )
    members[9].step = 7
    verdict = judge(members, Limits.of(600), now_s=0.0)
    assert verdict.line.startswith(
        "rank 9 (host node-01, process 109) has not moved for 601 s, in update 7, while ranks 0-8"
    )
    members[9].step, members[9].number, members[9].phase = 8, -1, "waiting for data"  # however long ago that began
    members[9].still_s = 10.0
    verdict = judge(members, Limits.of(600), now_s=0.0)
    assert verdict.line.startswith(
        "rank 9 (host node-01, process 109) has not moved for 10 s, waiting for data at update 8"
    )
    assert judge(_members(2, still_s=599.0), Limits.of(600), now_s=0.0) is None


def test_spans():
    assert spans([7, 0, 1, 2, 9, 10]) == "0-2, 7, 9-10"


def test_limits_of_a_long_run():
    """The minute and the three seconds that the documentation promises."""
    limits = Limits.of(600.0)
    assert (limits.still_s, limits.silent_s, limits.settle_s, limits.beat_s) == (600.0, 60.0, 3.0, 3.0)
