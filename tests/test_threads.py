"""The thread pool, and how many threads a process may run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lola_cpp import _core

testing = _core.testing


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_every_index_of_every_loop_is_visited_once(threads: int, count: int) -> None:
    assert testing.pool_visits(threads=threads, loops=300, count=count) == [300] * count


def test_the_first_exception_of_a_body_reaches_the_caller_and_the_pool_goes_on() -> None:
    visits = testing.pool_visits(threads=3, loops=50, count=20, bad=5)
    assert visits[5] == 0
    assert max(visits) <= 50


def test_loops_end_while_other_threads_take_the_cores() -> None:
    pools = [threading.Thread(target=lambda: testing.pool_visits(threads=4, loops=200, count=8)) for _ in range(4)]
    for pool in pools:
        pool.start()
    assert testing.pool_visits(threads=4, loops=200, count=8) == [200] * 8
    for pool in pools:
        pool.join()


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_smallest_quota_of_a_cgroup_and_its_parents_counts(tmp_path: Path) -> None:
    write(tmp_path / "list", "0::/a/b\n")
    write(tmp_path / "mount/cpu.max", "max 100000\n")
    write(tmp_path / "mount/a/cpu.max", "150000 100000\n")
    write(tmp_path / "mount/a/b/cpu.max", "400000 100000\n")
    assert testing.cgroup_cpu_quota(tmp_path / "list", tmp_path / "mount") == 1.5


def test_quotas_of_the_first_version_of_cgroups_count(tmp_path: Path) -> None:
    write(tmp_path / "list", "5:memory:/x\n4:cpuacct,cpu:/a\n1:cpuset:/y\n")
    write(tmp_path / "mount/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "mount/cpu/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "mount/cpu/a/cpu.cfs_quota_us", "300000\n")
    write(tmp_path / "mount/cpu/a/cpu.cfs_period_us", "100000\n")
    assert testing.cgroup_cpu_quota(tmp_path / "list", tmp_path / "mount") == 3


@pytest.mark.parametrize("text", ["", "nonsense\n", "0::/\n", "0::/not/there\n", "4:cpu:/a\n"])
def test_no_quota_is_no_limit(tmp_path: Path, text: str) -> None:
    write(tmp_path / "list", text)
    assert testing.cgroup_cpu_quota(tmp_path / "list", tmp_path) > 1e9


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_a_process_bound_to_one_core_has_one_thread() -> None:
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program += "from lola_cpp import _core; print(_core.testing.default_thread_count())"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "1"
