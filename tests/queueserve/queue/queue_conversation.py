"""A pool on a server and its model, spoken to at once by API servers and workers.

They behave as the protocol asks: one that has expired comes back under a new name. Everything is
said at a time of the speaker's choice.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

from hypothesis.stateful import RuleBasedStateMachine
from queue_model import Model
from queue_records import MAX_ATTEMPTS, MAX_QUEUE, MAX_TENANT_QUEUE, TIMEOUT, US, Order
from queue_remote import Remote

START = 1_800_000_000 * US
TICK = 1000  # between any two calls
SLOTS = ("a", "b")  # two API servers; each incarnation has a number


class Conversation(RuleBasedStateMachine):
    """Says everything to both, and compares the answers. `remote` is set in a subclass."""

    remote: ClassVar[Remote]

    def __init__(self) -> None:
        super().__init__()
        self.remote.empty()
        self.model = Model(now=START)
        self.incarnation = dict.fromkeys(SLOTS, 0)
        self.registered: set[str] = set()  # API servers that have submitted
        self.workers: dict[str, tuple[int, str]] = {}  # slots, speed; of those who think they live
        self.born = 0
        self.submitted = 0
        self.finishes: list[tuple[str, str, int, str, int]] = []  # since the snapshot
        self.saved: tuple[Any, ...] | None = None
        self.final: dict[str, str] = {}
        self.epochs: dict[str, int] = {}  # as last seen
        self.highest: dict[str, int] = {}  # ever seen, also by a Redis that has forgotten

    def ask(self, function: str, *args: Any) -> Any:
        return self.remote.ask(self.model.now, function, *args)

    def tick(self, time: int = TICK) -> None:
        self.model.now += time

    def api(self, slot: str) -> str:
        return f"{slot}{self.incarnation[slot]}"

    def submit(self, order: Order, api: str, *, new_api: bool, known: bool) -> str:
        self.tick()
        expected = self.model.submit(order, api, new_api=new_api, known=known)
        answer = self.ask(
            "submit",
            *(order.id, api, TIMEOUT, int(new_api), b"{}", order.digest, order.klass),
            *(order.tenant, 1, order.cost, order.wait, order.total, order.grace),
            *(MAX_ATTEMPTS, MAX_QUEUE, MAX_TENANT_QUEUE, "", int(known)),
        )
        assert tuple(answer[:5]) == expected
        return expected[0]

    def beat(self, worker: str) -> None:
        self.tick()
        verdict, snapshot, leases = self.model.heartbeat(worker)
        said = self.ask("heartbeat", worker, TIMEOUT, 1, 0)
        words = [value.split() for value in said[3::2]]
        told = {
            job: (int(word[0]), word[1:] == ["cancel"])
            for job, word in zip(said[2::2], words, strict=True)
        }
        assert (said[0], said[1], told) == (verdict, snapshot, leases)
        if verdict == "gone":
            self.workers.pop(worker, None)
        elif verdict == "register" and worker in self.workers:
            self.join(worker)

    def join(self, worker: str) -> None:
        self.tick()
        slots, speed = self.workers[worker]
        assert self.model.register(worker, slots, Fraction(speed)) == "ok"
        assert self.ask("register", worker, TIMEOUT, slots, speed, "host", "h") == "ok"

    def reap(self, api: str = "", dead: str = "") -> None:
        self.tick()
        verdict, wait = self.model.reap(api, dead)
        assert self.ask("reap", TIMEOUT, api, dead) == [verdict, wait, 0, ""]
        if verdict == "gone":
            self.incarnation[api[0]] += 1

    def say_finished(self, worker: str, job: str, epoch: int, outcome: str, cost: int) -> str:
        self.tick()
        expected = self.model.finish(worker, job, epoch, outcome, cost)
        assert self.ask("finish", worker, job, epoch, outcome, "", cost) == expected
        return expected

    def in_state(self, *states: str) -> list[str]:
        return [i for i, job in self.model.jobs.items() if job.order and job.state in states]

    def say_resume(self, job: str, epoch: int, api: str) -> None:
        for _ in range(2):  # said twice is said once
            self.tick()
            expected = self.model.resume(job, epoch, api, 60 * US)
            assert self.ask("resume", job, epoch, api, "{}", 60 * US) == expected

    def finish(self, name: str, outcome: str, cost: int) -> None:
        job = self.model.jobs[name]
        end = (job.worker, name, job.epoch, outcome, cost)
        assert self.say_finished(*end) == "accepted"
        assert self.say_finished(*end) == "duplicate"
        self.finishes.append(end)

    def submit_from(self, slot: str, order: Order, *, known: bool = False) -> None:
        api = self.api(slot)
        new_api = api not in self.registered
        self.registered.add(api)
        if self.submit(order, api, new_api=new_api, known=known) == "gone":
            self.incarnation[slot] += 1
