"""Events of /v1/messages, as the anthropic client's own accumulation takes them."""

from __future__ import annotations

import json

import pytest
from answer_texts import batches, call, events, frames_of, parser
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message as ClientMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from pydantic import TypeAdapter

from queueserve.api.render_messages import Message, MessageEvents, WholeMessage
from queueserve.errors import WorkerLostError

EVENT = TypeAdapter(RawMessageStreamEvent)
REPLY = "msg_" + "ab" * 16


def stream(made):
    rendered = MessageEvents(Message(REPLY, "m", parser()))
    return frames_of(b"".join([*map(rendered.render, made), rendered.end()]))


def whole(made):
    rendered = WholeMessage(Message(REPLY, "m", parser()))
    for batch in made:
        rendered.add(batch)
    return json.loads(rendered.body())


@given(batches())
def test_any_stream_has_its_events_in_order(made):
    frames = stream(made[0])
    kinds = [frame["type"] for frame in frames]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    index, is_open = -1, False
    for frame in frames[2:-2]:
        if frame["type"] == "content_block_start":
            assert not is_open
            index, is_open = index + 1, True
        assert is_open
        assert frame["index"] == index
        is_open = frame["type"] != "content_block_stop"
    assert not is_open


@given(batches(reasons=("stop",)))
def test_the_client_puts_any_stream_together_to_what_one_piece_says(made):
    made, _ = made
    message, buffers = None, {}
    for frame in stream(made):
        if frame["type"] == "ping":
            continue
        event = EVENT.validate_python(frame, strict=True)
        message = accumulate_event(event=event, current_snapshot=message, json_bufs=buffers)
    answer = ClientMessage.model_validate(whole(made), strict=True)
    assert (message.stop_reason, message.usage) == (answer.stop_reason, answer.usage)
    texts = [block for block in answer.content if block.type != "tool_use"]
    assert [block.to_dict() for block in message.content if block.type != "tool_use"] == [
        block.to_dict() for block in texts
    ]


def test_thinking_text_and_tools_are_blocks_of_their_own():
    output = "<think>well</think>\n\nSure. " + call("f", {"a": 1}) + call("get_weather", {})
    message = whole(events([output, ""]))
    assert [block["type"] for block in message["content"]] == [
        "thinking",
        "text",
        "tool_use",
        "tool_use",
    ]
    assert message["content"][0]["thinking"] == "well"
    assert [block["input"] for block in message["content"][2:]] == [{"a": 1}, {}]
    assert message["stop_reason"] == "tool_use"
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] == 7


@pytest.mark.parametrize("reason, told", [("stop", "end_turn"), ("length", "max_tokens")])
def test_why_it_stopped(reason, told):
    assert whole(events(["some text"], reason))["stop_reason"] == told


def test_a_failure_is_an_error_event():
    rendered = MessageEvents(Message(REPLY, "m", parser()), "req_1")
    made = events(["some text", " more", ""])[:-1]
    frames = frames_of(
        b"".join([*map(rendered.render, made), rendered.failure(WorkerLostError("gone"))])
    )
    assert frames[-1] == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "gone"},
        "request_id": "req_1",
    }
