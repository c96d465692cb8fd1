"""POST /v1/messages as the anthropic client sees it, on a real Redis and a fake engine."""

from __future__ import annotations

import re

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

EVENT = TypeAdapter(RawMessageStreamEvent)
TURNS = [{"role": "user", "content": "Tell me about queues"}]
GREEDY = {"model": "m", "max_tokens": 20, "extra_body": {"temperature": 0}}


@pytest.fixture
async def api(api, worker):
    await worker()
    return api


@pytest.fixture
async def claude(api):
    async with anthropic.AsyncAnthropic(
        base_url=api.url, api_key="none", max_retries=0, timeout=20
    ) as client:
        yield client


async def chat_text(api, messages, **options):
    answer = await api.client.chat.completions.create(messages=messages, **(GREEDY | options))
    return answer.choices[0].message.content


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


async def test_a_message_in_one_piece(api, claude):
    message = await claude.messages.create(
        messages=TURNS, **GREEDY | {"system": "Be brief.", "max_tokens": 5}
    )
    Message.model_validate_json(message.to_json(), strict=True)
    assert re.fullmatch(r"msg_[0-9a-f]{32}", message.id)
    assert message._request_id.startswith("req_")
    assert (message.role, message.model, message.stop_reason) == ("assistant", "m", "max_tokens")
    said = [{"role": "system", "content": "Be brief."}, *TURNS]
    assert text_of(message) == await chat_text(api, said, max_tokens=5)
    assert message.usage.output_tokens == 5
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens > 5


async def test_a_stream_has_every_event_in_its_place(claude):
    whole = await claude.messages.create(messages=TURNS, **GREEDY)
    stream = await claude.messages.create(messages=TURNS, stream=True, **GREEDY)
    events = [event async for event in stream]
    for event in events:
        EVENT.validate_json(event.to_json(), strict=True)
    kinds = [event.type for event in events]
    deltas = kinds.count("content_block_delta")
    assert deltas > 5
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert "".join(e.delta.text for e in events if e.type == "content_block_delta") == (
        text_of(whole)
    )
    assert events[-2].delta.stop_reason == "max_tokens"
    assert events[-2].usage.output_tokens == 20


async def test_the_stream_helper_gives_the_final_message(claude):
    options = GREEDY | {"max_tokens": 100}
    async with claude.messages.stream(messages=TURNS, **options) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()
    assert message.stop_reason == "end_turn"
    assert text == text_of(message)
    assert message.usage.output_tokens > 10


async def test_an_answer_that_was_begun_is_continued(api, claude):
    begun = [*TURNS, {"role": "assistant", "content": "A queue"}]
    message = await claude.messages.create(messages=begun, **GREEDY)
    options = {"extra_body": {"temperature": 0, "continue_final_message": True}}
    assert text_of(message) == await chat_text(api, begun, **options)


async def test_stop_sequences_end_the_text(claude):
    whole = text_of(await claude.messages.create(messages=TURNS, **GREEDY))
    stop = whole[10:14]
    message = await claude.messages.create(messages=TURNS, stop_sequences=[stop], **GREEDY)
    assert text_of(message) == whole[: whole.index(stop)]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)


@pytest.mark.parametrize(
    "bad, status, kind",
    [
        ({"messages": []}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": []}]}, 400, "invalid_request_error"),
        ({"model": "nope"}, 404, "not_found_error"),
        ({"extra_body": {"temperature": 2}}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, 400, "invalid_request_error"),
        ({"tools": [{"type": "web_search_20250305"}]}, 400, "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_errors_have_anthropics_shape(claude, bad, status, kind, stream):
    with pytest.raises(anthropic.APIStatusError) as caught:
        await claude.messages.create(**GREEDY | {"messages": TURNS, "stream": stream} | bad)
    assert caught.value.status_code == status
    assert caught.value.type == kind
    body = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["request_id"].startswith("req_")


async def test_a_path_that_is_not_there_has_anthropics_shape_too(claude):
    with pytest.raises(anthropic.NotFoundError) as caught:
        await claude.messages.batches.retrieve("x")
    assert caught.value.body["error"]["type"] == "not_found_error"


async def test_tokens_are_counted_as_the_message_will_count_them(claude):
    options = {"model": "m", "messages": TURNS, "system": "Be brief."}
    counted = await claude.messages.count_tokens(**options)
    usage = (await claude.messages.create(max_tokens=1, **options)).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


async def test_a_key_may_come_as_anthropics_clients_send_it(serve, worker, redis_url):
    await worker()
    server = await serve(redis_url=redis_url, api_keys=("right",))
    options = {"base_url": server.url, "max_retries": 0}
    async with (
        anthropic.AsyncAnthropic(api_key="right", **options) as known,
        anthropic.AsyncAnthropic(api_key="wrong", **options) as unknown,
    ):
        assert (await known.messages.create(messages=TURNS, **GREEDY)).content
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await unknown.messages.create(messages=TURNS, **GREEDY)
    assert caught.value.body["error"]["type"] == "authentication_error"


async def test_an_idempotency_key_gives_the_same_message(claude, redis):
    options = {"model": "m", "max_tokens": 20, "messages": TURNS}
    options["extra_headers"] = {"Idempotency-Key": "k"}
    first = await claude.messages.create(**options)
    second = await claude.messages.create(**options)
    assert (second.id, second.content) == (first.id, first.content)
    assert len(await redis.keys("qs:{m}:job:idem-*")) == 1
