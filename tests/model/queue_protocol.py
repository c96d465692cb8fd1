"""The protocol of the queue as a state machine, so small that every interleaving can be tried.

API servers, some workers with a slot each, some jobs of LENGTH tokens. A job is read at the first
API server; with a second one, its client may try again there, and the first one does not know.
Actions are named like the functions of the library, and like what workers and API servers do around
them. A token is named by the epoch that drew it, as another run may draw another one. What the real
system does by the clock (an expiry, a silence) may happen here at any moment at which it could.

`Bugs` are switches for errors that the design is made against; the explorer must find each.
"""

from __future__ import annotations

from collections.abc import Iterator

from queue_world import (
    LENGTH,
    SLOTS,
    Bugs,
    Job,
    Reader,
    Redis,
    Run,
    Step,
    Tokens,
    Worker,
    World,
    leases,
    next_epoch,
    place,
    put,
    put_reader,
    put_worker,
    reads,
    take_slots,
    write,
    wrong,
)


def steps(world: World, bugs: Bugs) -> Iterator[Step]:
    """All that may happen next."""
    for number in range(len(world.readers)):
        yield from submit(world, number, bugs)
        yield from resume(world, number, bugs)
        yield from resync(world, number)
        yield from read_result(world, number)
        yield from leave(world, number)
    for job in range(len(world.redis.jobs)):
        yield from due_orphaned(world, job)
    for at, worker in enumerate(world.workers):
        if worker.state == "up":
            yield from claim(world, at, bugs)
            yield from heartbeat(world, at, bugs)
            yield from agree(world, at, bugs)
            for run in worker.runs:
                yield from generate(world, at, run)
            for run in worker.finished:
                yield from finish(world, at, run, bugs)
        yield from reap(world, at, bugs)
        yield from faults(world, at, bugs)
    if world.faults and world.before is not None:
        lost = world._replace(redis=world.before, before=None, faults=world.faults - 1, lost=True)
        yield "Redis loses its last write", lost


# The functions in Redis


def dispatch(world: World, redis: Redis, bugs: Bugs) -> World:
    """While a job waits and a worker is free, the one goes to the other."""
    for at in range(len(redis.jobs)):
        taken = {} if bugs.slots_uncounted else dict(redis.taken)
        free = [worker for worker in sorted(redis.alive) if taken.get(worker, 0) < SLOTS]
        if free and redis.jobs[at].state == "queued":
            world, redis, epoch = next_epoch(world, redis, bugs)
            running = redis.jobs[at]._replace(state="running", epoch=epoch, worker=free[0])
            hint = (free[0], at, epoch)
            redis = put(redis, at, running)._replace(inbox=redis.inbox | {hint})
            redis = take_slots(redis, free[0], 1)
    return write(world, redis)


def submit(world: World, number: int, bugs: Bugs) -> Iterator[Step]:
    """Also again, when Redis has lost it. (To attach to a known job changes nothing here.)"""
    (api, at), reader = place(world, number), world.readers[number]
    if api and not reader.asked:
        return
    if at and not world.readers[number - 1].asked and not reader.asked:
        return  # jobs are alike, so the first one may as well come first
    if not world.redis.jobs[at].state and not reader.ended:
        job = Job(state="queued", resume=reader.tokens, api=api)
        asked = put_reader(world, number, reader._replace(asked=True))
        yield f"submit {at} at {api}", dispatch(asked, put(world.redis, at, job), bugs)


def leave(world: World, number: int) -> Iterator[Step]:
    """A client tries again at the next API server, which attaches; the one it has left hears it."""
    (api, at), reader = place(world, number), world.readers[number]
    job, other = world.redis.jobs[at], number + len(world.redis.jobs)
    if not reader.asked or reader.ended:
        return
    if job.api > api:  # it asks how the job stands, and who reads it
        yield f"{api} lets go of {at}", put_reader(world, number, reader._replace(ended=True))
    elif world.faults and other < len(world.readers) and job.state not in ("", "cancelled"):
        left = put_reader(world, other, Reader(asked=True))._replace(faults=world.faults - 1)
        attached = put(world.redis, at, job._replace(api=api + 1))
        yield f"the client of {at} goes to {api + 1}", write(left, attached)


def resume(world: World, number: int, bugs: Bugs) -> Iterator[Step]:
    """The reader freezes what it has, and sends an orphan on from there; nobody else can."""
    (api, at), reader = place(world, number), world.readers[number]
    job = world.redis.jobs[at]
    its = job.api == api or bugs.resume_by_anybody
    if job.state == "orphaned" and its and reader.asked and not reader.ended:
        after = put_reader(world, number, reader._replace(epoch=max(reader.epoch, job.epoch)))
        queued = job._replace(state="queued", resume=reader.tokens)
        yield f"resume {at} at {api}", dispatch(after, put(world.redis, at, queued), bugs)


def finish(world: World, at: int, run: Run, bugs: Bugs) -> Iterator[Step]:
    """The worker says it until it is acknowledged, and again when a heartbeat shows the lease."""
    worker, job = world.workers[at], world.redis.jobs[run.job]
    holds = (job.epoch, job.worker) == (run.epoch, worker.id)
    if bugs.finish_without_epoch:
        holds = bool(job.state)
    what, open_still = f"finish {run.job} by {worker.id}", job.state not in ("done", "cancelled")
    redis = world.redis
    if holds and (open_still or bugs.finish_twice):
        if job.state == "running":
            redis = take_slots(redis, job.worker, -1)
        done = job._replace(state="done", result=run.tokens, accepted=job.accepted + 1)
        yield what, dispatch(world, put(redis, run.job, done), bugs)
    elif bugs.finish_frees_twice and worker.id in redis.alive:
        yield what, dispatch(world, take_slots(redis, worker.id, -1), bugs)


def reap(world: World, at: int, bugs: Bugs) -> Iterator[Step]:
    """A worker that is silent for its timeout loses its jobs; those with a reader are parked."""
    worker, redis = world.workers[at], world.redis
    if worker.state == "up" or worker.id not in redis.alive:
        return
    held = leases(redis, worker.id)
    hints = frozenset(hint for hint in redis.inbox if hint[0] != worker.id)
    redis = redis._replace(alive=redis.alive - {worker.id}, inbox=hints)
    redis = take_slots(redis, worker.id, -dict(redis.taken).get(worker.id, 0))
    for job_at, _ in sorted(held):
        job, reader = redis.jobs[job_at], reads(world, job_at)
        world, redis, epoch = next_epoch(world, redis, bugs)
        state = "queued" if bugs.reaper_requeues else "orphaned"
        parked = job._replace(state="cancelled" if reader.ended else state, epoch=epoch, worker=-1)
        redis = put(redis, job_at, parked)
    yield f"reap {worker.id}", dispatch(world, redis, bugs)


def due_orphaned(world: World, at: int) -> Iterator[Step]:
    """Nobody waits for it any more."""
    job = world.redis.jobs[at]
    if job.state == "orphaned" and reads(world, at).ended:
        yield f"cancel {at}", write(world, put(world.redis, at, job._replace(state="cancelled")))


# Workers


def start(worker: Worker, job: Job, at: int, bugs: Bugs) -> Worker | None:
    """Run a claim, unless it is here or was; None if this very claim has run before."""
    claim = (at, job.epoch)
    here = {(run.job, run.epoch) for run in worker.runs}
    done = {(run.job, run.epoch) for run in worker.finished}
    if claim in here or (claim in done and not bugs.no_dedup):
        return worker
    if claim in worker.begun:
        return None
    others = frozenset(run for run in worker.runs if run.job != at)
    runs = others | {Run(at, job.epoch, job.resume)}
    return worker._replace(runs=runs, begun=worker.begun | {claim})


def claim(world: World, at: int, bugs: Bugs) -> Iterator[Step]:
    """Take a hint out of the inbox. The answer may get lost on its way."""
    worker = world.workers[at]
    for hint in world.redis.inbox:
        _, job_at, epoch = hint
        if hint[0] != worker.id:
            continue
        redis = world.redis._replace(inbox=world.redis.inbox - {hint})
        after, job = write(world, redis), redis.jobs[job_at]
        if world.faults:
            yield f"claim {job_at} is lost", after._replace(faults=world.faults - 1)
        if (job.state, job.epoch, job.worker) == ("running", epoch, worker.id):
            begun = start(worker, job, job_at, bugs)
            if begun is not None:
                yield f"claim {job_at} by {worker.id}", put_worker(after, at, begun)


def heartbeat(world: World, at: int, bugs: Bugs) -> Iterator[Step]:
    """Redis answers; the worker hears it some time later."""
    worker = world.workers[at]
    if worker.beat is None and worker.id in world.redis.alive:
        beat = (world.redis.epoch, leases(world.redis, worker.id))
        yield f"heartbeat {worker.id}", put_worker(world, at, worker._replace(beat=beat))
    elif worker.id not in world.redis.alive:  # gone: it goes on as a new incarnation
        fresh = Worker(world.born, begun=worker.begun)
        joined = put_worker(world, at, fresh)._replace(born=world.born + 1)
        redis = world.redis._replace(alive=world.redis.alive | {fresh.id})
        yield f"{worker.id} registers as {fresh.id}", dispatch(joined, redis, bugs)


def agree(world: World, at: int, bugs: Bugs) -> Iterator[Step]:
    """Hear the answer: drop what was taken away, take what a lost hint has not told."""
    worker = world.workers[at]
    if worker.beat is None:
        return
    snapshot, held = worker.beat
    kept = frozenset(r for r in worker.runs if (r.job, r.epoch) in held or r.epoch > snapshot)
    worker = worker._replace(beat=None, runs=kept)
    for job_at, epoch in sorted(held) if not bugs.pop_is_the_only_record else ():
        job = world.redis.jobs[job_at]
        if (job.state, job.epoch) == ("running", epoch) or bugs.no_dedup:
            begun = start(worker, job._replace(epoch=epoch), job_at, bugs)
            if begun is None:
                yield f"{worker.id} agrees", wrong(world, f"{job_at} runs twice under one epoch")
                return
            worker = begun
    yield f"{worker.id} agrees", put_worker(world, at, worker)


def generate(world: World, at: int, run: Run) -> Iterator[Step]:
    """One more token; its event arrives or is lost. After the last one the run has finished."""
    worker = world.workers[at]
    full = len(run.tokens) >= LENGTH  # only the end was lost with the last worker
    grown = run if full else run._replace(tokens=(*run.tokens, run.epoch))
    left = worker.runs - {run}
    if len(grown.tokens) < LENGTH:
        worker = worker._replace(runs=left | {grown})
    else:
        worker = worker._replace(runs=left, finished=worker.finished | {grown})
    after = put_worker(world, at, worker)
    what = f"{worker.id} generates {grown}"
    for number in range(run.job, len(world.readers), len(world.redis.jobs)):
        yield f"{what}, heard by {number}", deliver(after, grown, number)
    if world.faults:
        yield f"{what}, unheard", after._replace(faults=world.faults - 1)


# The reader


def deliver(world: World, run: Run, number: int) -> World:
    """Take an event in: the fence, then trim or gap."""
    reader, job = world.readers[number], world.redis.jobs[run.job]
    if not reader.asked or reader.ended or run.epoch < reader.epoch:
        return world
    if run.epoch > reader.epoch and run.epoch != job.epoch:
        return world  # Redis does not confirm it
    have, seq = reader.tokens, len(run.tokens) - 1
    reader = reader._replace(epoch=run.epoch)
    if seq > len(have):
        return put_reader(world, number, reader)  # a gap; resync fills it
    if run.tokens[: len(have)] != have[: len(run.tokens)]:
        if place(world, number)[0] != job.api:  # it ends with an error; its client went elsewhere
            return put_reader(world, number, reader._replace(ended=True))
        return wrong(world, f"the client of {run.job} gets a mixture of two runs")
    return take(world, reader, number, max(have, run.tokens, key=len))


def take(world: World, reader: Reader, number: int, tokens: Tokens) -> World:
    done = len(tokens) == LENGTH
    return put_reader(world, number, reader._replace(tokens=tokens, ended=done))


def resync(world: World, number: int) -> Iterator[Step]:
    """Ask the worker that Redis names for what is missing."""
    (api, at), reader = place(world, number), world.readers[number]
    job = world.redis.jobs[at]
    for worker in world.workers:
        if (worker.state, worker.id) != ("up", job.worker) or reader.ended or job.api != api:
            continue
        for run in worker.runs:
            holds = (run.job, run.epoch) == (at, job.epoch) and run.epoch >= reader.epoch
            if holds and len(run.tokens) > len(reader.tokens):
                yield f"resync {at} at {api}", deliver(world, run, number)


def read_result(world: World, number: int) -> Iterator[Step]:
    """The end was lost: Redis has it."""
    (api, at), reader = place(world, number), world.readers[number]
    job, what = world.redis.jobs[at], f"read {at} at {api}"
    if job.state != "done" or not reader.asked or reader.ended or job.epoch < reader.epoch:
        return
    if job.result[: len(reader.tokens)] == reader.tokens:
        yield what, take(world, reader, number, job.result)
    else:  # an error that the client is told of
        yield what, put_reader(world, number, reader._replace(ended=True))


# What goes wrong


def faults(world: World, at: int, bugs: Bugs) -> Iterator[Step]:
    """kill -9, SIGSTOP and SIGCONT; a dead worker is started again."""
    worker = world.workers[at]
    left = world._replace(faults=world.faults - 1)
    if worker.state == "up" and world.faults:
        yield f"kill {worker.id}", put_worker(left, at, worker._replace(state="dead"))
        yield f"stop {worker.id}", put_worker(left, at, worker._replace(state="paused"))
    elif worker.state == "paused":
        yield f"continue {worker.id}", put_worker(world, at, worker._replace(state="up"))
    elif worker.state == "dead" and worker.id not in world.redis.alive:
        fresh = put_worker(world, at, Worker(world.born))._replace(born=world.born + 1)
        redis = world.redis._replace(alive=world.redis.alive | {world.born})
        yield f"start {world.born}", dispatch(fresh, redis, bugs)


def invariant(world: World) -> str:
    """What is wrong with this state; "" if nothing is."""
    if world.wrong:
        return world.wrong
    for worker, taken in world.redis.taken:
        if not 0 <= taken <= SLOTS:
            return f"{taken} of {SLOTS} slots of {worker} are taken"
    for number, reader in enumerate(world.readers):
        api, at = place(world, number)
        job = world.redis.jobs[at]
        if job.accepted > 1:
            return f"two finishes of {at} were accepted"
        # With a lost write a job may run twice: its stream is whole, but Redis keeps another one.
        same = job.result[: len(reader.tokens)] == reader.tokens
        if job.state == "done" and api == job.api and not same and not world.lost:
            return f"the client of {at} has another answer than Redis"
    return ""


def step_invariant(before: World, after: World) -> str:
    """What is wrong with a step; "" if nothing is. Epochs only grow, also over a lost write."""
    if after.redis == before.before:
        return ""  # it is that loss
    for at, (old, new) in enumerate(zip(before.redis.jobs, after.redis.jobs, strict=True)):
        if new.epoch != old.epoch and new.epoch <= before.clock:
            return f"{at} gets the epoch {new.epoch}, and {before.clock} was there before"
    return ""
