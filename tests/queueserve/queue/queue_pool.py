"""The pool that the model of the queue (queue_model.py) works on.

Nothing is kept that can be worked out: who is free, what waits and what a worker holds are looked
up in the jobs themselves, so nothing in here can get out of step. Times are µs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from queue_records import MAX_ATTEMPTS, TIMEOUT, Job, Order, Worker


@dataclass
class Pool:
    """One pool of one model."""

    now: int
    jobs: dict[str, Job] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    apis: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, str] = field(default_factory=dict)  # worker → the suspect it runs, or ""
    by_api: dict[str, set[str]] = field(default_factory=dict)
    virtual: dict[int, int] = field(default_factory=dict)
    last: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)  # (last, tag)
    epoch: int = 0
    turn: int = 0
    seen: int | None = None
    dead: set[str] = field(default_factory=set)
    published: list[tuple[Any, ...]] = field(default_factory=list)

    # What follows from the rest

    def queue(self) -> list[str]:
        return self.waiting(suspects=False)

    def suspects(self) -> list[str]:
        return self.waiting(suspects=True)

    def waiting(self, *, suspects: bool) -> list[str]:
        def rank(job: str) -> tuple[int, int, str]:
            order = self.jobs[job].order
            assert order is not None
            return (order.klass, self.jobs[job].tag, job)

        queued = [i for i, job in self.jobs.items() if job.state == "queued"]
        return sorted((i for i in queued if self.jobs[i].suspect == suspects), key=rank)

    def leases(self, worker: str) -> list[str]:
        held = [i for i, job in self.jobs.items() if (job.state, job.worker) == ("running", worker)]
        return sorted(held, key=lambda i: self.jobs[i].epoch)

    def load(self, worker: str) -> Fraction:
        slots, speed = self.workers[worker].slots, self.workers[worker].speed
        return (len(self.leases(worker)) + 1) / (slots * speed)

    def free(self) -> list[str]:
        able = [
            name
            for name, worker in self.workers.items()
            if self.usable(name) and worker.ready and name not in self.reserved
            if len(self.leases(name)) < worker.slots
        ]
        return sorted(able, key=lambda name: (self.load(name), self.workers[name].turn, name))

    def usable(self, worker: str) -> bool:
        return self.workers[worker].registered and self.workers[worker].expiry > self.now

    # The queue

    def next_epoch(self, previous: int) -> int:
        self.epoch = max(self.epoch + 1, previous + 1, self.now)
        return self.epoch

    def dispatch(self) -> None:
        self.use_reserved()
        self.reserve()
        while (queue := self.queue()) and (free := self.free()):
            self.assign(queue[0], free[0])
        if not queue and self.free():
            self.last.clear()

    def assign(self, job_id: str, worker: str) -> None:
        job = self.jobs[job_id]
        assert job.order is not None
        job.state, job.worker, job.epoch = "running", worker, self.next_epoch(job.epoch)
        job.attempts += 1
        job.look_at(job.end_by)
        self.turn += 1
        self.workers[worker].turn = self.turn
        klass = job.order.klass
        self.virtual[klass] = max(self.virtual.get(klass, 0), job.tag + 1)

    # Suspects, which run alone

    def use_reserved(self) -> None:
        for name in sorted(self.reserved):
            if name not in self.workers or not self.workers[name].ready:
                del self.reserved[name]
            elif not self.leases(name):
                self.next_suspect(name)

    def next_suspect(self, worker: str) -> None:
        if not (suspects := self.suspects()):
            del self.reserved[worker]
        elif self.usable(worker):
            self.reserved[worker] = suspects[0]
            self.assign(suspects[0], worker)

    def reserve(self) -> None:
        most = max(1, len(self.workers) // 2)
        while len(self.reserved) < most and (free := self.free()):
            filling = [name for name, job in self.reserved.items() if not job]
            if len(self.suspects()) <= len([name for name in filling if self.leases(name)]):
                return
            empty = [name for name in free if not self.leases(name)]
            worker = (empty or free)[0]
            self.reserved[worker] = ""
            if empty:
                self.next_suspect(worker)

    def tag(self, order: Order) -> int:
        who = (order.klass, order.tenant)
        tag = max(self.virtual.get(order.klass, 0), self.last.get(who, (0, 0))[0])
        self.last[who] = (tag + max(2, order.cost), tag)
        return tag

    def correct(self, order: Order, cost: int) -> None:
        last, tag = self.last.get((order.klass, order.tenant), (0, 0))
        if last > self.virtual.get(order.klass, 0):
            corrected = max(last + cost - order.cost, tag + 2)
            self.last[order.klass, order.tenant] = (corrected, tag)

    # Ends

    def forget_reader(self, job_id: str) -> None:
        self.by_api.get(self.jobs[job_id].api, set()).discard(job_id)

    def end(self, job_id: str, state: str) -> None:
        self.forget_reader(job_id)
        self.jobs[job_id].end(state)

    def fail(self, job_id: str, state: str, code: str) -> None:
        self.end(job_id, state)
        self.publish_failed(job_id, code)

    def stop(self, job_id: str, why: str) -> None:
        job = self.jobs[job_id]
        job.cancel = why
        self.published.append((f"control:{job.worker}", "cancel", job.epoch, job_id))

    def publish_failed(self, job_id: str, code: str) -> None:
        job = self.jobs[job_id]
        self.published.append((f"reply:{job.api}", "failed", job_id, job.epoch, code))

    def publish_orphaned(self, job_id: str) -> None:
        job = self.jobs[job_id]
        self.published.append((f"reply:{job.api}", "orphaned", job_id, job.epoch))

    # Those who are gone

    def detach(self, job: Job) -> None:
        assert job.order is not None
        if job.detached is None:
            job.detached = self.now + job.order.grace
            job.due = min(job.due, job.detached)

    def remove_worker(self, name: str, *, charged: bool) -> None:
        leases = self.leases(name)
        self.workers.pop(name, None)
        self.reserved.pop(name, None)
        for job_id in leases:
            self.orphan(job_id, charged=charged)

    def orphan(self, job_id: str, *, charged: bool) -> None:
        job = self.jobs[job_id]
        tried_enough = charged and job.attempts >= MAX_ATTEMPTS
        if not charged:
            job.attempts -= 1
        if job.cancel:
            self.end(job_id, job.cancel)
        elif job.api not in self.apis and job.detached is None:
            self.end(job_id, "cancelled")
        elif tried_enough:
            self.dead.add(job_id)
            self.fail(job_id, "failed", "worker_crashed")
        else:
            job.state, job.worker, job.notified = "orphaned", "", 1
            job.epoch = self.next_epoch(job.epoch)
            job.look_at(self.now + TIMEOUT)
            self.publish_orphaned(job_id)

    def remove_api(self, api: str) -> None:
        del self.apis[api]
        for job_id in self.by_api.pop(api, set()):
            job = self.jobs[job_id]
            assert job.order is not None
            if job.order.grace:
                self.detach(job)
            elif job.state == "running":
                self.stop(job_id, "cancelled")
            else:
                self.end(job_id, "cancelled")
