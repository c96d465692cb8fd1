"""What an operator asks of a worker process, and what it answers: over pub/sub, at most once.

qs:orders:<host>-<pid>   {"id", "do": "load", "model_path", "model_names", "engine"}
{"id", "do": "unload", "model"}
qs:reply:order-<id>      {"ok", "message"}
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import TypeAlias

import orjson
from redis.asyncio import Redis

from queueserve.errors import ProtocolError, QueueServeError, RedisUnavailableError
from queueserve.queue.connection import open_redis, translated
from queueserve.queue.keys import Keys
from queueserve.queue.replies import follow
from queueserve.queue.skips import skip
from queueserve.queue.subscription import Subscription
from queueserve.queue.tasks import Tasks

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model and join its pool."""

    model_path: str
    model_names: tuple[str, ...] = ()  # empty: from the path
    engine: str = "auto"


@dataclass(frozen=True, slots=True)
class Unload:
    """Finish what runs of a model, leave its pool and give its memory back."""

    model: str


Order: TypeAlias = Load | Unload
Obey: TypeAlias = Callable[[Order], Awaitable[str]]
_KINDS: dict[str, type[Order]] = {"load": Load, "unload": Unload}


class OrderError(QueueServeError):
    """The order was not carried out; the message says why."""

    code = "order"


def _encode(order: Order, name: str) -> bytes:
    kind = next(kind for kind, cls in _KINDS.items() if cls is type(order))
    return orjson.dumps({"id": name, "do": kind, **asdict(order)})


def _decode(message: bytes) -> tuple[str, Order]:
    try:
        data = orjson.loads(message)
        name, kind = str(data.pop("id")), _KINDS[data.pop("do")]
        if "model_names" in data:
            data["model_names"] = tuple(data["model_names"])
        return name, kind(**data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"not an order: {error}") from error


async def give(redis_url: str, prefix: str, process: str, order: Order, *, within: float) -> str:
    """Ask a worker process to do something; its answer, within seconds.

    `process` is its `host-pid`, or the id of one of its workers. Raises OrderError,
    RedisUnavailableError.
    """
    redis, keys, name = open_redis(redis_url), Keys(prefix), secrets.token_hex(8)
    try:
        async with Subscription(redis, keys.reply(f"order-{name}")) as replies:
            # A worker's id is its process's and a suffix.
            for named in (process, process.rpartition("-")[0]):
                with translated():
                    heard = await redis.publish(keys.orders(named), _encode(order, name))
                if heard:
                    break
            else:
                raise OrderError(f"No worker process {process!r} is there; see queueserve status.")
            try:
                async with asyncio.timeout(within):
                    answer = await replies.next()
            except TimeoutError:
                raise OrderError(f"{process} has not answered within {within:.0f} s.") from None
    finally:
        await redis.aclose()
    return _told(answer)


def _told(answer: bytes) -> str:
    """What a worker process has answered. Raises OrderError if that is no, or none of ours."""
    try:
        told = orjson.loads(answer)
        done, message = told["ok"], str(told["message"])
    except (ValueError, TypeError, KeyError) as error:
        raise OrderError(f"What came back is no answer to an order: {error!r}") from error
    if not done:
        raise OrderError(message)
    return message


class Orders:
    """Listens for orders to this process, and answers them; each is obeyed in a task of its own."""

    def __init__(self, redis: Redis, keys: Keys, process: str, obey: Obey) -> None:
        self._redis = redis
        self._keys = keys
        self._process = process
        self._obey = obey
        self._tasks = Tasks()

    async def run(self) -> None:
        """Listen for ever."""
        try:
            await follow(
                self._redis,
                self._keys.orders(self._process),
                subscribed=lambda: None,
                lost=lambda: None,
                message=self._message,
            )
        finally:
            await self._tasks.aclose()

    def _message(self, message: bytes) -> None:
        try:
            name, order = _decode(message)
        except ProtocolError as error:
            skip(log, "order", error.message)
            return
        self._tasks.start(self._answer(name, order), f"order {name}")

    async def _answer(self, name: str, order: Order) -> None:
        log.info("ordered: %s", order)
        try:
            answer = {"ok": True, "message": await self._obey(order)}
        except QueueServeError as error:
            answer = {"ok": False, "message": error.message}
        try:
            with translated():
                await self._redis.publish(self._keys.reply(f"order-{name}"), orjson.dumps(answer))
        except RedisUnavailableError as error:
            log.warning("an order's answer was lost: %s", error.message)
