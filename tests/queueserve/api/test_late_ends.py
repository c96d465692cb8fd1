"""How streams of /v1/responses and /v1/messages end when something goes wrong after they began."""

from __future__ import annotations

import asyncio

import anthropic
import openai
import pytest

from queueserve import errors
from queueserve.api.render import Chunks

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


# What is said of it in the log


def logged(caplog, stream):
    """What the log says of the request of this stream, by the id that its client has been told."""
    about = f"request {stream.response.headers['x-request-id']}"
    return [text for text in caplog.messages if text.startswith(about)], about


async def begun_chat(by_hand):
    turns = [{"role": "user", "content": "Hello"}]
    asking = by_hand.client.chat.completions.create(model="m", messages=turns, stream=True)
    return await begun(by_hand.hand, asking)


@pytest.mark.parametrize(
    "code, said", [("worker_lost", ["{about}: It has ended."]), ("invalid_value", [])]
)
async def test_a_stream_that_fails_is_in_the_log_unless_its_client_did_it(
    by_hand, caplog, code, said
):
    stream = await begun_chat(by_hand)
    by_hand.hand.streams[0].fail(errors.from_code(code, "It has ended."))
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
    found, about = logged(caplog, stream)
    assert found == [text.format(about=about) for text in said]


async def test_a_mistake_of_ours_in_a_stream_is_in_the_log_and_its_client_hears_of_it(
    by_hand, caplog, monkeypatch
):
    stream = await begun_chat(by_hand)
    monkeypatch.setattr(Chunks, "end", lambda _: 1 // 0)
    by_hand.hand.finish()
    with pytest.raises(openai.APIError, match="The server failed") as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "internal_error"
    found, about = logged(caplog, stream)
    assert found == [f"{about} failed"]
    assert "ZeroDivisionError" in caplog.text
