"""How Redis knows an API server: under an id that holds for as long as it is renewed in time."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable
from functools import partial

from redis.asyncio import Redis

from queueserve.errors import RedisUnavailableError, ServerExpiredError
from queueserve.protocol import Continuation
from queueserve.queue.clock import lease_clock
from queueserve.queue.keys import Keys
from queueserve.queue.producer import Producer, Standing
from queueserve.queue.recovery import Reaper, jittered
from queueserve.queue.replies import follow
from queueserve.queue.stream import JobStream
from queueserve.queue.tasks import Tasks

log = logging.getLogger(__name__)


class Session:
    """One registration of this API server. Once it has expired, its id is never used again.

    It is renewed in every pool in which it was confirmed. `lost` is called when a pool's state is
    gone from Redis, and what is open must be submitted again; `ended` when the session has expired;
    `damaged` when it has expired in one pool alone, whose keys Redis refuses: what is open there
    ends, and the next submit registers anew.
    """

    def __init__(
        self,
        producer: Producer,
        reaper: Reaper,
        *,
        heartbeat_timeout: float,
        lost: Callable[[], None],
        ended: Callable[[Session], None],
        damaged: Callable[[str], None],
    ) -> None:
        self.api = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.subscribed = asyncio.Event()
        self.tasks = Tasks()
        self.over = False  # another one has taken its place
        self._producer = producer
        self._reaper = reaper
        self._timeout = heartbeat_timeout
        self._lost = lost
        self._ended = ended
        self._damaged = damaged
        self._confirmed: dict[str, float] = {}  # pool → when its last good beat was sent
        self._beating: set[str] = set()  # pools in which it is renewed

    def listen(
        self,
        redis: Redis,
        keys: Keys,
        *,
        subscribed: Callable[[], None],
        message: Callable[[bytes], None],
    ) -> None:
        """Hear what is said to this id, for as long as the session lasts."""

        def begun() -> None:
            self.subscribed.set()
            self.tasks.start(self._load(), "load functions")
            subscribed()

        self.tasks.start(
            follow(
                redis,
                keys.reply(self.api),
                subscribed=begun,
                lost=self.subscribed.clear,
                message=message,
            ),
            "replies",
        )

    async def _load(self) -> None:
        """A Redis that comes back may be an empty one, and workers need not be allowed to load."""
        try:
            await self._producer.load()
        except RedisUnavailableError as error:
            log.warning("the functions could not be loaded: %s", error.message)

    def expire(self) -> None:
        """Say where others may have cancelled what runs under this id: everywhere, or in a pool."""
        limit = lease_clock() - self._timeout
        stale = [pool for pool, sent in self._confirmed.items() if sent < limit]
        if stale and len(stale) == len(self._confirmed):
            self._ended(self)
            return
        for pool in stale:
            del self._confirmed[pool]
            self._damaged(pool)

    async def submit(
        self, stream: JobStream, resume: Continuation | None = None, *, known: bool = False
    ) -> Standing:
        """Submit a stream's job, and be registered in its pool. Raises what Producer.submit does.

        `known`: it was acknowledged before.
        """
        sent, job = lease_clock(), stream.job
        submit = partial(
            self._producer.submit,
            job,
            self.api,
            reader=stream.reader,
            resume=resume,
            known=known,
        )
        try:
            standing = await submit(new_api=job.pool not in self._confirmed)
        except ServerExpiredError:
            self._unknown(job.pool, sent)
            if self.over:
                raise
            sent = lease_clock()
            standing = await submit(new_api=True)
        if not self.over:  # else it has expired meanwhile, and must stay so
            self._confirm(job.pool, sent)
        return standing

    def _confirm(self, pool: str, sent: float) -> None:
        """Redis has registered it in `pool`, by a call of `sent`; keep it so."""
        self._confirmed.setdefault(pool, sent)
        if pool not in self._beating:
            self._beating.add(pool)
            self.tasks.start(self._beat(pool), f"beat {pool}")

    def _unknown(self, pool: str, sent: float) -> None:
        """Redis did not know it at `sent`: its time was up, or Redis has lost data."""
        self.expire()
        if (
            not self.over and self._confirmed.get(pool, sent) < sent
        ):  # else it has been told meanwhile
            log.warning("Redis has lost the state of %s; submitting what is open again", pool)
            del self._confirmed[pool]
            self._lost()

    async def _beat(self, pool: str) -> None:
        """Renew the registration in one pool, and reap it, for as long as the session lasts."""
        while True:
            sent = lease_clock()
            wait = self._timeout / 20
            try:
                reaped = await self._reaper.reap(pool, api=self.api)
            except RedisUnavailableError as error:
                log.debug("beat: %s", error.message)
            else:
                if not reaped.expired:
                    self._confirmed[pool] = sent
                    wait = min(reaped.wait, self._timeout / 5)
                else:
                    self._unknown(pool, sent)
            self.expire()
            if self.over or pool not in self._confirmed:
                break  # the next submit registers, and begins to beat
            await asyncio.sleep(jittered(wait))
        self._beating.discard(pool)
