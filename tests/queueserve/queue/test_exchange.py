"""Commands that share a write: each gets its own answer, and none waits for ever."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import RedisError, ResponseError

from queueserve.queue import exchange as module
from queueserve.queue.connection import open_redis
from queueserve.queue.exchange import Calls, exchange, pack

BOUND = 20.0


async def reads(redis) -> int:
    return (await redis.info("stats"))["total_reads_processed"]


async def blocked(redis) -> None:
    while True:
        if (await redis.info("clients"))["blocked_clients"]:
            return
        await asyncio.sleep(0.01)


async def test_answers_come_in_order_and_a_refused_command_is_alone_in_it(redis):
    commands = [("SET", "a", 1), ("LPUSH", "a", "x"), ("GET", "a"), ("GET", b"\xff\x00")]
    done, refused, value, nothing = await exchange(redis, list(map(pack, commands)))
    assert (done, value, nothing) == (b"OK", b"1", None)
    assert isinstance(refused, ResponseError)


async def test_calls_of_one_turn_are_one_read_of_the_server(redis):
    calls = Calls(redis)
    await calls.call("PING")
    before = await reads(redis)
    answers = await asyncio.gather(*(calls.call("INCRBY", "n", 1) for _ in range(100)))
    assert answers == list(range(1, 101))
    assert await reads(redis) - before <= 3  # theirs, and those that ask


async def test_each_caller_hears_of_its_own_error(redis):
    calls = Calls(redis)
    bad, good = await asyncio.gather(
        calls.call("NO-SUCH"), calls.call("PING"), return_exceptions=True
    )
    assert isinstance(bad, ResponseError)
    assert good == b"PONG"


async def test_a_caller_that_leaves_does_not_disturb_the_others(redis):
    calls = Calls(redis)
    first, second = (asyncio.create_task(calls.call("ECHO", text)) for text in "ab")
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"b"
    assert await calls.call("ECHO", "c") == b"c"


async def test_a_connection_that_is_cut_fails_what_is_on_its_way_and_nothing_else(redis, redis_url):
    calls = Calls(redis)
    name = await calls.call("CLIENT", "ID")
    waiting = asyncio.create_task(calls.call("BLPOP", "nothing", 10))
    await asyncio.sleep(0)
    later = asyncio.create_task(calls.call("PING"))
    other = open_redis(redis_url)
    async with asyncio.timeout(BOUND):
        await blocked(other)
        await other.client_kill_filter(_id=name)
        with pytest.raises(RedisError):
            await waiting
        assert await later == b"PONG"
    await other.aclose()


@pytest.fixture
async def mute():
    """A server that takes everything and says nothing; gives its URL."""
    writers = []
    silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1")
    host, port = silent.sockets[0].getsockname()
    yield f"redis://{host}:{port}"
    silent.close()
    for writer in writers:
        writer.close()


async def test_all_in_line_for_a_mute_server_hear_of_it_together(mute, monkeypatch):
    monkeypatch.setattr(module, "CALL_TIMEOUT", 0.2)
    monkeypatch.setattr(module, "_MOST", 2)
    redis = open_redis(mute)
    calls = Calls(redis)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(BOUND):
        answers = await asyncio.gather(
            *(calls.call("PING") for _ in range(200)), return_exceptions=True
        )
    assert [type(answer) for answer in answers] == [TimeoutError] * 200
    assert loop.time() - began < 0.2 * 20  # a hundred writes, one after the other, would take 20 s
    with pytest.raises(TimeoutError):
        await calls.call("PING")
    await redis.aclose()


async def test_a_line_of_many_writes_moves_on(redis, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 3)
    calls = Calls(redis)
    answers = await asyncio.gather(*(calls.call("ECHO", number) for number in range(100)))
    assert answers == [b"%d" % number for number in range(100)]


async def test_large_commands_do_not_share_a_write(redis, monkeypatch):
    sizes = []

    async def recorded(to, commands):
        sizes.append(list(map(len, commands)))
        return await exchange(to, commands)

    monkeypatch.setattr(module, "exchange", recorded)
    monkeypatch.setattr(module, "_MOST_BYTES", 100)
    texts = ["a" * 20, "b" * 20, "c" * 500, "d" * 20, "e" * 80]
    calls = Calls(redis)
    answers = await asyncio.gather(*(calls.call("ECHO", text) for text in texts))
    assert answers == [text.encode() for text in texts]
    assert list(map(len, sizes)) == [2, 1, 1, 1]
