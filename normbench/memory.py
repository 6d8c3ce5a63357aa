"""The memory of this machine."""

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def available() -> int:
    """Return how many bytes can be allocated without swapping, or all if the system does not tell."""
    try:
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines() if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
