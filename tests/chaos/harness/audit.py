"""What Redis wrote down of every job (audit.lua), and what engines ran, against the invariants."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from harness.cluster import Cluster

_BATCH = 5000


@dataclass
class _Job:
    """The life of one job as the lines tell it."""

    epoch: int = 0
    worker: str = ""
    ended: str = ""
    ends: int = 0
    finishes: int = 0
    lost: int = 0  # workers that crashed while they ran it


@dataclass
class Audit:
    """Reads the lines in their order; what contradicts an invariant is in `violations`."""

    violations: list[str] = field(default_factory=list)
    submitted: int = 0
    dispatched: int = 0
    orphaned: int = 0
    stale: int = 0  # finishes that were refused: from zombies, or said twice
    ends: Counter[str] = field(default_factory=Counter)
    _jobs: dict[str, _Job] = field(default_factory=dict)
    _epoch: int = 0

    def read(self, cluster: Cluster) -> None:
        """Everything that is there, in batches; a copy goes beside the logs."""
        after = "-"
        with (cluster.directory / "audit.log").open("w") as copy:
            while rows := cluster.client.xrange("chaos:audit", after, "+", _BATCH):
                for at, fields in rows:
                    copy.write(f"{at} {fields['e']}\n")
                    self.note(*json.loads(fields["e"]))
                after = f"({rows[-1][0]}"

    def note(self, kind: str, *words: Any) -> None:
        """Take one line."""
        getattr(self, f"_{kind}")(*words)

    def _wrong(self, job: str, what: str) -> None:
        self.violations.append(f"job {job}: {what}")

    def _submit(self, job: str) -> None:
        self.submitted += 1
        self._jobs[job] = _Job()

    def _dispatch(self, job: str, epoch: str, worker: str, by: str) -> None:
        self.dispatched += 1
        known = self._jobs.setdefault(job, _Job())
        if known.ended:
            self._wrong(job, f"is dispatched after its end ({known.ended})")
        if known.worker:
            self._wrong(job, f"is dispatched to {worker} while {known.worker} holds it")
        if by == "nobody":
            self._wrong(job, f"goes on although its reader did not resume epoch {known.epoch}")
        self._grow(job, epoch)
        known.worker = worker

    def _orphan(self, job: str, epoch: str, charged: bool) -> None:  # noqa: FBT001 - a line's words
        self.orphaned += 1
        known = self._jobs.setdefault(job, _Job())
        known.worker = ""
        known.lost += charged
        if not known.ended:
            self._grow(job, epoch)

    def _grow(self, job: str, epoch: str) -> None:
        known, number = self._jobs[job], int(epoch)
        if number <= self._epoch:
            self._wrong(job, f"epoch {number} after epoch {self._epoch}")
        self._epoch = known.epoch = max(self._epoch, number)

    def _end(self, job: str, state: str, before: str, epoch: str, worker: str) -> None:
        known = self._jobs.setdefault(job, _Job(ended=""))
        if known.ended:
            self._wrong(job, f"ends twice: {known.ended}, then {state} (was {before})")
        if (state, before) == ("expired", "running"):  # they take a second, and have a minute
            self._wrong(job, f"was not run within its time, epoch {epoch}, by {worker}")
        known.ended = state
        known.ends += 1
        self.ends[state] += 1

    def _finish(self, job: str, verdict: str, epoch: str, worker: str, outcome: str) -> None:
        known = self._jobs.setdefault(job, _Job())
        if verdict != "accepted":
            self.stale += 1
            return
        known.finishes += 1
        if known.finishes > 1:
            self._wrong(job, "has two accepted finishes")
        if (int(epoch), worker) != (known.epoch, known.worker):
            self._wrong(job, f"{worker} ended it under epoch {epoch}; {known} holds it")

    @property
    def ended_once(self) -> int:
        return sum(known.ends == 1 for known in self._jobs.values())

    def choices(self) -> dict[str, set[str]]:
        """What is drawn for a request → its choices, from jobs like `chatcmpl-<drawn>-<choice>`.

        A further run of an Idempotency-Key is called `<choice>.<run>`.
        """
        found: dict[str, set[str]] = {}
        for job in self._jobs:
            request, _, choice = job.rpartition("-")
            found.setdefault(request.rpartition("-")[2], set()).add(choice.partition(".")[0])
        return found

    def losses(self) -> dict[str, int]:
        """What is drawn for a request → how many workers one of its jobs has lost, at most."""
        found: dict[str, int] = {}
        for job, known in self._jobs.items():
            request = job.rpartition("-")[0].rpartition("-")[2]
            found[request] = max(found.get(request, 0), known.lost)
        return found

    def open_jobs(self) -> list[str]:
        return [job for job, known in self._jobs.items() if not known.ended]


def ran_twice(cluster: Cluster) -> list[str]:
    """Sequences (job and epoch) that engines were given more than once."""
    runs: Counter[str] = Counter()
    for node in cluster.workers:
        lines = cluster.journal(node.name).splitlines()
        runs.update(line.split()[1] for line in lines if line.startswith("add "))
    return [f"{sequence} ran {count} times" for sequence, count in runs.items() if count > 1]
