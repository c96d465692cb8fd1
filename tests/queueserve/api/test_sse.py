"""A stream on the wire: its head, its frames, its comments, and a reader that is slow."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from queueserve.api.sse import EventStream

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


@pytest.fixture
async def http(by_hand):
    async with httpx.AsyncClient(base_url=by_hand.url, timeout=20) as client:
        yield client


def stream_of(http, **change):
    return http.stream("POST", "/v1/chat/completions", json=CHAT | change)


async def test_the_head_waits_for_the_first_event(http, by_hand):
    hand = by_hand.hand
    answer = stream_of(http)
    entering = asyncio.create_task(answer.__aenter__())
    await hand.opened()
    await asyncio.sleep(0.1)
    assert not entering.done()
    hand.start()
    response = await entering
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["transfer-encoding"] == "chunked"
    await answer.__aexit__(None, None, None)


async def test_silence_is_filled_with_comments_and_nothing_else_is_lost(http, by_hand):
    hand = by_hand.hand
    task = asyncio.create_task(hand.opened())
    task.add_done_callback(lambda _: hand.start())
    async with stream_of(http) as answer:
        lines = answer.aiter_lines()
        seen = [await anext(lines) for _ in range(2)]
        assert seen[0].startswith("data: {")
        assert [await anext(lines) for _ in range(4)] == [": keep-alive", ""] * 2
        hand.say("Hello")
        hand.finish()
        rest = [line async for line in lines if line.startswith("data")]
    assert len(rest) == 3
    assert '"content":"Hello"' in rest[0]
    assert '"finish_reason":"stop"' in rest[1]
    assert rest[2] == "data: [DONE]"


async def test_a_reader_that_stands_still_holds_the_stream_back(by_hand, until):
    hand = by_hand.hand
    reader, writer = await asyncio.open_connection("127.0.0.1", by_hand.port, limit=1000)
    body = httpx.Request("POST", "http://x", json=CHAT).content
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await hand.opened()
    hand.start()
    waiting = hand.streams[0]._ready

    def held_back() -> bool:
        nonlocal waiting
        hand.say("x" * 100_000)
        waiting = hand.streams[0]._ready
        return len(waiting) > 50

    await until(held_back)
    said = len(hand.streams[0].tokens)
    hand.finish()
    received = await reader.read()
    assert received.count(b'"content":"x') == said
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    writer.close()


async def test_no_comment_is_sent_while_a_write_waits(until):
    sent = []
    gate = asyncio.Event()

    async def send(message) -> None:
        sent.append(message.get("body"))
        if message.get("body"):
            await gate.wait()

    async with EventStream(send, interval=0.01) as stream:
        writing = asyncio.create_task(stream.write(b"data: 1\n\n"))
        await asyncio.sleep(0.1)
        assert sent == [None, b"data: 1\n\n"]
        gate.set()
        await writing
        await until(lambda: len(sent) > 2)
    assert sent[2] == b": keep-alive\n\n"
