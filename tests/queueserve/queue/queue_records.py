"""The records of the model of the queue (queue_model.py), and the bounds it is tested with."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

US = 1_000_000
TIMEOUT = 15 * US
NOTICES = 4
MAX_ATTEMPTS = 2
MAX_QUEUE = 6
MAX_TENANT_QUEUE = 4
FINAL = ("done", "failed", "cancelled", "expired")


@dataclass(frozen=True)
class Order:
    """What a caller asks for."""

    id: str
    tenant: str = "t"
    klass: int = 8
    cost: int = 10
    wait: int = 60 * US
    total: int = 600 * US
    grace: int = 0
    digest: str = "d"


@dataclass
class Job:
    """A job as Redis has it; `due` is when the reaper looks at it."""

    order: Order | None  # None: a tombstone
    api: str
    tag: int = 0
    queue_by: int = 0
    end_by: int = 0
    due: int = 0
    state: str = "queued"
    epoch: int = 0
    worker: str = ""
    attempts: int = 0
    cancel: str | None = None
    detached: int | None = None
    notified: int = 0
    resumed: int | None = None

    @property
    def open(self) -> bool:
        return self.state not in FINAL

    @property
    def suspect(self) -> bool:
        return self.attempts >= max(1, MAX_ATTEMPTS - 1)

    def look_at(self, when: int, *, detached: bool = True) -> None:
        grace_over = self.detached if detached and self.detached is not None else when
        self.due = min(when, self.end_by, grace_over)

    def end(self, state: str) -> None:
        self.state, self.cancel = state, None


@dataclass
class Worker:
    expiry: int
    slots: int
    speed: Fraction
    registered: bool = True  # its hash is there
    ready: bool = True
    turn: int = 0
