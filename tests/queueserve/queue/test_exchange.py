"""Commands that share a write: each gets its own answer, and none waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from redis.exceptions import BusyLoadingError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from queueserve.queue import exchange as module
from queueserve.queue.connection import open_redis
from queueserve.queue.exchange import Line, pack
from queueserve.queue.wire import Wire

BOUND = 60.0


async def reads(redis) -> int:
    return (await redis.info("stats"))["total_reads_processed"]


async def blocked(redis) -> None:
    while True:
        if (await redis.info("clients"))["blocked_clients"]:
            return
        await asyncio.sleep(0.01)


async def test_answers_come_in_order_and_a_refused_command_is_alone_in_it(redis):
    commands = [("SET", "a", 1), ("LPUSH", "a", "x"), ("GET", "a"), ("GET", b"\xff\x00")]
    done, refused, value, nothing = await Line(redis).exchange(list(map(pack, commands)))
    assert (done, value, nothing) == (b"OK", b"1", None)
    assert isinstance(refused, ResponseError)


async def test_calls_of_one_turn_are_one_read_of_the_server(redis):
    line = Line(redis)
    await line.call("PING")
    before = await reads(redis)
    answers = await asyncio.gather(*(line.call("INCRBY", "n", 1) for _ in range(100)))
    assert answers == list(range(1, 101))
    assert await reads(redis) - before <= 3  # theirs, and those that ask


async def test_each_caller_hears_of_its_own_error(redis):
    line = Line(redis)
    bad, good = await asyncio.gather(
        line.call("NO-SUCH"), line.call("PING"), return_exceptions=True
    )
    assert isinstance(bad, ResponseError)
    assert good == b"PONG"


async def test_a_caller_that_leaves_does_not_disturb_the_others(redis):
    line = Line(redis)
    first, second = (asyncio.create_task(line.call("ECHO", text)) for text in "ab")
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"b"
    assert await line.call("ECHO", "c") == b"c"


async def test_a_connection_that_is_cut_fails_what_is_on_its_way_and_nothing_else(redis, redis_url):
    line = Line(redis)
    name = await line.call("CLIENT", "ID")
    waiting = asyncio.create_task(line.call("BLPOP", "nothing", 10))
    await asyncio.sleep(0)
    later = asyncio.create_task(line.call("PING"))
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


@pytest.fixture
def written(monkeypatch):
    """How many bytes each write had."""
    sizes, write = [], Wire.write

    def recorded(wire, data):
        sizes.append(len(data))
        return write(wire, data)

    monkeypatch.setattr(Wire, "write", recorded)
    return sizes


async def test_all_in_line_for_a_mute_server_hear_of_it_together(mute, monkeypatch, written):
    monkeypatch.setattr(module, "CALL_TIMEOUT", 0.2)
    monkeypatch.setattr(module, "_MOST", 2)
    redis = open_redis(mute)
    line = Line(redis)
    async with asyncio.timeout(BOUND):
        answers = await asyncio.gather(
            *(line.call("PING") for _ in range(200)), return_exceptions=True
        )
    assert [type(answer) for answer in answers] == [TimeoutError] * 200
    assert len(written) < 5  # and not a hundred, one after the other, each for its time
    with pytest.raises(TimeoutError):
        await line.call("PING")
    await redis.aclose()


async def test_a_line_of_many_writes_moves_on(redis, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 3)
    line = Line(redis)
    answers = await asyncio.gather(*(line.call("ECHO", number) for number in range(100)))
    assert answers == [b"%d" % number for number in range(100)]


async def test_large_commands_do_not_share_a_write(redis, monkeypatch, written):
    monkeypatch.setattr(module, "_MOST_BYTES", 100)
    texts = ["a" * 20, "b" * 20, "c" * 500, "d" * 20, "e" * 80]
    line = Line(redis)
    answers = await asyncio.gather(*(line.call("ECHO", text) for text in texts))
    assert answers == [text.encode() for text in texts]
    together, *others = (len(pack(("ECHO", text))) for text in texts)
    assert written == [together + others[0], *others[1:]]


async def test_a_line_whose_connection_was_cut_while_idle_opens_another(redis, redis_url):
    line = Line(redis)
    number = await line.call("CLIENT", "ID")
    other = open_redis(redis_url)
    await other.client_kill_filter(_id=number)
    async with asyncio.timeout(BOUND):
        while True:
            try:
                assert await line.call("CLIENT", "ID") != number
                break
            except RedisError:  # it had not heard of it yet
                continue
    await other.aclose()


async def test_a_line_to_a_server_that_is_not_there_says_so_at_once(closed_port):
    redis = open_redis(f"redis://127.0.0.1:{closed_port}")
    line = Line(redis)
    async with asyncio.timeout(BOUND):
        answers = await asyncio.gather(
            *(line.call("PING") for _ in range(1000)), return_exceptions=True
        )
    assert all(isinstance(answer, RedisError) for answer in answers)
    await redis.aclose()


@pytest.fixture
async def says(request):
    """A server that gives every write the same answer; gives its URL, and counts connections."""
    server = SimpleNamespace(connections=0)

    async def serve(reader, writer):
        server.connections += 1
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                writer.write(request.param)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1")
    host, port = listening.sockets[0].getsockname()
    server.url = f"redis://{host}:{port}"
    yield server
    listening.close()


@pytest.mark.parametrize(
    "says, error",
    [
        (b"-READONLY You can't write against a read only replica.\r\n", ReadOnlyError),
        (b"-LOADING Redis is loading the dataset in memory\r\n", BusyLoadingError),
        (b"-ERR max number of clients reached\r\n", RedisConnectionError),
        (b"what is this\r\n", RedisError),
    ],
    indirect=["says"],
)
async def test_an_answer_after_which_a_connection_is_of_no_use_closes_it(says, error):
    redis = open_redis(says.url)
    line = Line(redis)
    for connections in (1, 2):
        async with asyncio.timeout(BOUND):
            with pytest.raises(error):
                await line.call("PING")
        assert says.connections == connections
    await redis.aclose()


@pytest.mark.parametrize("says", [b"+OK\r\n+OK\r\n"], indirect=True)
async def test_an_answer_to_nothing_is_nobodys_answer(says):
    redis = open_redis(says.url)
    line = Line(redis)
    async with asyncio.timeout(BOUND):
        assert await line.call("PING") == b"OK"
        assert await line.call("PING") == b"OK"
    assert says.connections == 2  # the first one could not be trusted any more
    await redis.aclose()


async def test_a_line_leaves_no_connection_to_a_client_that_is_closed(redis, redis_url):
    mine = open_redis(redis_url)
    number = await Line(mine).call("CLIENT", "ID")
    await mine.aclose()
    async with asyncio.timeout(BOUND):
        while True:
            if str(number) not in {one["id"] for one in await redis.client_list()}:
                return
            await asyncio.sleep(0.01)


async def test_a_line_that_is_closed_gives_its_connection_back_and_fails_what_waits(
    redis, redis_url
):
    mine = open_redis(redis_url)
    line = Line(mine)
    waiting = asyncio.create_task(line.call("BLPOP", "nothing", 10))
    async with asyncio.timeout(BOUND):
        await blocked(redis)
        await line.aclose()
        with pytest.raises(RedisConnectionError):
            await waiting
    assert not mine.connection_pool._in_use_connections
    assert await line.call("PING") == b"PONG"  # another one is opened
    await line.aclose()
    await mine.aclose()


async def test_a_line_that_is_closed_while_it_opens_is_closed(mute):
    redis = open_redis(f"{mute}?password=x")  # to log in takes an answer
    line = Line(redis)
    waiting = asyncio.create_task(line.call("PING"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(BOUND):
        await line.aclose()
        with pytest.raises(RedisConnectionError):
            await waiting
    assert not redis.connection_pool._in_use_connections
    await redis.aclose()


async def test_a_line_that_was_closed_while_it_opened_can_be_used_again(redis_url):
    redis = open_redis(redis_url)
    line = Line(redis)
    waiting = asyncio.create_task(line.call("PING"))
    async with asyncio.timeout(BOUND):
        await asyncio.sleep(0)  # in line
        await asyncio.sleep(0)  # being sent
        assert line._opening
        await line.aclose()
        with pytest.raises(RedisConnectionError):
            await waiting
        assert await line.call("PING") == b"PONG"
    await redis.aclose()
