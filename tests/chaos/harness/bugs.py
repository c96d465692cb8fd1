"""Four bugs that this design is there to exclude, and a leak; each can be put into a process.

They are what the checks are checked with: a harness that does not find them proves nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

_LEFT_BYTES = 600  # less than what a request takes
_LEFT_CONNECTIONS = 60  # things left behind; after that the pool would be empty


def finish_without_its_epoch_check(source: str) -> str:
    """Whoever reports the end of a job ends it."""
    return _replaced(source, "if fields[2] ~= epoch or fields[3] ~= worker then", "if false then")


def reaper_requeues_by_itself(source: str) -> str:
    """A job that was streaming starts over elsewhere; its reader is not asked how far it came."""
    return _replaced(
        source,
        "    publish_orphaned(root, fields[3], id, epoch)\n  end\nend",
        """
    local again = redis.call('HMGET', job, 'tenant', 'rank')
    redis.call('HSET', job, 'state', 'queued')
    enqueue(root, id, again[1], tonumber(again[2]))
  end
end""",
    )


def pop_is_the_only_record(source: str) -> str:
    """A hint that was popped and lost is lost: heartbeats do not bring the job again."""
    from workers.incarnation import Incarnation  # noqa: PLC0415 - the bug is in the process that asks for it

    async def agree(*_: object) -> None:
        pass

    Incarnation._agree = agree
    return source


def finished_epochs_run_again(source: str) -> str:
    """A worker does not remember what it has finished."""
    from workers.runner import Runner  # noqa: PLC0415

    Runner.knows = lambda self, claim: self._held.get(claim.job) == claim.epoch
    Runner.finished = lambda *_: False
    return source


def leaks(source: str) -> str:
    """Every request leaves behind one of all that can be left behind, also in its worker."""
    from queueserve.queue.producer import Producer  # noqa: PLC0415
    from workers.runner import Runner  # noqa: PLC0415

    plain, plain_start, left = Producer.submit, Runner._start, []
    if plain.__qualname__.startswith("leaks"):
        return source  # a process has more than one copy of the library

    def leave() -> None:
        left.append(asyncio.create_task(asyncio.Event().wait()))
        left.append(socket.socket())

    def start(self, run) -> None:
        leave()
        plain_start(self, run)

    async def submit(self, job, *args, **options):
        redis = self._functions.redis
        leave()
        if len(left) < _LEFT_CONNECTIONS:
            left.append(await redis.connection_pool.get_connection())
        await redis.set(f"left:{job.id}", "x")
        await redis.hset(self._keys.pool(job.pool).state, job.id, "x" * _LEFT_BYTES)
        return await plain(self, job, *args, **options)

    Producer.submit, Runner._start = submit, start
    return source


def _replaced(source: str, old: str, new: str) -> str:
    if source.count(old) != 1:
        raise ValueError(f"the library does not have this exactly once any more: {old}")
    return source.replace(old, new)


BUGS: dict[str, Callable[[str], str]] = {
    bug.__name__: bug
    for bug in (
        finish_without_its_epoch_check,
        pop_is_the_only_record,
        finished_epochs_run_again,
        reaper_requeues_by_itself,
        leaks,
    )
}
"""Name → what it does to the process that calls it, and to the source of the function library."""
