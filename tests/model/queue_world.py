"""The states of the protocol of the queue, and short words for changing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

LENGTH = 2
SLOTS = 1  # of a worker
Tokens: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Bugs:
    finish_without_epoch: bool = False
    pop_is_the_only_record: bool = False
    no_dedup: bool = False
    reaper_requeues: bool = False
    resume_by_anybody: bool = False
    finish_twice: bool = False
    finish_frees_twice: bool = False
    slots_uncounted: bool = False
    epoch_from_redis: bool = False


class Job(NamedTuple):
    """As Redis has it. A running job is a lease of its worker."""

    state: str = ""  # "" until it is submitted
    epoch: int = 0
    worker: int = -1  # the id of an incarnation
    api: int = 0  # the API server that reads it
    resume: Tokens = ()
    result: Tokens = ()
    accepted: int = 0  # finishes


class Run(NamedTuple):
    """A job on a worker."""

    job: int
    epoch: int
    tokens: Tokens


class Worker(NamedTuple):
    """A process. `beat` is an answer to a heartbeat that is on its way: (last epoch, leases)."""

    id: int
    state: str = "up"  # or paused, dead
    runs: frozenset[Run] = frozenset()
    finished: frozenset[Run] = frozenset()
    begun: frozenset[tuple[int, int]] = frozenset()
    beat: tuple[int, frozenset[tuple[int, int]]] | None = None


class Reader(NamedTuple):
    """An open request at an API server."""

    asked: bool = False
    epoch: int = 0
    tokens: Tokens = ()
    ended: bool = False


class Redis(NamedTuple):
    jobs: tuple[Job, ...]
    alive: frozenset[int]
    inbox: frozenset[tuple[int, int, int]] = frozenset()  # (worker, job, epoch)
    epoch: int = 0  # the last one
    taken: tuple[tuple[int, int], ...] = ()  # slots: (worker, how many), without those that are 0


class World(NamedTuple):
    redis: Redis
    before: Redis | None  # without the last write
    workers: tuple[Worker, ...]
    readers: tuple[Reader, ...]  # of every job at the first API server, then at the next one
    faults: int  # that may still happen
    clock: int = 0  # never set back: it makes epochs unique
    born: int = 0
    lost: bool = False  # Redis has lost a write
    wrong: str = ""


Step: TypeAlias = tuple[str, World]


def begin(workers: int, jobs: int, faults: int, apis: int = 1) -> World:
    """Nothing is submitted; all workers are registered."""
    ids = range(workers)
    redis = Redis((Job(),) * jobs, frozenset(ids))
    readers = (Reader(),) * jobs * apis
    return World(redis, None, tuple(map(Worker, ids)), readers, faults, born=workers)


def ended(world: World) -> bool:
    """Every client has its answer, and no job is left; one that Redis has lost is not missed."""
    over = ("done", "cancelled", "")
    return all(reader.ended or not reader.asked for reader in world.readers) and all(
        job.state in over for job in world.redis.jobs
    )


def write(world: World, redis: Redis) -> World:
    if redis == world.redis:
        return world
    return world._replace(redis=redis, before=world.redis if world.faults else None)


def put(redis: Redis, at: int, job: Job) -> Redis:
    return redis._replace(jobs=(*redis.jobs[:at], job, *redis.jobs[at + 1 :]))


def put_worker(world: World, at: int, worker: Worker) -> World:
    workers = (*world.workers[:at], worker, *world.workers[at + 1 :])
    return world._replace(workers=workers)


def put_reader(world: World, at: int, reader: Reader) -> World:
    readers = (*world.readers[:at], reader, *world.readers[at + 1 :])
    return world._replace(readers=readers)


def place(world: World, number: int) -> tuple[int, int]:
    """The API server and the job of a reader."""
    return divmod(number, len(world.redis.jobs))


def reads(world: World, job: int) -> Reader:
    """The reader that Redis knows of a job."""
    return world.readers[world.redis.jobs[job].api * len(world.redis.jobs) + job]


def wrong(world: World, why: str) -> World:
    return world._replace(wrong=why)


def leases(redis: Redis, worker: int) -> frozenset[tuple[int, int]]:
    held = enumerate(redis.jobs)
    return frozenset(
        (at, job.epoch) for at, job in held if (job.state, job.worker) == ("running", worker)
    )


def take_slots(redis: Redis, worker: int, by: int) -> Redis:
    """Count `by` more slots of a worker as taken, or fewer."""
    taken = dict(redis.taken)
    taken[worker] = taken.get(worker, 0) + by
    return redis._replace(taken=tuple(sorted(pair for pair in taken.items() if pair[1])))


def next_epoch(world: World, redis: Redis, bugs: Bugs) -> tuple[World, Redis, int]:
    """An epoch is a time: Redis may lose what it last wrote, but does not give that out again."""
    epoch = (redis.epoch if bugs.epoch_from_redis else world.clock) + 1
    return world._replace(clock=max(world.clock, epoch)), redis._replace(epoch=epoch), epoch
