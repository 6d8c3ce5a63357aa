"""How much memory there is, before something is begun that it cannot hold."""

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def available() -> int:
    """Bytes that may be taken without swapping; all there are where the system does not say."""
    try:
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines() if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
