"""Events of /v1/responses, as the openai client's own accumulation takes them."""

from __future__ import annotations

import json

import pytest
from answer_texts import batches, call, events, frames_of, parser
from hypothesis import given
from msgspec.structs import replace
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from queueserve.api.encrypted_content import unpacked
from queueserve.api.render_responses import ResponseEvents
from queueserve.api.response import Answer, WholeResponse
from queueserve.api.response_log import output_of
from queueserve.errors import QueueFullError, WorkerLostError
from queueserve.protocol import Delta, TokenLogprob

EVENT = TypeAdapter(ResponseStreamEvent)
HEAD = {
    "id": "resp_" + "ab" * 16,
    "object": "response",
    "created_at": 5,
    "model": "m",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
MEMBERS = {"output_text": "text", "reasoning_text": "text", "function_call_arguments": "arguments"}
INSIDE = {
    "message": ["content_part.added", "output_text", "content_part.done"],
    "reasoning": ["content_part.added", "reasoning_text", "content_part.done"],
    "function_call": [None, "function_call_arguments", None],
}


def stream(made):
    rendered = ResponseEvents(Answer(HEAD, parser()))
    return frames_of(b"".join([*map(rendered.render, made), rendered.end()]))


def whole(made):
    rendered = WholeResponse(Answer(HEAD, parser()))
    for batch in made:
        rendered.add(batch)
    return json.loads(rendered.body())


def grammar(frames):
    """Check the order of the events of all items; return the items."""
    left = [frame | {"type": frame["type"].removeprefix("response.")} for frame in frames]
    items = []
    while left:
        added = left.pop(0)
        assert (added["type"], added["output_index"]) == ("output_item.added", len(items))
        before, text, after = INSIDE[added["item"]["type"]]
        if before:
            assert left.pop(0)["type"] == before
        deltas = []
        while left[0]["type"] == f"{text}.delta":
            deltas.append(left.pop(0)["delta"])
        assert all(deltas)
        done = left.pop(0)
        assert (done["type"], done[MEMBERS[text]]) == (f"{text}.done", "".join(deltas))
        if after:
            assert left.pop(0)["type"] == after
        ended = left.pop(0)
        assert (ended["type"], ended["output_index"]) == ("output_item.done", len(items))
        assert ended["item"]["id"] == added["item"]["id"] == done["item_id"]
        items.append(ended["item"])
    return items


@given(batches())
def test_any_stream_has_its_events_in_order_and_says_what_one_piece_says(made):
    made, _ = made
    frames = stream(made)
    assert [frame["sequence_number"] for frame in frames] == list(range(len(frames)))
    first, second, *middle, last = frames
    assert (first["type"], second["type"]) == ("response.created", "response.in_progress")
    response = whole(made)
    assert last["type"] == f"response.{response['status']}"
    assert last["response"] | {"completed_at": 0} == response | {"completed_at": 0}
    assert grammar(middle) == response["output"]
    Response.model_validate(response, strict=True)


@given(batches())
def test_a_log_tells_the_output_at_every_moment(made):
    made, _ = made
    answer = Answer(HEAD, parser())
    rendered, log = ResponseEvents(answer), []
    for batch in made:
        log += rendered.frames(batch)
        assert output_of(log) == answer.response()["output"]


@given(batches())
def test_the_client_puts_any_stream_together(made):
    made, output = made
    state = ResponseStreamState(input_tools=omit, text_format=omit)
    frames = stream(made)
    for frame in frames:
        state.handle_event(EVENT.validate_python(frame, strict=True))
    items = frames[-1]["response"]["output"]
    texts = [item["content"][0]["text"] for item in items if item["type"] != "function_call"]
    assert all(text in output for text in texts)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_reasoning_text_and_calls_are_items_of_their_own(reason):
    output = "<think>well</think>\n\nSure. " + call("f", {"a": 1}) + call("get_weather", {})
    response = whole(events([output, ""], reason))
    kinds = [item["type"] for item in response["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    reasoning, message, one, two = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "well"}]
    assert message["content"][0]["text"] == "Sure."
    assert (one["name"], json.loads(one["arguments"])) == ("f", {"a": 1})
    assert (two["name"], json.loads(two["arguments"])) == ("get_weather", {})
    assert one["call_id"] != two["call_id"]
    ended = "incomplete" if reason == "length" else "completed"
    assert [item["status"] for item in response["output"]] == ["completed"] * 3 + [ended]
    assert response["status"] == ended


PIECES = ["<think>", "well", "</think>", "\n\n", "Su", "", "re.", " ", call("f", {}), ""]


def with_logprobs(made):
    for [(_, batch)] in made:
        for at, event in enumerate(batch):
            if isinstance(event, Delta):
                own = event.text.encode()
                told = (TokenLogprob(-0.5, ((1, -0.5),), (own, own)),)
                batch[at] = replace(event, logprobs=told)
    return made


@pytest.mark.parametrize("together", [False, True])
def test_a_text_has_the_logprobs_of_its_own_tokens(together):
    answer = Answer(HEAD, parser(), logprobs=True)
    rendered = ResponseEvents(answer)
    made = with_logprobs(events(PIECES, together=together))
    frames = frames_of(b"".join([*map(rendered.render, made), rendered.end()]))
    for frame in frames:
        EVENT.validate_python(frame, strict=True)
    deltas = [frame for frame in frames if frame["type"] == "response.output_text.delta"]
    told = [one["token"] for delta in deltas for one in delta["logprobs"]]
    (done,) = [frame for frame in frames if frame["type"] == "response.output_text.done"]
    message = frames[-1]["response"]["output"][1]
    assert "".join(told).strip() == message["content"][0]["text"].strip() == "Sure."
    assert [one["token"] for one in done["logprobs"]] == told
    assert [one["token"] for one in message["content"][0]["logprobs"]] == told
    logged = output_of(f"event: e\ndata: {json.dumps(frame)}".encode() for frame in frames[:-4])
    assert logged[1]["content"] == message["content"]


def test_reasoning_can_be_sent_back_by_who_keeps_it():
    rendered = ResponseEvents(Answer(HEAD, parser(), encrypted=True))
    made = events(["<think>wé", "ll</think>", "Sure.", ""])
    frames = frames_of(b"".join([*map(rendered.render, made), rendered.end()]))
    added, done = (
        frame["item"] for frame in frames if frame.get("item", {}).get("type") == "reasoning"
    )
    assert "encrypted_content" not in added
    assert unpacked(done["encrypted_content"]) == "wéll"
    assert frames[-1]["response"]["output"][0] == done
    assert "encrypted_content" not in whole(made)["output"][0]


@pytest.mark.parametrize("content", ["", "qs1.?", "qs1./w==", "qs1._w==", "gAAAAA"])
def test_what_others_have_encrypted_is_not_read(content):
    with pytest.raises(ValueError, match=r"content|ase64|decode"):
        unpacked(content)


def test_an_empty_answer_is_an_empty_message():
    (message,) = whole(events([""]))["output"]
    assert message["content"][0]["text"] == ""


@pytest.mark.parametrize(
    "error, code",
    [(WorkerLostError("gone"), "server_error"), (QueueFullError("full"), "rate_limit_exceeded")],
)
def test_a_failure_is_the_last_event_and_keeps_what_was_there(error, code):
    rendered = ResponseEvents(Answer(HEAD, parser()))
    made = events(["some text", " more", ""])[:-1]
    frames = frames_of(b"".join([*map(rendered.render, made), rendered.failure(error)]))
    last = frames[-1]
    EVENT.validate_python(last, strict=True)
    assert (last["type"], last["sequence_number"]) == ("response.failed", len(frames) - 1)
    response = last["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", code)
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "some text more"


def test_reasoning_tokens_are_counted_with_the_mark_at_their_end():
    made = events(["<think>", "one", "two", "</think>", "answer", ""])
    usage = whole(made)["usage"]
    assert (usage["output_tokens"], usage["output_tokens_details"]["reasoning_tokens"]) == (5, 3)
