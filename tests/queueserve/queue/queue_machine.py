"""A Hypothesis state machine: everything that can happen to a pool, on a server and in the model.

Redis may come back without its last second; then workers say their finishes again, and API servers
submit again what is open.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from queue_conversation import SLOTS, Conversation
from queue_records import FINAL, US, Order
from queue_views import model_view, server_view

speeds = st.sampled_from(["1", "1", "0.5", "0.25"])
orders = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(["t", "u", "v"]),
        "klass": st.sampled_from([8, 8, 0, 15]),
        "cost": st.sampled_from([1, 10, 35]),
        "wait": st.sampled_from([60 * US, 5 * US]),
        "total": st.sampled_from([600 * US, 12 * US]),
        "grace": st.sampled_from([0, 20 * US]),
    }
)
arrivals = st.lists(st.tuples(st.sampled_from(SLOTS), orders), max_size=4)
endings = st.lists(
    st.tuples(st.sampled_from(["done", "failed", "cancelled"]), st.sampled_from([0, 3, 50])),
    max_size=3,
)
Arrival = tuple[str, dict[str, Any]]


class QueueMachine(Conversation):
    """Set `remote` in a subclass."""

    # API servers

    def submit_new(self, slot: str, order: dict[str, Any], *, known: bool = False) -> None:
        self.submitted += 1
        name = f"j{self.submitted * 377 % 1000:03}"  # not in alphabetical order
        self.submit_from(slot, Order(name, **order), known=known)

    # Hypothesis leaves out some rules for a while; of the next two, one is nearly always there.

    @rule(data=st.data(), jobs=arrivals, ends=endings)
    def work_goes_on(
        self, data: st.DataObject, jobs: list[Arrival], ends: list[tuple[str, int]]
    ) -> None:
        for slot, order in jobs:
            self.submit_new(slot, order)
        self.finish_some(data, ends)

    @rule(data=st.data(), ends=endings, wrong=st.sampled_from(["", "", "epoch", "api"]))
    def a_worker_crashes_and_comes_back(
        self, data: st.DataObject, ends: list[tuple[str, int]], wrong: str
    ) -> None:
        self.submit_new("a", {})
        if self.workers:
            worker = data.draw(st.sampled_from(sorted(self.workers)))
            slots, speed = self.workers.pop(worker)
            self.reap(dead=worker)
            self.a_worker_joins(slots, speed)
        for name in self.in_state("orphaned"):
            job = self.model.jobs[name]
            api = "someone" if wrong == "api" else job.api
            self.say_resume(name, job.epoch - (wrong == "epoch"), api)
        self.finish_some(data, ends)

    def finish_some(self, data: st.DataObject, ends: list[tuple[str, int]]) -> None:
        for outcome, cost in ends:
            if self.in_state("running"):
                self.finish(data.draw(st.sampled_from(self.in_state("running"))), outcome, cost)

    @rule(slot=st.sampled_from(SLOTS), order=orders)
    def submit_what_was_acknowledged_before(self, slot: str, order: dict[str, Any]) -> None:
        self.submit_new(slot, order, known=True)

    @precondition(lambda self: self.in_state("queued", "running", "orphaned", *FINAL))
    @rule(data=st.data(), slot=st.sampled_from(SLOTS), other_body=st.sampled_from([0, 0, 1]))
    def submit_again(self, data: st.DataObject, slot: str, other_body: int) -> None:
        known = self.in_state("queued", "running", "orphaned", *FINAL)
        order = self.model.jobs[data.draw(st.sampled_from(known))].order
        assert order is not None
        if other_body:
            order = Order(order.id, digest="another")
        self.submit_from(slot, order)

    @precondition(lambda self: self.in_state("queued", "running", "orphaned"))
    @rule(data=st.data())
    def a_reader_leaves(self, data: st.DataObject) -> None:
        self.tick()
        job = data.draw(st.sampled_from(self.in_state("queued", "running", "orphaned")))
        api = self.model.jobs[job].api
        assert self.ask("cancel", job, api) == self.model.cancel(job, api)

    @rule(data=st.data(), slot=st.sampled_from([*SLOTS, ""]))
    def cancel_anything(self, data: st.DataObject, slot: str) -> None:
        self.tick()
        job = data.draw(st.sampled_from([*self.model.jobs, "never seen"]))
        api = slot and self.api(slot)
        assert self.ask("cancel", job, api) == self.model.cancel(job, api)

    # Workers

    @initialize(workers=st.lists(st.tuples(st.integers(1, 3), speeds), min_size=1, max_size=3))
    def workers_join(self, workers: list[tuple[int, str]]) -> None:
        for slots, speed in workers:
            self.a_worker_joins(slots, speed)

    @precondition(lambda self: len(self.workers) < 4)
    @rule(slots=st.integers(1, 3), speed=speeds)
    def a_worker_joins(self, slots: int, speed: str) -> None:
        self.born += 1
        worker = f"w{self.born}"
        self.workers[worker] = (slots, speed)
        self.join(worker)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def a_worker_beats(self, data: st.DataObject) -> None:
        self.beat(data.draw(st.sampled_from(sorted(self.workers))))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def keys_of_a_worker_are_lost(self, data: st.DataObject) -> None:
        """The hints of its inbox, and its registration: only its TTL was up."""
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        keys = self.remote.keys
        self.remote.client.delete(keys.worker(worker), keys.inbox(worker))
        if worker in self.model.workers:
            self.model.workers[worker].registered = False

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), leave=st.booleans())
    def a_worker_drains(self, data: st.DataObject, *, leave: bool) -> None:
        self.tick()
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        expected = self.model.drain(worker, leave=leave)
        assert self.ask("drain", worker, int(leave)) == expected
        if leave:
            del self.workers[worker]

    @precondition(lambda self: self.in_state("queued", "running", "orphaned", *FINAL))
    @rule(data=st.data(), step=st.sampled_from([-1, 0, 0, 1]))
    def finish_what_is_not_yours(self, data: st.DataObject, step: int) -> None:
        known = self.in_state("queued", "running", "orphaned", *FINAL)
        name = data.draw(st.sampled_from(known))
        worker = data.draw(st.sampled_from([*(f"w{n + 1}" for n in range(self.born)), ""]))
        job = self.model.jobs[name]
        if (worker, step) != (job.worker, 0) or not job.open:
            end = (worker, name, job.epoch + step, "done", 0)
            assert self.say_finished(*end) in {"stale", "duplicate"}

    # Time

    @rule(slot=st.sampled_from(["", *SLOTS]))
    def someone_reaps(self, slot: str) -> None:
        self.reap(slot and self.api(slot))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def a_worker_is_known_to_be_dead(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        del self.workers[worker]
        self.reap(dead=worker)

    @rule(
        steps=st.integers(1, 6),
        silent=st.sets(st.sampled_from([*SLOTS, "w1", "w2", "w3", "w4"]), max_size=2),
    )
    def time_passes(self, steps: int, silent: set[str]) -> None:
        for _ in range(steps):
            self.tick(3 * US)
            for worker in sorted(set(self.workers) - silent):
                self.beat(worker)
            for slot in sorted(set(SLOTS) - silent):
                if self.api(slot) in self.registered:
                    self.reap(self.api(slot))
            self.reap()

    @rule(seconds=st.sampled_from([1, 8, 16, 70]))
    def nobody_reaches_redis(self, seconds: int) -> None:
        self.tick(seconds * US)

    # A Redis that comes back without its last second

    @rule()
    def redis_syncs_its_file(self) -> None:
        self.finishes = []
        self.saved = (self.remote.dump(), deepcopy(self.model), dict(self.final), dict(self.epochs))

    @precondition(lambda self: self.saved)
    @rule(after=st.sampled_from([1, 10]))
    def redis_is_killed_and_comes_back(self, after: int) -> None:
        assert self.saved is not None
        lost = self.model
        snapshot, self.model, self.final, self.epochs = self.saved
        self.saved = None
        self.model.published = []
        self.remote.restore(snapshot)
        self.model.now = lost.now + after * US
        for end in self.finishes:
            assert self.say_finished(*end) in {"accepted", "duplicate", "stale"}
        for job in lost.jobs.values():
            if job.order and job.open and job.api in {self.api(slot) for slot in SLOTS}:
                verdict = self.submit(job.order, job.api, new_api=True, known=True)
                assert verdict in {"new", "exists"}

    # What must hold after every step

    @invariant()
    def the_server_is_as_the_model_says(self) -> None:
        published, self.model.published = self.model.published, []
        assert sorted(self.remote.heard()) == sorted(published)
        seen = server_view(self.remote, self.model)
        assert seen == model_view(self.model)
        assert not (seen["queue"] and seen["free"])
        for name, job in seen["jobs"].items():
            assert self.final.get(name, job["state"]) == job["state"]  # an end is an end
            if job["state"] in FINAL:
                self.final[name] = job["state"]
            if job["epoch"] != self.epochs.get(name, 0):
                assert job["epoch"] > self.highest.get(name, 0)
                self.epochs[name] = self.highest[name] = job["epoch"]

    def teardown(self) -> None:
        """Let everybody go, and time pass: every job ends, and nothing stays for ever."""
        for _ in range(40):
            if not self.in_state("queued", "running", "orphaned"):
                break
            self.tick(5 * US)
            self.reap()
        for _ in range(5):
            self.tick(5 * US)
            self.reap()
        self.the_server_is_as_the_model_says()
        assert not self.in_state("queued", "running", "orphaned")
        assert self.remote.lasting() == set()
