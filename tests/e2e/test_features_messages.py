"""/v1/messages with Anthropic's client against `queueserve up`: one test for each feature."""

from __future__ import annotations

import anthropic
import pytest

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS = [
    {
        "name": "get_weather",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    }
]


@pytest.fixture
def options(up):
    return {"model": up.chat, "max_tokens": 60, "extra_body": {"temperature": 0}}


def test_a_message_in_one_piece(claude, options):
    message = claude.messages.create(messages=CAPITAL, **options)
    assert "Paris" in message.content[0].text
    assert (message.stop_reason, message.role) == ("end_turn", "assistant")


def test_a_stream_gives_the_same_message(claude, options):
    with claude.messages.stream(messages=CAPITAL, **options) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().content[0].text == text
    assert text == claude.messages.create(messages=CAPITAL, **options).content[0].text


def test_a_sequence_that_stops_it(claude, options):
    message = claude.messages.create(messages=CAPITAL, stop_sequences=["Paris"], **options)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "Paris")
    assert "Paris" not in message.content[0].text


def test_a_system_prompt_is_part_of_the_prompt(claude, options, up):
    def count(**more):
        return claude.messages.count_tokens(model=up.chat, messages=CAPITAL, **more).input_tokens

    usage = claude.messages.create(messages=CAPITAL, system="Be brief. " * 20, **options).usage
    assert count(system="Be brief. " * 20) == usage.input_tokens + usage.cache_read_input_tokens
    assert count() < count(system="Be brief. " * 20)


def test_a_tool_is_used_and_its_result_taken(claude, options):
    options |= {"tools": TOOLS}
    choice = {"type": "tool", "name": "get_weather"}
    with claude.messages.stream(messages=WEATHER, tool_choice=choice, **options) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_message()
    assert "input_json" in kinds
    (use,) = message.content
    assert (use.type, use.input, message.stop_reason) == ("tool_use", {"city": "Paris"}, "tool_use")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "22 degrees"}
    turns = [
        *WEATHER,
        {"role": "assistant", "content": [use.to_dict()]},
        {"role": "user", "content": [result]},
    ]
    assert claude.messages.create(messages=turns, **options).content


def test_errors_are_the_clients_own_kinds(claude, options):
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(messages=CAPITAL, **options | {"model": "nobody"})
    with pytest.raises(anthropic.BadRequestError) as error:
        claude.messages.create(messages=CAPITAL, **options | {"max_tokens": 0})
    assert error.value.body["error"]["type"] == "invalid_request_error"
