"""How much memory and how many processors this process may use.

A container sees the memory and the processors of the whole machine; what it gets is what its
control group allows, and each group around that. Both versions of control groups are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def memory() -> int:
    """Bytes: the machine's, or the least that a control group allows. What is in use counts too."""
    bounds = [_words(group / "memory.max") for group in _groups("")]
    bounds += [_words(group / "memory.limit_in_bytes") for group in _groups("memory")]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(int(one) for bound in bounds for one in bound if one.isdigit())])


def processors() -> int:
    """Processors by affinity, or as many as the least quota is worth, rounded down; 1 or more."""
    quotas = [_words(group / "cpu.max") for group in _groups("")]
    quotas += [
        _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        for group in _groups("cpu")
    ]
    # Where there is no quota it is "max", or -1.
    worth = [int(quota[0]) // int(quota[1]) for quota in quotas if quota and quota[0].isdigit()]
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([usable, *worth]))


def _groups(controller: str) -> Iterator[Path]:
    """The directories of the process's group and of those around it; "" is version 2.

    A container often sees its own group as the root, whatever the process's group is called.
    """
    own = {
        name: path
        for _, names, path in (line.split(":", 2) for line in _lines(_OWN_GROUPS))
        for name in names.split(",")
    }
    root = _GROUPS / controller
    group = root / own.get(controller, "").lstrip("/")
    yield from (one for one in (group, *group.parents) if one.is_relative_to(root))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # not Linux, or a group that is not seen from here
        return []


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()
