"""The models that workers have registered: names, and what they stand for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace
from redis.asyncio import Redis

from queueserve.encoding import MAX_CARD, decode_card, encode
from queueserve.errors import ModelNotFoundError, ProtocolError
from queueserve.protocol import ModelCard
from queueserve.queue.connection import translated
from queueserve.queue.exchange import CALL_TIMEOUT
from queueserve.queue.keys import Keys
from queueserve.queue.skips import skip

log = logging.getLogger(__name__)

KNOWN_FOR = 3600
"""Seconds for which a model is known after its last worker; requests for it wait for another."""
MAX_NAMES = 1000
"""Cards of one pool: one with more has not been written by its workers."""
_KEY_TTL = 7 * 86400
_FRESH = 1.0  # seconds for which an API server believes its copy


async def known_cards(redis: Redis, keys: Keys, *, renew: bool = False) -> list[ModelCard]:
    """The cards of all models that are known now, by Redis' clock. Raises RedisUnavailableError.

    An API server must `renew` the set of pools: it would last for ever, or not at all.
    """
    now = await _time(redis)
    cards = await _read(redis, keys, renew=renew)
    return _one_a_name(card for card in cards if card.seen + KNOWN_FOR > now)


async def all_cards(redis: Redis, keys: Keys) -> list[ModelCard]:
    """The cards that are there, also of models that have gone. Raises RedisUnavailableError."""
    return _one_a_name(await _read(redis, keys))


async def announce(redis: Redis, keys: Keys, cards: list[ModelCard]) -> None:
    """Write the cards of a worker's models, as seen now. Raises RedisUnavailableError.

    "Now" is Redis' time: with a wrong clock of its own a worker would hide its model.
    """
    now = await _time(redis)
    with translated():
        async with redis.pipeline(transaction=False) as pipe:
            for card in cards:
                where = keys.pool(card.pool).cards
                pipe.hset(where, card.name, encode(replace(card, seen=now)))  # type: ignore[arg-type]
                pipe.expire(where, _KEY_TTL)
                pipe.sadd(keys.pools, card.pool)
            await pipe.execute()


async def _read(redis: Redis, keys: Keys, *, renew: bool = False) -> list[ModelCard]:
    """The cards of every pool; those that say that they are of another pool are skipped.

    Each pool has a key of its own, which its workers alone may write. None may take a pool out of
    the set of all, or set its TTL: the pool's own name would be free for others. So API servers
    `renew` it.
    """
    with translated():
        async with asyncio.timeout(CALL_TIMEOUT):
            renewal = [("EXPIRE", keys.pools, _KEY_TTL)] if renew else []
            names = (await _asked(redis, [("SMEMBERS", keys.pools), *renewal]))[0]
            if isinstance(names, Exception):
                raise names
            bodies = await _bodies(redis, keys, [name.decode(errors="replace") for name in names])
    cards = []
    for pool, body in bodies:
        try:
            cards.append(_checked(decode_card(body), pool))
        except ProtocolError as error:
            _skipped(pool, error)
    return cards


async def _bodies(redis: Redis, keys: Keys, pools: list[str]) -> list[tuple[str, bytes]]:
    """What the pools' cards say, each with its pool. What is too large stays where it is."""
    where = {pool: keys.pool(pool).cards for pool in pools}
    found = await _asked(redis, [("HRANDFIELD", where[pool], MAX_NAMES + 1) for pool in pools])
    named = []
    for pool, names in zip(pools, found, strict=True):
        if isinstance(names, Exception):
            _skipped(pool, names)
        elif len(names) > MAX_NAMES:
            _skipped(pool, f"it has more than {MAX_NAMES}")
        else:
            named += [(pool, name) for name in names]
    sizes = await _asked(redis, [("HSTRLEN", where[pool], name) for pool, name in named])
    small = []
    for (pool, name), size in zip(named, sizes, strict=True):
        if isinstance(size, int) and size <= MAX_CARD:
            small.append((pool, name))
        else:
            _skipped(pool, size if isinstance(size, Exception) else f"it has {size} bytes")
    bodies = await _asked(redis, [("HGET", where[pool], name) for pool, name in small])
    return [
        (pool, body)
        for (pool, _), body in zip(small, bodies, strict=True)
        if isinstance(body, bytes)  # else it has gone meanwhile
    ]


async def _asked(redis: Redis, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[Any]:
    """Redis' answers, in one round trip; an error stands in the place of its answer."""
    async with redis.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return await pipe.execute(raise_on_error=False)


def _checked(card: ModelCard, pool: str) -> ModelCard:
    if card.pool != pool:
        raise ProtocolError(f"{card.name!r} is said to be of the pool {card.pool!r}")
    return card


def _skipped(pool: str, why: Exception | str) -> None:
    skip(log, "card", f"of {pool}: {why}")


def _one_a_name(cards: Iterable[ModelCard]) -> list[ModelCard]:
    """One card for each name: a pool's own name is that pool's, whoever else says it."""
    found: dict[str, ModelCard] = {}
    for card in sorted(cards, key=lambda card: (card.name != card.pool, card.pool)):
        found.setdefault(card.name, card)
    return list(found.values())


async def _time(redis: Redis) -> int:
    """Unix seconds, as Redis counts them."""
    with translated():
        async with asyncio.timeout(CALL_TIMEOUT):
            seconds, _ = await redis.time()
    return int(seconds)


class Directory:
    """An API server's view of the models, at most a second old; an unknown name is looked up."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._cards: dict[str, ModelCard] = {}
        self._read = -_FRESH
        self._reading = 0  # calls that read it now

    async def find(self, name: str) -> ModelCard:
        """The card of `name`. Raises ModelNotFoundError, RedisUnavailableError."""
        stale = time.monotonic() - self._read > _FRESH and not self._reading
        if stale or name not in self._cards:
            await self._refresh()  # one does, the others need not wait for what they know
        try:
            return self._cards[name]
        except KeyError:
            known = ", ".join(sorted(self._cards)) or "none"
            raise ModelNotFoundError(
                f"The model {name!r} does not exist. Models that workers serve: {known}.",
                param="model",
            ) from None

    async def list(self) -> list[ModelCard]:
        """The models with a live worker, by name. Raises RedisUnavailableError."""
        await self._refresh()
        cards = self._cards  # another call may put newer ones in its place meanwhile
        pools = sorted({card.pool for card in cards.values()})
        with translated():
            async with (
                asyncio.timeout(CALL_TIMEOUT),
                self._redis.pipeline(transaction=False) as pipe,
            ):
                for pool in pools:
                    pipe.zcard(self._keys.pool(pool).alive)
                counts = await pipe.execute(raise_on_error=False)
        alive = {
            pool
            for pool, count in zip(pools, counts, strict=True)
            if count and not isinstance(count, Exception)  # a key that is not ours tells of none
        }
        return sorted(
            (card for card in cards.values() if card.pool in alive),
            key=lambda card: card.name,
        )

    def pools(self) -> set[str]:
        """The pools of the models known at the last look."""
        return {card.pool for card in self._cards.values()}

    async def _refresh(self) -> None:
        self._reading += 1
        try:
            cards = await known_cards(self._redis, self._keys, renew=True)
        finally:
            self._reading -= 1
        self._cards = {card.name: card for card in cards}
        self._read = time.monotonic()
