"""Where a request stands in the queue, told while it waits there."""

from __future__ import annotations

import asyncio
import contextlib
import re
from types import SimpleNamespace

import httpx
import openai
import pytest

BOUND = 60.0  # seconds that any single wait may take, on however busy a machine
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True}
TELL = {"stream": True, "stream_options": {"include_queue_position": True}}


@pytest.fixture
async def busy(api, worker):
    """A client of a server whose only slot is taken, and what gives it free."""
    await worker(slots=1, tick=0.02)
    long = CHAT | {"max_tokens": 4000, "stream": True}  # 80 seconds, which nobody waits for
    async with (
        httpx.AsyncClient(base_url=api.url, timeout=BOUND) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        first = client.stream("POST", "/v1/chat/completions", json=long)
        answer = await stack.enter_async_context(first)
        assert answer.headers["x-queueserve-queue-position"] == "0"
        yield SimpleNamespace(client=client, let_go=stack.aclose)


def ask(client, **fields):
    return client.post("/v1/chat/completions", json=CHAT | fields)


async def test_every_answer_says_where_it_stood(busy, redis, until):
    answers = []
    for count in (1, 2):
        asking = ask(busy.client, max_tokens=2, stream=count == 2)
        answers.append(asyncio.create_task(asking))
        await until(lambda count=count: redis_depth(redis, count))
    await busy.let_go()
    positions = [(await each).headers["x-queueserve-queue-position"] for each in answers]
    assert positions == ["1", "2"]


async def redis_depth(redis, depth: int) -> bool:
    return await redis.zcard("qs:{m}:queue") == depth


async def test_a_stream_that_waits_is_told_its_place_at_once(busy, redis, until):
    waiting = asyncio.create_task(ask(busy.client, max_tokens=2))
    await until(lambda: redis_depth(redis, 1))
    async with busy.client.stream(
        "POST", "/v1/chat/completions", json=CHAT | TELL | {"max_tokens": 2}
    ) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        assert re.fullmatch(r": queued position=2( eta=\d+\.\ds)?", await anext(lines))
        assert await redis_depth(redis, 2)  # nothing has moved on: the head did not wait
        await busy.let_go()
        rest = [line async for line in lines]
    assert rest[-2:] == ["data: [DONE]", ""]
    await waiting


class Ear(httpx.AsyncHTTPTransport):
    """A transport that keeps what comes in."""

    heard = b""

    async def handle_async_request(self, request):
        answer = await super().handle_async_request(request)

        async def pieces():
            async for piece in answer.stream:
                self.heard += piece
                yield piece

        return httpx.Response(answer.status_code, headers=answer.headers, content=pieces())


async def test_the_openai_client_reads_over_the_comments(busy, api):
    ear = Ear()
    options = {k: v for k, v in CHAT.items() if k != "ignore_eos"} | TELL
    async with httpx.AsyncClient(transport=ear, timeout=BOUND) as http:
        client = api.client.with_options(http_client=http)
        stream = await client.chat.completions.create(**options, max_tokens=3)
        await busy.let_go()
        chunks = [chunk async for chunk in stream]
    assert ear.heard.startswith(b": queued position=1")
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_one_that_does_not_wait_is_told_nothing(api, worker):
    await worker()
    async with httpx.AsyncClient(base_url=api.url, timeout=BOUND) as client:
        answer = await ask(client, max_tokens=3, **TELL)
    assert ": queued" not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_what_fails_after_the_head_is_an_event_of_the_stream(api, worker):
    await worker(context_length=10)
    stream = await api.client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "long " * 50}], **TELL
    )
    with pytest.raises(openai.APIError) as caught:
        [_ async for _ in stream]
    assert caught.value.code == "context_length_exceeded"
