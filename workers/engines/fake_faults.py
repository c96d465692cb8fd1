"""The fake engine with faults on demand: the prompt says which, and at which token.

`[[crash 5]]` kills the process at the fifth token of the sequence (whoever produced the first
ones), `[[oom 5]]` fails the sequence alone, `[[stall 5]]` stops all steps for ever, and
`[[stall 5 2.5]]` for 2.5 seconds. A slow start is the fake engine's own `start_delay`. No option
leads here: any client could end any worker.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from dataclasses import dataclass
from typing import Any

from queueserve.errors import EngineError
from workers.engines.base import Output, Sequence, Sink
from workers.engines.fake import FakeEngine
from workers.engines.fake_tokens import VOCABULARY

_FAULT = re.compile(r"\[\[(crash|oom|stall) (\d+)(?: (\d+(?:\.\d+)?))?\]\]")


@dataclass(slots=True)
class _Fault:
    kind: str
    at: int
    seconds: float | None  # that a stall lasts; None: for ever
    tokens: int  # that the sequence has


class FaultyEngine(FakeEngine):
    """Does what the prompts ask for; without such a prompt it is the fake engine."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._faults: dict[str, _Fault] = {}
        self._stalled = False
        self._resuming: asyncio.TimerHandle | None = None

    async def start(self, sink: Sink) -> None:
        """Be ready after `start_delay`."""
        self._plain_sink = sink
        await super().start(self._disturbed)

    def add(self, sequence: Sequence) -> None:
        """Start a sequence, and note the fault that its prompt asks for."""
        super().add(sequence)
        known = (VOCABULARY[token] for token in sequence.prompt if 0 <= token < len(VOCABULARY))
        if found := _FAULT.search(b"".join(known).decode(errors="replace")):
            kind, at, seconds = found.groups()
            lasts = float(seconds) if seconds else None
            self._faults[sequence.id] = _Fault(kind, int(at), lasts, len(sequence.generated))

    def abort(self, sequence_id: str) -> None:
        """Forget a sequence and its fault."""
        self._faults.pop(sequence_id, None)
        super().abort(sequence_id)

    async def close(self) -> None:
        """Forget all sequences; a stall does not end any more."""
        if self._resuming is not None:
            self._resuming.cancel()
        await super().close()

    def crash(self) -> None:
        """End the process without a word."""
        os.kill(os.getpid(), signal.SIGKILL)

    def _schedule(self) -> None:
        if not self._stalled:
            super()._schedule()

    def _disturbed(self, outputs: list[Output]) -> None:
        self._plain_sink([self._disturb(output) for output in outputs] if self._faults else outputs)

    def _disturb(self, output: Output) -> Output:
        fault = self._faults.get(output.id)
        if fault is None:
            return output
        fault.tokens += len(output.tokens)
        if fault.tokens < fault.at and output.finish is None:
            return output
        del self._faults[output.id]
        if fault.kind == "crash":
            self.crash()
        elif fault.kind == "stall":
            self._stall(fault.seconds)
        else:
            super().abort(output.id)
            return Output(output.id, error=EngineError("out of memory"))
        return output

    def _stall(self, seconds: float | None) -> None:
        self._stalled = True
        self._stop()
        if seconds is not None:
            self._resuming = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._stalled, self._resuming = False, None
        if self._sequences:
            self._due = self._loop.time()
            self._schedule()
