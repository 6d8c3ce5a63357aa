"""CPU cores and memory that this process may use, by the system and by the control groups of Linux."""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")


def cores() -> int:
    """Return the cores that this process may use, by its affinity and by its quota."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(affine, cpu_quota()))


def cpu_quota(root: Path = ROOT) -> float:
    """Return the CPUs that this process may use on average, by the smallest quota of its groups.

    Args:
        root: of the file system that has ``proc`` and the mounts.

    Returns:
        A number of CPUs; infinity without a quota.
    """
    return min((_cpus(group) for group in _groups(root, "cpu")), default=math.inf)


def available_memory(root: Path = ROOT) -> int:
    """Return the bytes that can be allocated without swapping and without exceeding a group's limit.

    Where the system does not say what is available, this is the size of the memory.
    """
    available: float = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _lines(root / "proc/meminfo"):
        if match := re.fullmatch(r"MemAvailable:\s*(\d+) kB", line):
            available = 1024 * int(match[1])
    return int(min([available, *(_free_bytes(group) for group in _groups(root, "memory"))]))


class _Mount(NamedTuple):
    """A hierarchy of groups: the group that is mounted, where, and the version of the hierarchy."""

    top: PurePosixPath
    point: str
    version: int


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of the process's groups, from its own up to the topmost that is mounted.

    A limit of a group holds for all groups below it. In a container the topmost is usually the container's.
    """
    for mount in _mounts(root, controller):
        yield from _lineage(root, mount, controller)


def _mounts(root: Path, controller: str) -> Iterator[_Mount]:
    """Yield hierarchies with a controller, by proc(5): ``36 35 98:0 TOP POINT … - KIND SOURCE OPTIONS``."""
    for line in _lines(root / "proc/self/mountinfo"):
        if match := re.fullmatch(r"\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) .* (\S+)", line):
            top, point = (re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), match[i]) for i in (1, 2))
            version = 2 if match[3] == "cgroup2" else 1
            if version == 2 or controller in match[4].split(","):
                yield _Mount(PurePosixPath(top), point.lstrip("/"), version)


def _lineage(root: Path, mount: _Mount, controller: str) -> Iterator[Path]:
    """Yield the process's group and its parents; a line of cgroups(7) is ``4:cpu:/a``, or ``0::/a``."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, name = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(",") if mount.version == 1 else line.startswith("0::"):
            group = PurePosixPath(name)
            # a mount of another container's view, or of this group alone, is itself the topmost group
            below = group.relative_to(mount.top) if group.is_relative_to(mount.top) else PurePosixPath()
            yield from (root / mount.point / path for path in (below, *below.parents))


def _cpus(group: Path) -> float:
    """Return the quota of one group: CPU time in every period."""
    with contextlib.suppress(ValueError, IndexError, ZeroDivisionError):
        if (group / "cpu.max").exists():
            time, period = _lines(group / "cpu.max")[0].split()
        else:
            time, period = (_lines(group / f"cpu.cfs_{what}_us")[0] for what in ("quota", "period"))
        if int(time) > 0:  # version 1 writes -1 where version 2 writes max
            return int(time) / int(period)
    return math.inf


def _free_bytes(group: Path) -> float:
    """Return what the limit of one group leaves; the page cache that the kernel would drop is free."""
    limit, usage, cache = (
        ("memory.max", "memory.current", "inactive_file")
        if (group / "memory.max").exists()
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    with contextlib.suppress(ValueError, IndexError):
        total = int(_lines(group / limit)[0])
        used = int(_lines(group / usage)[0])
        statistics = dict(line.split() for line in _lines(group / "memory.stat"))
        return max(0, total - used + int(statistics.get(cache, 0)))
    return math.inf


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # another system, or a file that this user may not read
        return []
