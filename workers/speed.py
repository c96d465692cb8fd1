"""How fast this worker is: tokens per second of one sequence, smoothed."""

from __future__ import annotations

import time
from collections.abc import Callable

_WINDOW = 2.0  # sequence-seconds that make a sample
_SMOOTHING = 0.3


class SpeedMeter:
    """Counts tokens against the time in which sequences ran, so that idle time says nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens = 0
        self._clock = clock
        self._running = 0
        self._since = clock()
        self._sequence_seconds = 0.0
        self._rate = 0.0

    def running(self, count: int) -> None:
        """Note that `count` sequences produce tokens from now on."""
        now = self._clock()
        self._sequence_seconds += self._running * (now - self._since)
        self._running, self._since = count, now

    def rate(self) -> float:
        """Tokens/s of one sequence; 0 while nothing was measured."""
        self.running(self._running)
        if self._sequence_seconds >= _WINDOW:
            sample = self.tokens / self._sequence_seconds
            self._rate += (sample - self._rate) * (_SMOOTHING if self._rate else 1.0)
            self.tokens, self._sequence_seconds = 0, 0.0
        return self._rate
