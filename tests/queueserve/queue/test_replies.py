"""The one reader of a channel: it stays through silence, and nothing it reads ends it."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

import pytest

from queueserve.errors import RedisUnavailableError
from queueserve.queue.connection import open_redis, translated
from queueserve.queue.replies import follow
from queueserve.queue.subscription import Subscription


@pytest.fixture
async def impatient(redis_url, monkeypatch):
    """A client that gives every command a little less than the silence will last."""
    monkeypatch.setattr("queueserve.queue.connection.ANSWER_TIMEOUT", 2.5)
    client = open_redis(redis_url)
    monkeypatch.undo()
    yield client
    await client.aclose()


async def test_a_subscription_outlasts_silence(impatient, redis):
    async with Subscription(impatient, "channel", interval=1.0) as subscription:
        message = asyncio.create_task(subscription.next())
        await asyncio.sleep(3.0)  # several pings
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
    async with asyncio.timeout(60):
        assert await seen.get() == b"good"
    assert "could not be handled" in caplog.text
    reading.cancel()
    await asyncio.wait([reading])


async def answers(client) -> None:
    """Wait until the server is up."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(RedisUnavailableError), translated():
                assert await client.ping()
                return
            await asyncio.sleep(0.02)


async def test_a_subscription_that_a_user_may_not_make_says_so(start_redis, tmp_path):
    users = tmp_path / "users"
    users.write_text("user default on nopass ~* +@all resetchannels\n")
    client = open_redis(f"redis://127.0.0.1:{start_redis('--aclfile', str(users)).port}")
    await answers(client)
    with pytest.raises(RedisUnavailableError, match="refuses"):
        async with Subscription(client, "channel"):
            pass
    await client.aclose()


async def test_a_subscription_to_a_server_that_hangs_ends_within_two_intervals(redis_url):
    """The proxy between goes on to take what is sent, and says nothing any more."""
    silent = asyncio.Event()
    writers = []

    async def relay(reader, writer, *, back):
        while data := await reader.read(65536):
            if not (back and silent.is_set()):
                writer.write(data)

    async def accept(reader, writer):
        at = urlsplit(redis_url)
        there, out = await asyncio.open_connection(at.hostname, at.port)
        writers.extend([writer, out])
        with contextlib.suppress(OSError):
            await asyncio.gather(relay(reader, out, back=False), relay(there, writer, back=True))

    proxy = await asyncio.start_server(accept, "127.0.0.1")
    host, port = proxy.sockets[0].getsockname()
    client = open_redis(f"redis://{host}:{port}")
    async with asyncio.timeout(60), Subscription(client, "channel", interval=0.3) as subscription:
        silent.set()
        with pytest.raises(RedisUnavailableError):
            await subscription.next()
    await client.aclose()
    proxy.close()
    for writer in writers:
        writer.close()
