"""The one reader of a channel: it stays through silence, and nothing it reads ends it."""

from __future__ import annotations

import asyncio

import pytest

from queueserve.queue.connection import Subscription, open_redis
from queueserve.queue.replies import follow


@pytest.fixture
async def impatient(redis_url, monkeypatch):
    """A client that gives every command a tenth of a second."""
    monkeypatch.setattr("queueserve.queue.connection.ANSWER_TIMEOUT", 0.1)
    client = open_redis(redis_url)
    monkeypatch.undo()
    yield client
    await client.aclose()


async def test_a_subscription_outlasts_silence(impatient, redis):
    async with Subscription(impatient, "channel", interval=0.3) as subscription:
        message = asyncio.create_task(subscription.next())
        await asyncio.sleep(1.0)  # several pings
        assert await redis.publish("channel", b"at last") == 1
        assert await message == b"at last"


async def test_a_message_that_cannot_be_handled_is_skipped(redis, caplog):
    subscribed, seen = asyncio.Event(), asyncio.Queue()

    def message(body: bytes) -> None:
        if body == b"bad":
            raise ValueError(body)
        seen.put_nowait(body)

    reading = asyncio.create_task(
        follow(redis, "channel", subscribed=subscribed.set, lost=lambda: None, message=message)
    )
    await subscribed.wait()
    await redis.publish("channel", b"bad")
    await redis.publish("channel", b"good")
    async with asyncio.timeout(10):
        assert await seen.get() == b"good"
    assert "could not be handled" in caplog.text
    reading.cancel()
    await asyncio.wait([reading])
