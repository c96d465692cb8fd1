"""What the functions must do, in plain Python: every method answers as the function of its name."""

from __future__ import annotations

from fractions import Fraction

from queue_pool import Pool
from queue_records import MAX_QUEUE, MAX_TENANT_QUEUE, NOTICES, TIMEOUT, Job, Order, Worker


class Model(Pool):
    """One pool, and what can be asked of it."""

    # API servers

    def submit(
        self, order: Order, api: str, *, new_api: bool, known: bool
    ) -> tuple[str, str, int, str, int]:
        if self.apis.get(api, 0) <= self.now:
            if not new_api:
                return ("gone", "", 0, "", 0)
            self.apis[api] = self.now + TIMEOUT
        if order.id in self.jobs:
            return self.attach(order, api)
        queue = self.queue()
        mine = [i for i in queue if self.jobs[i].order.tenant == order.tenant]
        crowded = len(queue) >= MAX_QUEUE or len(mine) >= MAX_TENANT_QUEUE
        if not known and crowded:
            return ("full", "", 0, "", len(queue))
        job = Job(order, api, tag=self.tag(order))
        job.queue_by, job.end_by = self.now + order.wait, self.now + order.total
        job.look_at(job.queue_by)
        self.jobs[order.id] = job
        self.by_api.setdefault(api, set()).add(order.id)
        self.dispatch()
        return self.standing("new", order.id)

    def standing(self, verdict: str, job_id: str) -> tuple[str, str, int, str, int]:
        job, queue = self.jobs[job_id], self.queue()
        position = queue.index(job_id) + 1 if job_id in queue else 0
        return (verdict, job.state, job.epoch, job.worker, position)

    def attach(self, order: Order, api: str) -> tuple[str, str, int, str, int]:
        job = self.jobs[order.id]
        if job.order is not None and job.order.digest != order.digest:
            return self.standing("conflict", order.id)
        if job.open and job.cancel:
            return ("exists", job.cancel, job.epoch, job.worker, 0)
        if job.open:
            self.forget_reader(order.id)
            self.by_api.setdefault(api, set()).add(order.id)
            job.api = api
            if job.detached is not None:
                job.detached, job.due = None, self.now
        return self.standing("exists", order.id)

    def resume(self, job_id: str, epoch: int, api: str, wait: int) -> str:
        job = self.jobs.get(job_id)
        if job is not None and job.resumed == epoch:
            return "resumed"
        if job is None or (job.state, job.epoch, job.api) != ("orphaned", epoch, api):
            return "stale"
        job.state, job.resumed, job.queue_by = "queued", epoch, self.now + wait
        job.look_at(job.queue_by)
        self.dispatch()
        return "resumed"

    def cancel(self, job_id: str, api: str) -> str:
        job = self.jobs.get(job_id)
        if job is None:
            self.jobs[job_id] = Job(None, "", state="cancelled")
            return "cancelled"
        if not job.open or job.order is None:
            return job.state
        if api and api != job.api:
            return "moved"
        if api and job.order.grace:
            self.detach(job)
            return "detached"
        if not api:
            self.publish_failed(job_id, "cancelled")
        if job.state == "running":
            self.stop(job_id, "cancelled")
            return "running"
        self.end(job_id, "cancelled")
        return "cancelled"

    # Workers

    def touch(self) -> None:
        seen = self.now if self.seen is None else self.seen
        if self.now - seen > TIMEOUT / 2:
            for worker in self.workers.values():
                worker.expiry = self.now + TIMEOUT
            self.apis = dict.fromkeys(self.apis, self.now + TIMEOUT)
        self.seen = self.now

    def register(self, name: str, slots: int, speed: Fraction) -> str:
        self.touch()
        self.workers[name] = Worker(self.now + TIMEOUT, slots, speed)
        self.dispatch()
        return "ok"

    def heartbeat(self, name: str) -> tuple[str, int, dict[str, tuple[int, bool]]]:
        self.touch()
        worker = self.workers.get(name)
        if worker is not None:
            worker.expiry = self.now + TIMEOUT
        self.dispatch()
        if worker is None:
            return ("gone", 0, {})
        leases = {
            i: (self.jobs[i].epoch, self.jobs[i].cancel is not None) for i in self.leases(name)
        }
        return ("ok" if worker.registered else "register", self.epoch, leases)

    def finish(self, worker: str, job_id: str, epoch: int, outcome: str, cost: int) -> str:
        job = self.jobs.get(job_id)
        if job is None or job.order is None or (job.epoch, job.worker) != (epoch, worker):
            return "stale"
        if not job.open:
            return "duplicate"
        if cost:
            self.correct(job.order, cost)
        self.end(job_id, (job.cancel or outcome) if outcome == "cancelled" else outcome)
        self.dispatch()
        return "accepted"

    def drain(self, name: str, *, leave: bool) -> int:
        leases = self.leases(name)
        if leave:
            self.remove_worker(name, charged=False)
            self.dispatch()
        elif name in self.workers and self.workers[name].registered:
            self.workers[name].ready = False
        return len(leases)

    # The reaper

    def reap(self, api: str, dead: str) -> tuple[str, int]:
        verdict = "ok"
        self.touch()
        if dead in self.workers:
            self.remove_worker(dead, charged=True)
        if api and self.apis.get(api, 0) > self.now:
            self.apis[api] = self.now + TIMEOUT
        elif api:
            verdict = "gone"
        for gone in [name for name, expiry in self.apis.items() if expiry <= self.now]:
            self.remove_api(gone)
        late = [(worker.expiry, name) for name, worker in self.workers.items()]
        for expiry, gone in sorted(late):
            if expiry <= self.now:
                self.remove_worker(gone, charged=True)
        due = sorted((job.due, job_id) for job_id, job in self.jobs.items() if job.open)
        for when, job_id in due:
            if when <= self.now:
                self.look(job_id)
        self.dispatch()
        return (verdict, self.wait())

    def wait(self) -> int:
        times = [job.due for job in self.jobs.values() if job.open]
        times += [worker.expiry for worker in self.workers.values()]
        soonest = min([*times, *self.apis.values(), self.now + TIMEOUT // 3])
        return max(0, soonest - self.now)

    def look(self, job_id: str) -> None:
        job = self.jobs[job_id]
        if job.detached is not None and job.detached <= self.now and not job.cancel:
            if job.state == "running":
                self.stop(job_id, "cancelled")
                job.due = max(job.end_by, self.now + TIMEOUT)
            else:
                self.end(job_id, "cancelled")
        elif job.state == "running":
            self.look_at_running(job_id, job)
        elif job.end_by <= self.now:
            self.fail(job_id, "expired", "request_timeout")
        elif job.state == "queued":
            self.look_at_queued(job_id, job)
        elif job.detached is not None:
            job.look_at(job.end_by)
        elif job.api not in self.apis:
            self.end(job_id, "cancelled")
        elif job.notified < NOTICES:
            job.notified += 1
            job.look_at(self.now + TIMEOUT)
            self.publish_orphaned(job_id)
        else:
            self.fail(job_id, "expired", "worker_lost")

    def look_at_queued(self, job_id: str, job: Job) -> None:
        if self.now < job.queue_by:
            job.look_at(job.queue_by)
        else:
            self.fail(job_id, "expired", "queue_timeout" if self.workers else "no_worker")

    def look_at_running(self, job_id: str, job: Job) -> None:
        if self.now < job.end_by:
            job.look_at(job.end_by, detached=not job.cancel)
        elif job.cancel:
            self.end(job_id, job.cancel)
        else:
            self.publish_failed(job_id, "request_timeout")
            self.stop(job_id, "expired")
            job.due = self.now + TIMEOUT
