"""The way back: an API server reads one channel, to which workers publish a message per step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from redis.asyncio import Redis

from queueserve.encoding import decode_events
from queueserve.errors import ProtocolError, RedisUnavailableError
from queueserve.protocol import Event
from queueserve.queue.skips import counts, skip
from queueserve.queue.subscription import Subscription

log = logging.getLogger(__name__)

_RETRY = 0.1  # seconds between attempts to subscribe; doubles
_RETRY_MAX = 2.0


async def follow(
    redis: Redis,
    channel: str,
    *,
    subscribed: Callable[[], None],
    lost: Callable[[], None],
    message: Callable[[bytes], None],
) -> None:
    """Call `message` for every message on `channel`, for ever.

    What is published while the connection is away is lost: `subscribed` is called after every
    subscription, the first one too, and `lost` when one ends; they must not raise. A message that
    makes `message` raise is logged and skipped.
    """

    def handle(body: bytes) -> None:
        try:
            message(body)
        except Exception:  # or nothing would ever be heard on this channel again
            counts["message"] += 1
            text = "a message on %s could not be handled"
            log.exception(text, channel, extra={"sparse": True})

    pause = _RETRY
    while True:
        with contextlib.suppress(RedisUnavailableError):
            async with Subscription(redis, channel) as subscription:
                pause = _RETRY
                subscribed()
                try:
                    await subscription.deliver(handle)
                finally:
                    lost()
        await asyncio.sleep(pause)
        pause = min(2 * pause, _RETRY_MAX)


def events_of(message: bytes) -> list[Event]:
    """The events of a message from a reply channel; one that is not ours is logged and skipped."""
    try:
        return decode_events(message)
    except ProtocolError as error:
        skip(log, "message", f"on the reply channel: {error}")
        return []
