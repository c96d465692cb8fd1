"""The fake engine with faults on demand: the prompt says which, and at which token.

`[[crash 5]]` kills the process at the fifth token of the sequence (whoever produced the first
ones), `[[oom 5]]` fails the sequence, `[[stall 5]]` lets the engine pause for two seconds. Every
sequence that is added goes into a journal, one line each, so that a sequence that runs twice shows.
"""

from __future__ import annotations

import os
import random
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from queueserve.errors import EngineError
from workers.engines.base import Output, Sequence, Sink
from workers.engines.fake import FakeEngine
from workers.engines.fake_tokens import VOCABULARY

_FAULT = re.compile(r"\[\[(crash|oom|stall) (\d+)\]\]")
_STALL = 2.0  # seconds
_SLOW_START = 1.0  # seconds, at most


@dataclass
class _Fault:
    kind: str
    at: int
    tokens: int


class FaultyEngine(FakeEngine):
    """Does what the prompts ask for."""

    def __init__(self, *, journal: Path, **options) -> None:
        super().__init__(start_delay=random.uniform(0, _SLOW_START), **options)
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._faults: dict[str, _Fault] = {}

    async def start(self, sink: Sink) -> None:
        self._plain_sink = sink
        await super().start(self._disturbed)

    def _note(self, *words: object) -> None:
        os.write(self._journal, (" ".join(map(str, words)) + "\n").encode())

    def add(self, sequence: Sequence) -> None:
        self._note("add", sequence.id, len(sequence.generated))
        prompt = b"".join(VOCABULARY[token] for token in sequence.prompt).decode(errors="replace")
        super().add(sequence)
        if found := _FAULT.search(prompt):
            at = int(found[2])
            self._faults[sequence.id] = _Fault(found[1], at, len(sequence.generated))

    def abort(self, sequence_id: str) -> None:
        self._faults.pop(sequence_id, None)
        super().abort(sequence_id)

    def _disturbed(self, outputs: list[Output]) -> None:
        given = [self._disturb(output) for output in outputs] if self._faults else outputs
        self._plain_sink(given)

    def _disturb(self, output: Output) -> Output:
        fault = self._faults.get(output.id)
        if fault is None:
            return output
        fault.tokens += len(output.tokens)
        if fault.tokens < fault.at and output.finish is None:
            return output
        del self._faults[output.id]
        if fault.kind == "crash":
            self._note("crash", os.getpid())
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "stall":
            self._stop()
            self._loop.call_later(_STALL, self._go_on)
            return output
        super().abort(output.id)
        return Output(output.id, error=EngineError("out of memory"))

    def _go_on(self) -> None:
        if self._sequences and self._handle is None:
            self._due = self._loop.time()
            self._schedule()
