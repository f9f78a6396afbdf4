"""What is said of processes that train together: DeepSpeed, and a sum over two of them that is really made."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

from dalle.machine.asking import Asked, Told, asked
from dalle.machine.finding import Finding

_ENGINE, _MEMBER = "dalle.machine.probes.engine", "dalle.machine.probes.collective"
_LOOPBACK = "127.0.0.1"
_NETWORK = (
    "does a firewall stand between processes of this machine, or does /etc/hosts name it wrongly? Set "
    "GLOO_SOCKET_IFNAME=lo to try"
)
_GPUS = "NCCL_DEBUG=INFO tells more; NCCL_P2P_DISABLE=1, or a larger /dev/shm, often helps"


def deepspeed_finding(timeout_s: float = 180.0) -> Finding:
    """Whether it loads."""
    told = asked(_ENGINE, timeout_s=timeout_s)
    if "failed" in told:
        return Finding("DeepSpeed", "fail", f"does not load: {told['failed']}", "pip install 'deepspeed==0.19.*'")
    return Finding("DeepSpeed", "ok", f"{told['deepspeed']} loads")


def group_findings(gpus: int, timeout_s: float = 120.0) -> Iterator[Finding]:
    """Of gloo on the CPU, with two processes, and of NCCL on the GPUs: with two where there are two, with one where there is one.
    gpus: how many PyTorch sees."""
    yield group_finding("gloo", summed(2, gpus=False, timeout_s=timeout_s), 2)
    if gpus:
        size = min(2, gpus)
        yield group_finding("NCCL", summed(size, gpus=True, timeout_s=timeout_s), size)


def group_finding(backend: str, told: list[Told], size: int) -> Finding:
    """Whether all of them have the right sum. told: by each process of `dalle.machine.probes.collective`, first to last."""
    name = f"collective, {backend}"
    advice = _NETWORK if backend == "gloo" else _GPUS
    for rank, each in enumerate(told):
        if "failed" in each:
            return Finding(name, "fail", f"process {rank} of {size}: {each['failed']}", advice)
        expected = float(sum(10**number for number in range(size)))
        if each["sums"] != [expected] or each["backend"] != backend or each["size"] != size:
            found = f"{each['sums'][:3]} by {each['backend']} over {each['size']}"
            return Finding(name, "fail", f"process {rank} of {size} has {found}, not {expected:g}", advice)
    slowest_s = max(each["seconds"] for each in told)
    return Finding(name, "ok", f"a sum over {size} process{'es' * (size > 1)} is right, in {1000 * slowest_s:.0f} ms")


def summed(size: int, gpus: bool, timeout_s: float, start: Callable[..., Asked] = Asked) -> list[Told]:
    """What each of so many processes tells of a sum over all of them.

    Args:
        size: number of processes
        gpus: on a GPU each; else on the CPU
        timeout_s: for each
        start: starts one
    """
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port = probe.getsockname()[1]
    members = []
    for rank in range(size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        environment = {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": _LOOPBACK}
        environment |= {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
        members.append(start(_MEMBER, timeout_s=timeout_s, environment=environment))
    told: list[Told] = []
    for member in members:
        told.append({name: value for each in member.answers() for name, value in each.items()})
    return told
