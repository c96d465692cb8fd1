"""A client that leaves frees what it held, in every phase, and without a line in the error log."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from queueserve.api.disconnect import Client, ServerClosingError

BOUND = 60.0
SLOW = {"tick": 0.05}  # what runs until its client leaves takes 150 seconds by itself
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello " * 20}], "max_tokens": 3000}


@pytest.fixture(autouse=True)
def _no_errors_logged(caplog):
    yield
    records = caplog.get_records("call") + caplog.get_records("teardown")
    assert [record for record in records if record.levelno >= logging.ERROR] == []


async def ask(port: int, **change) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request; the answer is up to the test."""
    body = json.dumps(BODY | {"ignore_eos": True} | change).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return reader, writer


async def settled(redis, state: bytes, *, count: int = 1) -> None:
    """Wait until as many jobs are in this state."""
    async with asyncio.timeout(BOUND):
        while True:
            jobs = await redis.keys("qs:{m}:job:*")
            states = [await redis.hget(job, "state") for job in jobs]
            if states.count(state) == count:
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
async def test_while_it_is_queued(api, worker, redis, stream):
    await worker(slots=1, **SLOW)
    _, busy = await ask(api.port)
    await settled(redis, b"running")
    _, queued = await ask(api.port, stream=stream, n=3)
    await settled(redis, b"queued", count=3)
    queued.close()
    await settled(redis, b"cancelled", count=3)
    assert await redis.zcard("qs:{m}:queue") == 0
    await settled(redis, b"running")
    busy.close()
    await settled(redis, b"cancelled", count=4)


@pytest.mark.parametrize("stream", [True, False])
async def test_while_its_prompt_is_read(api, worker, redis, stream):
    await worker(prefill=1, tick=0.5)
    _, writer = await ask(api.port, stream=stream)
    await settled(redis, b"running")
    writer.close()
    await settled(redis, b"cancelled")


async def test_while_it_streams(api, worker, redis):
    await worker(**SLOW)
    reader, writer = await ask(api.port, stream=True, n=2)
    await reader.readuntil(b"data: ")
    writer.close()
    await settled(redis, b"cancelled", count=2)


async def test_after_a_body_so_large_that_reading_was_stopped(by_hand, until):
    text = "hello " * 100_000
    _, writer = await ask(by_hand.port, messages=[{"role": "user", "content": text}])
    await by_hand.hand.opened()
    writer.close()
    await until(lambda: by_hand.hand.closed)


async def test_with_another_request_behind_it(by_hand, until):
    _, writer = await ask(by_hand.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    await by_hand.hand.opened()
    writer.close()
    await until(lambda: by_hand.hand.closed)


async def test_while_it_waits_for_the_whole_answer(api, worker, redis):
    await worker(**SLOW)
    _, writer = await ask(api.port, n=2)
    await settled(redis, b"running", count=2)
    writer.close()
    await settled(redis, b"cancelled", count=2)


async def test_while_its_jobs_are_being_opened(by_hand, until):
    hand = by_hand.hand
    hand.hold = asyncio.Event()
    _, writer = await ask(by_hand.port, n=3)
    await until(lambda: hand.asked == 3)
    writer.close()
    await asyncio.sleep(0.05)
    hand.hold.set()
    await until(lambda: len(hand.closed) == 3)


async def test_before_its_body_is_complete(by_hand):
    _, writer = await asyncio.open_connection("127.0.0.1", by_hand.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
    await writer.drain()
    writer.close()
    assert (await by_hand.client.models.list()).data[0].id == "m"
    assert by_hand.hand.streams == []


async def test_work_that_a_server_cancels_knows_that_its_client_is_there():
    client = Client({}, asyncio.Queue().get)
    seen = []

    async def work() -> None:
        try:
            await asyncio.sleep(99)
        finally:
            seen.append(client.gone)

    serving = asyncio.create_task(client.serve(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(ServerClosingError):
        await serving
    assert seen == [False]


async def test_work_whose_client_is_gone_is_cancelled():
    messages = asyncio.Queue()
    client = Client({}, messages.get)
    seen = []

    async def work() -> None:
        messages.put_nowait({"type": "http.request"})
        messages.put_nowait({"type": "http.disconnect"})
        try:
            await asyncio.sleep(99)
        finally:
            seen.append(client.gone)

    await client.serve(work())
    assert seen == [True]
