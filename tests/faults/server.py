"""Runs commands in processes that are forked from this one, which has imported all that they need and has the shim before its C
library: a trial takes the time of its work alone.

On its standard input comes a line for each, JSON: `command`, a console script's function as `module:function`; `arguments`;
`folder` whose changes are counted; `at`, the number of the call, from 0, at which the fault is, −1 for none; `error`, its errno,
0 for a kill; `log`, the file for what it says. The answer is a line with `code`, negative of a signal, and `calls`.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress

_MOST_S = 300.0


def _run(trial: dict, told: int) -> None:
    """In a process of its own, which it ends."""
    log = os.open(trial["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    module, _, function = trial["command"].partition(":")
    sys.argv = [function, *trial["arguments"]]
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    shim.fault_arm(
        trial["folder"].encode(), ctypes.c_long(trial["at"] if trial["at"] >= 0 else 1 << 60), trial["error"]
    )
    code = 0
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    calls = shim.fault_calls()
    shim.fault_arm(b"/", ctypes.c_long(-1), 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(told, json.dumps(calls).encode())
    os._exit(code)


def main() -> None:
    import torch

    from dalle.outputs import whole

    for module in sys.argv[1:]:
        importlib.import_module(module)
    torch.set_num_threads(1)
    whole._ASK_EVERY_S, whole._PATIENCE_S = 0.0, 2.0
    print("ready", flush=True)
    for line in sys.stdin:
        trial = json.loads(line)
        hears, tells = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(hears)
            os.setsid()
            _run(trial, tells)
        os.close(tells)
        until_s = time.monotonic() + _MOST_S
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > until_s:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.005)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # its loader workers, if any are left
        counted = os.read(hears, 100)
        os.close(hears)
        answer = {"code": os.waitstatus_to_exitcode(ended[1]), "calls": int(counted or b"0")}
        answer["late"] = time.monotonic() > until_s
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
