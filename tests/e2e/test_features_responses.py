"""/v1/responses with the official client against `queueserve up`: one test for each feature."""

from __future__ import annotations

import openai
import pytest
from pydantic import BaseModel

CAPITAL = "What is the capital of France? Answer in one sentence."
TOOL = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALL = {"tools": [TOOL], "parallel_tool_calls": False}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def responses(client):
    return client.responses


@pytest.fixture
def options(up):
    return {"model": up.chat, "temperature": 0, "max_output_tokens": 32}


def test_a_text_is_answered(responses, options):
    response = responses.create(input=CAPITAL, **options)
    assert "Paris" in response.output_text
    assert (response.status, response.object) == ("completed", "response")
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_items_are_the_conversation(responses, options):
    turns = [
        {"role": "user", "content": "My name is Anna."},
        {"role": "assistant", "content": "Hello Anna!"},
        {"role": "user", "content": [{"type": "input_text", "text": "What is my name?"}]},
    ]
    assert "Anna" in responses.create(input=turns, **options).output_text


def test_a_stream_has_its_events_in_order(responses, options):
    events = list(responses.create(input=CAPITAL, stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta",) * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        events[-1].response.output_text
    )


def test_the_clients_own_stream_helper(responses, options):
    with responses.stream(input=CAPITAL, **options) as stream:
        text = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
        assert stream.get_final_response().output_text == text
    assert "Paris" in text


def test_a_schema_read_by_the_client(responses, options):
    asked = responses.parse(
        input="Anna is 31 years old.", text_format=Person, **options | {"max_output_tokens": 80}
    )
    assert asked.output_parsed == Person(name="Anna", age=31)


def test_a_function_is_called_and_its_result_taken(responses, options):
    options |= CALL
    with responses.stream(
        input="What is the weather in Paris?", tool_choice="required", **options
    ) as stream:
        kinds = {event.type for event in stream}
        response = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    assert "response.function_call_arguments.done" in kinds
    call = response.output[0]
    assert (call.type, call.name, call.parsed_arguments) == (
        *("function_call", "get_weather", {"city": "Paris"}),
    )
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees"}
    told = responses.create(
        input=[result], previous_response_id=response.id, tool_choice="none", **options
    )
    assert told.output_text


def test_log_probabilities_are_included(responses, options):
    asked = {"input": CAPITAL, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    (text,) = responses.create(**asked, **options).output[0].content
    assert "".join(one.token for one in text.logprobs) == text.text
    assert {len(one.top_logprobs) for one in text.logprobs} == {2}
    with responses.create(stream=True, **asked, **options) as stream:
        deltas = [event for event in stream if event.type == "response.output_text.delta"]
    told = [one.token for delta in deltas for one in delta.logprobs]
    assert told == [one.token for one in text.logprobs]


def test_instructions_are_for_one_response_only(responses, options):
    plain = responses.create(input=CAPITAL, **options)
    ruled = responses.create(input=CAPITAL, instructions="Be brief. " * 20, **options)
    assert ruled.instructions == "Be brief. " * 20
    more = responses.create(input="Why?", previous_response_id=ruled.id, **options)
    assert more.instructions is None
    assert plain.usage.input_tokens < ruled.usage.input_tokens
    assert more.usage.input_tokens < ruled.usage.input_tokens + plain.usage.output_tokens + 40


def test_a_response_goes_on_from_one_that_is_stored(responses, options):
    first = responses.create(input=CAPITAL, **options)
    more = responses.create(
        input="And which country is that city in?", previous_response_id=first.id, **options
    )
    assert more.previous_response_id == first.id
    assert more.usage.input_tokens > first.usage.total_tokens
    assert "France" in more.output_text


def test_what_is_stored_is_shown_and_deleted(responses, options):
    made = responses.create(input=CAPITAL, **options)
    assert responses.retrieve(made.id).output_text == made.output_text
    (item,) = responses.input_items.list(made.id).data
    assert item.content[0].text == CAPITAL
    responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(made.id)


def test_what_shall_not_be_stored_is_not(responses, options):
    made = responses.create(input=CAPITAL, store=False, **options)
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(made.id)


def test_one_in_the_background_is_cancelled(responses, options):
    endless = options | {"max_output_tokens": 4000}
    made = responses.create(
        input=CAPITAL, background=True, extra_body={"ignore_eos": True}, **endless
    )
    assert made.status in ("queued", "in_progress")
    assert responses.cancel(made.id).status == "cancelled"
    assert responses.retrieve(made.id).status == "cancelled"


def test_tokens_of_an_input_are_counted(responses, options, up):
    counted = responses.input_tokens.count(model=up.chat, input=CAPITAL)
    assert counted.input_tokens == responses.create(input=CAPITAL, **options).usage.input_tokens
