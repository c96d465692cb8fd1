"""The engine of the bench: the fake one, with a word for every token, and its own work timed.

A token that is half a character gives no chunk; here every token gives one, so that nobody's cost
per token is flattered.
"""

from __future__ import annotations

import time

from queueserve.protocol import FinishReason
from workers.engines.base import Output, Sequence, Sink
from workers.engines.fake import FakeEngine
from workers.engines.fake_tokens import WORDS


class _Words:
    """One sequence: words in a row, up to its limit."""

    __slots__ = ("_count", "_limit", "id")

    def __init__(self, sequence: Sequence) -> None:
        self.id = sequence.id
        self._count = len(sequence.generated)
        self._limit = sequence.sampling.max_tokens or 1

    def step(self) -> Output:
        """Return the next token."""
        count = self._count = self._count + 1
        finish: FinishReason | None = "length" if count >= self._limit else None
        return Output(self.id, (WORDS[count % len(WORDS)],), None, finish)


class BenchEngine(FakeEngine):
    """Steps all its sequences together. `own_seconds` is the CPU time of its own work so far."""

    def __init__(self, *, slots: int, tick: float) -> None:
        super().__init__(slots=slots, tick=tick, context_length=1_000_000)
        self.own_seconds = 0.0

    async def start(self, sink: Sink) -> None:
        """Be ready; the sink's time is not the engine's."""

        def timed(outputs: list[Output]) -> None:
            began = time.thread_time()
            sink(outputs)
            self.own_seconds -= time.thread_time() - began

        await super().start(timed)

    def add(self, sequence: Sequence) -> None:
        """Start a sequence at the next step."""
        began = time.thread_time()
        self._sequences[sequence.id] = _Words(sequence)  # type: ignore[assignment]
        if self._handle is None:
            self._due = self._loop.time()
            self._schedule()
        self.own_seconds += time.thread_time() - began

    def _step(self) -> None:
        began = time.thread_time()
        super()._step()
        self.own_seconds += time.thread_time() - began
