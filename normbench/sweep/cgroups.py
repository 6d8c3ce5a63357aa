"""How many CPUs the control groups of Linux grant a process, in version 1, version 2, and both at once."""

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Mount(NamedTuple):
    """A hierarchy of groups: where it is mounted, and which of its groups lies there."""

    top: PurePosixPath
    point: str
    version: int


def quota(root: Path = Path("/")) -> float:
    """The CPUs that this process may use on average, by the smallest quota of its groups; inf without one.

    A group's quota holds for all below it, so every group counts from the process's own up to the topmost
    that is mounted here. In a container that is usually the container's own.

    Args:
        root: of the file system that has ``proc`` and the mounts.
    """
    groups = (group for mount in _mounts(root) for group in _lineage(root, mount))
    return min(map(_quota, groups), default=math.inf)


def _mounts(root: Path) -> Iterator[_Mount]:
    """The hierarchies that may limit CPUs, by proc(5): ``36 35 98:0 TOP POINT … - KIND SOURCE OPTIONS``."""
    for line in _lines(root / "proc/self/mountinfo"):
        if found := re.fullmatch(r"\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) .* (\S+)", line):
            top, point = (re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), found[i]) for i in (1, 2))
            version = 2 if found[3] == "cgroup2" else 1
            if version == 2 or "cpu" in found[4].split(","):
                yield _Mount(PurePosixPath(top), point.lstrip("/"), version)


def _lineage(root: Path, mount: _Mount) -> Iterator[Path]:
    """The directories of the process's group, by cgroups(7) a line ``4:cpu:/a``, and of all above it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, name = (*line.split(":", 2), "", "")[:3]
        if "cpu" in controllers.split(",") if mount.version == 1 else line.startswith("0::"):
            group = PurePosixPath(name)
            # what is mounted is another container's view, or only this group: then it is the topmost
            below = group.relative_to(mount.top) if group.is_relative_to(mount.top) else PurePosixPath()
            yield from (root / mount.point / each for each in (below, *below.parents))


def _quota(group: Path) -> float:
    """A group's own, in CPUs: time in every period."""
    with contextlib.suppress(ValueError, IndexError, ZeroDivisionError):
        if (group / "cpu.max").exists():
            time, period = _lines(group / "cpu.max")[0].split()
        else:
            time, period = (_lines(group / f"cpu.cfs_{what}_us")[0] for what in ("quota", "period"))
        if int(time) > 0:  # version 1 writes -1 where version 2 writes max
            return int(time) / int(period)
    return math.inf


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # another system, or none of our business
        return []
