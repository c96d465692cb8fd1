"""The fake engine with faults on demand, and a journal of what it was given.

Every sequence that is added is a line of it, so that a sequence that runs twice shows; so is every
crash.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from workers.engines import fake_faults
from workers.engines.base import Output, Sequence

_SLOW_START = 1.0  # seconds, at most


class FaultyEngine(fake_faults.FaultyEngine):
    """Does what the prompts ask for, and writes it down."""

    def __init__(self, *, journal: Path, **options) -> None:
        super().__init__(start_delay=random.uniform(0, _SLOW_START), **options)
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def _note(self, *words: object) -> None:
        os.write(self._journal, (" ".join(map(str, words)) + "\n").encode())

    def add(self, sequence: Sequence) -> None:
        self._note("add", sequence.id, len(sequence.generated))
        super().add(sequence)

    def _disturb(self, output: Output) -> Output:
        self._looked_at = output.id
        return super()._disturb(output)

    def crash(self) -> None:
        self._note("poisoned by", self._looked_at)
        self._note("crash", os.getpid())
        super().crash()
