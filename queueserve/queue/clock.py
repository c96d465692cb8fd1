"""The clock for leases: monotonic, and counting the time in which the machine was suspended."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def lease_clock() -> float:
    """Seconds since some fixed moment."""
    return time.clock_gettime(_CLOCK)
