"""Memory and cores of machines and control groups that are made up."""

import os

import pytest

from dalle.machine import memory as module
from dalle.machine.memory import Memory, core_quota, cpu_finding, look_at_memory, memory_finding, num_cores

GB = 10**9


def _machine(root, cgroup, files, total_gb=64, available_gb=50):
    """A tree of `proc` and `sys` with these files."""
    info = f"MemTotal: {total_gb * GB // 1024} kB\nMemAvailable: {available_gb * GB // 1024} kB\nHugePages_Total: 0\n"
    for name, text in {"proc/meminfo": info, "proc/self/cgroup": cgroup, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


NEW = {
    "sys/fs/cgroup/job/memory.max": f"{16 * GB}\n",
    "sys/fs/cgroup/job/memory.current": f"{13 * GB}\n",
    "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {3 * GB}\n",
    "sys/fs/cgroup/job/step/memory.max": "max\n",
}
OLD = {
    "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": f"{16 * GB}\n",
    "sys/fs/cgroup/memory/docker/a/memory.usage_in_bytes": f"{13 * GB}\n",
    "sys/fs/cgroup/memory/docker/a/memory.stat": f"inactive_file 7\ntotal_inactive_file {3 * GB}\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
}
IN_CONTAINER = {
    "sys/fs/cgroup/memory.max": f"{16 * GB}\n",
    "sys/fs/cgroup/memory.current": f"{13 * GB}\n",
    "sys/fs/cgroup/memory.stat": f"inactive_file {3 * GB}\n",
}


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/job/step\n", NEW),
        ("5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n", OLD),
        ("0::/../../away\n", IN_CONTAINER),
        ("0::/system.slice/not-mounted-here\n", IN_CONTAINER),
    ],
)
def test_the_tightest_control_group_around_the_process_counts(tmp_path, cgroup, files):
    found = look_at_memory(_machine(tmp_path, cgroup, files))
    # 16 GB less 13 that are used, of which 3 are pages of files
    assert found.limit == 16 * GB == found.usable and found.available == 6 * GB
    assert found.total == pytest.approx(64 * GB, abs=1024)


def test_without_a_limit_it_is_the_machines(tmp_path):
    found = look_at_memory(_machine(tmp_path, "0::/job\n", {"sys/fs/cgroup/job/memory.max": "max\n"}))
    assert found.limit is None and found.usable == found.total
    assert found.available == pytest.approx(50 * GB, abs=1024)
    # where there is no Linux, what the system says
    nothing = look_at_memory(tmp_path / "nowhere")
    assert nothing.total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") == nothing.available


def test_a_limit_above_the_machine_or_less_free_than_it(tmp_path):
    files = {"sys/fs/cgroup/job/memory.max": f"{100 * GB}", "sys/fs/cgroup/job/memory.current": "0"}
    assert look_at_memory(_machine(tmp_path / "a", "0::/job\n", files)).limit is None
    files = {"sys/fs/cgroup/job/memory.max": f"{60 * GB}", "sys/fs/cgroup/job/memory.current": "0"}
    assert look_at_memory(_machine(tmp_path / "b", "0::/job\n", files, available_gb=2)).available < 2.001 * GB


@pytest.mark.parametrize(
    ("memory", "verdict", "words"),
    [
        (Memory(64 * GB, None, 50 * GB), "ok", "64.0 GB, 50.0 GB available"),
        (Memory(64 * GB, 2 * GB, GB), "fail", "control group may use 2.0 GB"),
        (Memory(64 * GB, 2 * GB, GB), "fail", "give the container or job more"),
        (Memory(8 * GB, None, GB), "fail", "close other programs"),
        (Memory(8 * GB, None, 3 * GB), "warn", "lower --run.batch_size"),
    ],
)
def test_what_is_said_of_memory(memory, verdict, words):
    found = memory_finding(memory)
    assert found.verdict == verdict and words in found.line()


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/a/b\n", {"sys/fs/cgroup/a/cpu.max": "150000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 1.5),
        (
            "3:cpu,cpuacct:/x\n",
            {
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            "3:cpu:/x\n",
            {"sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        ("", {}, None),
    ],
)
def test_the_time_that_a_control_group_gets(tmp_path, cgroup, files, quota):
    assert core_quota(_machine(tmp_path, cgroup, files)) == quota


@pytest.mark.parametrize(
    ("cores", "quota", "load", "verdict", "words"),
    [
        (8, None, 2.0, "ok", "it, 8 cores"),
        (1, 4.0, 1.0, "ok", "it, 1 core"),
        (8, 2.5, 2.0, "warn", "set OMP_NUM_THREADS=2"),
        (8, 0.5, 0.0, "warn", "set OMP_NUM_THREADS=1"),
        (2, None, 3.5, "warn", "3.5 programs wanted one"),
    ],
)
def test_what_is_said_of_the_cpu(cores, quota, load, verdict, words):
    found = cpu_finding(cores, quota, load, "it")
    assert found.verdict == verdict and words in found.line()


def test_this_machine():
    assert num_cores() == len(os.sched_getaffinity(0))
    assert 0 < look_at_memory().available <= look_at_memory().total
    assert module.processor_name()
