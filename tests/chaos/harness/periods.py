"""When something was so: the times at which a cluster was hurt, kept for the checks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Period:
    """From `began` until `ended`, in seconds of the monotonic clock."""

    began: float
    ended: float = math.inf


class Periods:
    """Periods of one kind; one that goes on has no end yet."""

    def __init__(self) -> None:
        self._all: list[Period] = []

    def add(self, seconds: float) -> None:
        """From now on, for so long."""
        now = time.monotonic()
        self._all.append(Period(now, now + seconds))

    def begin(self) -> None:
        self._all.append(Period(time.monotonic()))

    def end(self) -> None:
        """End all that go on."""
        now = time.monotonic()
        for period in self._all:
            period.ended = min(period.ended, now)

    @contextmanager
    def during(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.end()

    def between(self, begin: float, end: float, *, window: float = 0.0) -> list[Period]:
        """Those that touch this time, or were over at most `window` seconds before it."""
        return [each for each in self._all if each.began <= end and begin <= each.ended + window]
