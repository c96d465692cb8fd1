"""How streams of /v1/responses and /v1/messages end when something goes wrong after they began."""

from __future__ import annotations

import asyncio

import anthropic
import pytest

from queueserve import errors

ASKED = {"model": "m", "input": "Hello", "stream": True}


@pytest.fixture
async def claude(by_hand):
    async with anthropic.AsyncAnthropic(
        base_url=by_hand.url, api_key="none", max_retries=0, timeout=20
    ) as client:
        yield client


async def begun(hand, asking):
    """The stream that a request gets once its job has started and said a word."""
    asked = asyncio.ensure_future(asking)
    await hand.opened()
    hand.start()
    hand.say("Hello")
    return await asked


async def begun_response(by_hand):
    return await begun(by_hand.hand, by_hand.client.responses.create(**ASKED))


async def begun_message(by_hand, claude):
    turns = [{"role": "user", "content": "Hello"}]
    asking = claude.messages.create(model="m", max_tokens=9, messages=turns, stream=True)
    return await begun(by_hand.hand, asking)


async def test_a_response_that_fails_ends_with_response_failed(by_hand):
    stream = await begun_response(by_hand)
    by_hand.hand.streams[0].fail(errors.WorkerLostError("The worker is gone."))
    events = [event async for event in stream]
    last = events[-1]
    assert (last.type, last.sequence_number) == ("response.failed", len(events) - 1)
    assert last.response.error.message == "The worker is gone."
    assert last.response.error.code == "server_error"
    assert last.response.output[0].content[0].text == "Hello"


async def test_a_message_that_fails_makes_the_client_raise(by_hand, claude):
    stream = await begun_message(by_hand, claude)
    by_hand.hand.streams[0].fail(errors.WorkerLostError("The worker is gone."))
    with pytest.raises(anthropic.APIStatusError) as caught:
        async for _ in stream:
            pass
    error = caught.value.body["error"]
    assert error == {"type": "overloaded_error", "message": "The worker is gone."}


async def test_silence_is_filled_with_pings(by_hand, claude):
    stream = await begun_message(by_hand, claude)
    lines = stream.response.aiter_lines()
    pings = 0
    async with asyncio.timeout(20):
        while pings < 3:
            pings += await anext(lines) == "event: ping"
    await stream.close()


@pytest.mark.parametrize("dialect", ["response", "message"])
async def test_who_leaves_cancels(by_hand, claude, until, dialect):
    if dialect == "response":
        stream = await begun_response(by_hand)
    else:
        stream = await begun_message(by_hand, claude)
    await anext(stream)
    await stream.close()
    await until(lambda: by_hand.hand.closed == [by_hand.hand.streams[0].job.id])
