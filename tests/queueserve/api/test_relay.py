"""Streams are written from callbacks: nothing is lost, whatever the client and the job do."""

import asyncio

import pytest

from queueserve.api.relay import Relay
from queueserve.api.sse import EventStream
from queueserve.api.stepping import begin, finish
from queueserve.errors import RequestTimeoutError
from queueserve.protocol import Delta, Finished, Job, Started
from queueserve.queue.stream import JobStream
from queueserve.queue.turn import Turn


class Client:
    """An ASGI `send` that can be told to be slow."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, message):
        await self.reads.wait()
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])


@pytest.fixture
def client():
    return Client()


async def closed(_stream):
    pass


def running() -> JobStream:
    stream = JobStream(Job(id="j", pool="p", model="m", kind="completion"), closed)
    stream.placed("running", 1, "w")
    return stream


def render(batch):
    texts = [getattr(event, "text", "") for _, events in batch for event in events]
    return "|".join(texts).encode()


@pytest.fixture
async def job(client):
    stream = running()
    async with EventStream(client.send, interval=60) as out:
        yield stream, asyncio.create_task(Relay(stream, render, out, Turn()).run())


def give(stream, *texts):
    for text in texts:
        seq = len(stream.tokens)
        stream.accept(Delta("j", 1, seq, stream.chars, text, (seq,)))


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_comes_together_is_one_write_and_no_token_waits(client, job):
    stream, over = job
    stream.accept(Started("j", 1, 0, 1, 0, "h", "f", "w"))
    give(stream, "a", "b")
    await turns()
    give(stream, "c")
    await turns()
    assert client.bodies == [b"|a|b", b"c"]
    stream.accept(Finished("j", 1, 3, 3, "", "stop"))
    assert await over == b""  # `render` gives nothing for it
    assert client.bodies == [b"|a|b", b"c"]


async def test_a_client_that_is_behind_gets_all_of_it_in_one_write_later(client, job):
    stream, over = job
    stream.accept(Started("j", 1, 0, 1, 0, "h", "f", "w"))
    give(stream, "a")
    await turns()
    client.reads.clear()
    give(stream, "b")
    await turns()
    for text in "cde":
        give(stream, text)
        await turns()
    stream.accept(Finished("j", 1, 5, 5, "!", "stop"))
    await turns()
    assert client.bodies == [b"|a"]
    assert not over.done()
    client.reads.set()
    assert await over == b"c|d|e|!"  # the last frames leave with the end of the answer
    assert client.bodies == [b"|a", b"b"]


async def test_a_comment_that_waits_for_the_client_holds_back_no_end(client, until):
    stream = running()
    async with EventStream(client.send, interval=0.01, keep_alive=b": hm") as out:
        over = asyncio.create_task(Relay(stream, render, out, Turn()).run())
        await turns()
        client.reads.clear()
        await until(lambda: out.busy)  # with a comment
        stream.accept(Started("j", 1, 0, 1, 0, "h", "f", "w"))
        give(stream, "a")
        stream.accept(Finished("j", 1, 1, 1, "!", "stop"))
        await turns()
        client.reads.set()
        async with asyncio.timeout(60):
            assert await over == b"|a|!"


async def test_a_stream_that_is_stopped_while_its_client_is_behind_has_no_gap(client):
    async with EventStream(client.send, interval=60) as out:
        client.reads.clear()
        writing = asyncio.create_task(out.write(b"a"))
        await turns()
        writing.cancel()  # as by a shutdown
        await turns()
    ending = asyncio.create_task(out.end(b"stopped"))
    await turns()
    client.reads.set()
    async with asyncio.timeout(60):
        await ending
    assert client.bodies == [b"a", b"stopped"]


async def test_a_failed_job_ends_it_after_what_had_come(client, job):
    stream, over = job
    stream.accept(Started("j", 1, 0, 1, 0, "h", "f", "w"))
    give(stream, "a")
    stream.fail(RequestTimeoutError("late"))
    with pytest.raises(RequestTimeoutError):
        await over
    assert client.bodies == [b"|a"]


async def test_what_a_renderer_raises_is_seen(client):
    stream = running()
    async with EventStream(client.send, interval=60) as out:
        over = asyncio.create_task(Relay(stream, lambda _: 1 / 0, out, Turn()).run())
        stream.accept(Started("j", 1, 0, 1, 0, "h", "f", "w"))
        with pytest.raises(ZeroDivisionError):
            await over


async def test_a_coroutine_goes_on_where_it_had_to_wait():
    event, steps = asyncio.Event(), []

    async def work():
        steps.append(1)
        await event.wait()
        steps.append(2)
        await asyncio.sleep(0)
        steps.append(3)

    async def quick():
        steps.append(4)

    assert begin(quick()) is None
    coroutine = work()
    waiting = begin(coroutine)
    assert waiting is not None
    task = asyncio.create_task(finish(coroutine, waiting))
    await turns()
    assert steps == [4, 1]
    event.set()
    await task
    assert steps == [4, 1, 2, 3]
