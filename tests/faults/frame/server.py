"""Runs commands in processes that are forked from this one, which has imported all that they need and has the shim before its C
library: a trial takes the time of its work alone.

On its standard input comes a line for each, JSON: `command`, a console script's function as `module:function`; `arguments`;
`processes` that are to find one another, as a launcher starts them; `log`, the file for what the first says, that of the others
with their number behind it. `folder` whose changes are counted; `at`, the number of the call, from 0, at which the fault is, −1
for none; `error`, its errno, 0 for a kill; `lasts`, whether all calls from then on fail. Or `each_us` that each call takes longer.
Or `clock`, which jumps. Or `memory_bytes` of address space beyond what is taken. Or
`after_s`, when `victims` of the processes are killed. The answer is a line with `codes`, negative of a signal, `calls`, `took_s`,
`late` where it took too long, and `ended`, which processes a launcher had to end after others were killed: it gives them some time
to do so themselves.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from tests.processes import free_port

_MOST_S = 300.0
_SOON_S = 0.002
_GRACE_S = 30.0


def _run(trial: dict, rank: int, port: int, told: int) -> None:
    """In a process of its own, which it ends."""
    log = os.open(trial["log"] + (f"-{rank}" if rank else ""), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    if trial["processes"] > 1:
        size = str(trial["processes"])
        place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
    module, _, function = trial["command"].partition(":")
    sys.argv = [function, *trial["arguments"]]
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    at = ctypes.c_long(trial["at"] if trial["at"] >= 0 else 1 << 60)
    shim.fault_arm(trial["folder"].encode(), at, trial["error"], trial["lasts"], trial["each_us"])
    if trial["clock"]:
        shim.fault_clock()
        assert abs(time.time() - time.time()) > 1e5, "the clock does not jump"
    if trial["memory_bytes"] >= 0:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + trial["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    code = 0
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    calls = shim.fault_calls()
    shim.fault_arm(b"/", ctypes.c_long(-1), 0, 0, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    if not rank:
        os.write(told, json.dumps(calls).encode())
    os._exit(code)


def _watched(children: list[int], trial: dict) -> dict:
    """How they ended, of which some are killed."""
    began_s, ended, late, to_kill = time.monotonic(), dict[int, int](), False, list(trial["victims"])
    told: list[int] = []
    first_s = float("inf")  # when one ended badly, first of all
    while len(ended) < len(children):
        for child in children:
            if child not in ended and (found := os.waitpid(child, os.WNOHANG))[0]:
                ended[child] = os.waitstatus_to_exitcode(found[1])
        passed_s = time.monotonic() - began_s
        if any(ended.values()):
            first_s = min(first_s, passed_s)
        if to_kill and passed_s >= trial["after_s"]:
            for child in [children[rank] for rank in to_kill if children[rank] not in ended]:
                os.kill(child, signal.SIGKILL)
            to_kill = []
        if passed_s > first_s + _GRACE_S and not told:
            told = [rank for rank, child in enumerate(children) if child not in ended]
            for rank in told:
                os.kill(children[rank], signal.SIGKILL)
        if passed_s > _MOST_S:
            late = True
            for child in children:
                with suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
        time.sleep(_SOON_S)
    for child in children:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # its loader workers, if any are left
    took_s = time.monotonic() - began_s
    return {"codes": [ended[child] for child in children], "late": late, "ended": told, "took_s": took_s}


def main() -> None:
    import torch

    from dalle.models.clip import ready_torchvision
    from dalle.outputs import threads, whole

    ready_torchvision()
    for module in sys.argv[1:]:
        importlib.import_module(module)
    torch.set_num_threads(1)
    whole._ASK_EVERY_S, whole._PATIENCE_S, threads._PATIENCE_S = 0.0, 2.0, 2.0
    print("ready", flush=True)
    for line in sys.stdin:
        trial = json.loads(line)
        hears, tells = os.pipe()
        port, children = free_port(), []
        for rank in range(trial["processes"]):
            child = os.fork()
            if child == 0:
                os.close(hears)
                os.setsid()
                _run(trial, rank, port, tells)
            children.append(child)
        os.close(tells)
        answer = _watched(children, trial)
        counted = os.read(hears, 100)
        os.close(hears)
        print(json.dumps(answer | {"calls": int(counted or b"0")}), flush=True)


if __name__ == "__main__":
    main()
