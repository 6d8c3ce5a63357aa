"""Cores and memory that a process may use, in made-up trees of /proc and /sys."""

import math
import os
from pathlib import Path

import pytest

from normbench import machine as machines

V1 = "30 24 0:26 {top} {point} rw,nosuid - cgroup cgroup rw,cpu,cpuacct"
MEMORY = "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V2 = "32 24 0:28 {top} {point} rw shared:9 - cgroup2 cgroup2 rw,nsdelegate"
OTHER = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


class Machine:
    """A root directory that looks like that of a machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)

    def mounts(self, *lines: str) -> None:
        (self.root / "proc/self/mountinfo").write_text("\n".join([OTHER, *lines, ""]))

    def groups(self, *lines: str) -> None:
        (self.root / "proc/self/cgroup").write_text("\n".join([*lines, ""]))

    def v1(self, group: str, quota: int, period: int = 100_000) -> None:
        (self.root / group).mkdir(parents=True, exist_ok=True)
        (self.root / group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (self.root / group / "cpu.cfs_period_us").write_text(f"{period}\n")

    def v2(self, group: str, content: str) -> None:
        (self.root / group).mkdir(parents=True, exist_ok=True)
        (self.root / group / "cpu.max").write_text(f"{content}\n")

    def meminfo(self, available: int) -> None:
        (self.root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {available} kB\nOdd\n")

    def memory_v1(self, group: str, limit: int, usage: int, cache: int = 0) -> None:
        (self.root / group).mkdir(parents=True, exist_ok=True)
        (self.root / group / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (self.root / group / "memory.usage_in_bytes").write_text(f"{usage}\n")
        (self.root / group / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {cache}\n")

    def memory_v2(self, group: str, limit: str, usage: int, cache: int = 0) -> None:
        (self.root / group).mkdir(parents=True, exist_ok=True)
        (self.root / group / "memory.max").write_text(f"{limit}\n")
        (self.root / group / "memory.current").write_text(f"{usage}\n")
        (self.root / group / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")

    @property
    def memory(self) -> int:
        return machines.available_memory(self.root)

    @property
    def quota(self) -> float:
        return machines.cpu_quota(self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_version_1_by_every_group_up_to_the_root(machine: Machine) -> None:
    machine.mounts(MEMORY, V1.format(top="/", point="/sys/fs/cgroup/cpu,cpuacct"))
    machine.groups("9:memory:/elsewhere", "4:cpu,cpuacct:/batch/job", "1:name=systemd:/x", "0::/x")
    cpu = "sys/fs/cgroup/cpu,cpuacct"
    machine.v1(cpu, -1)
    machine.v1(f"{cpu}/batch/job", -1)
    machine.v1(f"{cpu}/elsewhere", 1000)
    assert machine.quota == math.inf
    machine.v1(f"{cpu}/batch", 250_000)
    assert machine.quota == 2.5
    machine.v1(f"{cpu}/batch/job", 75_000, 50_000)
    assert machine.quota == 1.5


def test_version_2_by_every_group_up_to_the_root(machine: Machine) -> None:
    machine.mounts(V2.format(top="/", point="/sys/fs/cgroup"))
    machine.groups("0::/user.slice/a.scope")
    machine.v2("sys/fs/cgroup/user.slice/a.scope", "max 100000")
    assert machine.quota == math.inf
    machine.v2("sys/fs/cgroup/user.slice", "300000 100000")
    assert machine.quota == 3
    machine.v2("sys/fs/cgroup/user.slice/a.scope", "50000 100000")
    assert machine.quota == 0.5
    machine.v2("sys/fs/cgroup/user.slice/a.scope", "800000 100000")
    assert machine.quota == 3, "the smallest counts, wherever it is"


def test_both_versions_at_once(machine: Machine) -> None:
    """The hybrid of systemd: controllers are of version 1, and version 2 has none; its groups differ."""
    machine.mounts(
        V1.format(top="/", point="/sys/fs/cgroup/cpu"), V2.format(top="/", point="/sys/fs/cgroup/unified")
    )
    machine.groups("1:cpu:/limited", "0::/unlimited")
    machine.v1("sys/fs/cgroup/cpu/limited", 200_000)
    (machine.root / "sys/fs/cgroup/unified/unlimited").mkdir(parents=True)
    assert machine.quota == 2
    machine.v2("sys/fs/cgroup/unified/unlimited", "100000 100000")
    assert machine.quota == 1


@pytest.mark.parametrize("name", ["/", "/../../other"])
def test_a_container_with_a_namespace_of_groups(machine: Machine, name: str) -> None:
    machine.mounts(V2.format(top="/", point="/sys/fs/cgroup"))
    machine.groups(f"0::{name}")
    machine.v2("sys/fs/cgroup", "150000 100000")
    assert machine.quota == 1.5


def test_a_container_without_one_sees_its_group_mounted(machine: Machine) -> None:
    machine.mounts(V1.format(top="/docker/abc", point="/sys/fs/cgroup/cpu"))
    machine.groups("4:cpu,cpuacct:/docker/abc")
    machine.v1("sys/fs/cgroup/cpu", 400_000)
    assert machine.quota == 4
    machine.groups("4:cpu,cpuacct:/docker/abc/inner")
    machine.v1("sys/fs/cgroup/cpu/inner", 100_000)
    assert machine.quota == 1


def test_a_mount_that_shows_only_other_groups_counts_by_what_it_shows(machine: Machine) -> None:
    machine.mounts(V1.format(top="/kubepods/other", point="/sys/fs/cgroup/cpu"))
    machine.groups("4:cpu:/kubepods/mine")
    machine.v1("sys/fs/cgroup/cpu", 100_000)
    assert machine.quota == 1


def test_a_mount_point_with_a_blank(machine: Machine) -> None:
    machine.mounts(V2.format(top="/", point="/control\\040groups"))
    machine.groups("0::/a")
    machine.v2("control groups/a", "100000 100000")
    assert machine.quota == 1


@pytest.mark.parametrize(
    "content", ["", "max", "100000", "100000 0", "0 100000", "-1 100000", "a b", "1 2 3"]
)
def test_what_cannot_be_understood_is_no_quota(machine: Machine, content: str) -> None:
    machine.mounts(V2.format(top="/", point="/sys/fs/cgroup"))
    machine.groups("0::/")
    machine.v2("sys/fs/cgroup", content)
    assert machine.quota == math.inf


def test_lines_of_another_form_are_passed_over(machine: Machine) -> None:
    machine.mounts("", "30 24", "1 2 3 / /x rw - cgroup", V2.format(top="/", point="/sys/fs/cgroup"))
    machine.groups("", "x", "7:", "0::/a")
    machine.v2("sys/fs/cgroup/a", "100000 100000")
    assert machine.quota == 1


def test_without_proc_there_is_no_quota(tmp_path: Path) -> None:
    assert machines.cpu_quota(tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "cores"), [(2.5, 3), (math.inf, 8), (99.0, 8), (0.2, 1), (1.0, 1)])
def test_cores_are_as_many_as_the_quota_carries(
    monkeypatch: pytest.MonkeyPatch, quota: float, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machines, "cpu_quota", lambda: quota)
    assert machines.cores() == cores


# ---- memory


def test_without_groups_memory_is_what_the_system_says(machine: Machine) -> None:
    machine.meminfo(available=3000)
    assert machine.memory == 3000 * 1024


def test_where_the_system_does_not_say_it_is_the_size_of_the_memory(tmp_path: Path) -> None:
    assert machines.available_memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_system_has_less_than_the_groups_allow(machine: Machine) -> None:
    machine.meminfo(available=1)
    machine.mounts(V2.format(top="/", point="/sys/fs/cgroup"))
    machine.groups("0::/a")
    machine.memory_v2("sys/fs/cgroup/a", "1000000", usage=0)
    assert machine.memory == 1024


def test_memory_of_version_1_by_every_group_up_to_the_root(machine: Machine) -> None:
    machine.meminfo(available=10**9)
    machine.mounts(MEMORY, V1.format(top="/", point="/sys/fs/cgroup/cpu"))
    machine.groups("9:memory:/batch/job", "4:cpu:/elsewhere", "0::/x")
    memory = "sys/fs/cgroup/memory"
    machine.memory_v1(memory, 9223372036854771712, usage=5000)
    machine.memory_v1(f"{memory}/batch", 900_000, usage=500_000, cache=100_000)
    machine.memory_v1(f"{memory}/batch/job", 800_000, usage=100_000)
    machine.memory_v1(f"{memory}/elsewhere", 10, usage=0)
    assert machine.memory == 500_000
    machine.memory_v1(f"{memory}/batch/job", 400_000, usage=100_000)
    assert machine.memory == 300_000


def test_memory_of_version_2_by_every_group_up_to_the_root(machine: Machine) -> None:
    machine.meminfo(available=10**9)
    machine.mounts(V2.format(top="/", point="/sys/fs/cgroup"))
    machine.groups("0::/user.slice/a.scope")
    machine.memory_v2("sys/fs/cgroup/user.slice/a.scope", "max", usage=1000)
    assert machine.memory == 10**9 * 1024
    machine.memory_v2("sys/fs/cgroup/user.slice", "900000", usage=500_000, cache=100_000)
    assert machine.memory == 500_000, "the page cache is dropped before anything fails"
    machine.memory_v2("sys/fs/cgroup/user.slice/a.scope", "1000", usage=3000)
    assert machine.memory == 0


def test_memory_in_a_container(machine: Machine) -> None:
    machine.meminfo(available=10**9)
    machine.mounts(MEMORY.replace(" / /sys", " /docker/abc /sys"))
    machine.groups("4:memory:/docker/abc")
    machine.memory_v1("sys/fs/cgroup/memory", 7000, usage=1000)
    assert machine.memory == 6000


@pytest.mark.parametrize("limit", ["", "max", "much"])
def test_a_limit_that_cannot_be_understood_is_none(machine: Machine, limit: str) -> None:
    machine.meminfo(available=1000)
    machine.mounts(V2.format(top="/", point="/sys/fs/cgroup"))
    machine.groups("0::/")
    machine.memory_v2("sys/fs/cgroup", limit, usage=0)
    assert machine.memory == 1000 * 1024
