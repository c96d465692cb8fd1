"""Requests of both dialects as the chat requests that they stand for."""

from __future__ import annotations

import pytest
from fastapi.exceptions import RequestValidationError

from queueserve.api.schemas.messages import MessagesRequest
from queueserve.api.schemas.responses import ResponsesRequest
from queueserve.api.translate_messages import to_chat as of_messages
from queueserve.api.translate_responses import head_of
from queueserve.api.translate_responses import to_chat as of_responses

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":"b"}'}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


def responses(**members):
    return of_responses(ResponsesRequest.model_validate({"model": "m", "input": "x"} | members))


def messages(*turns, **members):
    body = {"model": "m", "max_tokens": 9, "messages": [*turns]} | members
    return of_messages(MessagesRequest.model_validate(body))


def turn(role, *content):
    return {"role": role, "content": list(content)}


def text(words):
    return {"type": "text", "text": words}


def dumped(chat, name):
    return chat.model_dump(exclude_none=True, by_alias=True).get(name)


def test_a_turn_of_the_assistant_is_one_message_with_its_calls_and_reasoning():
    items = [
        {"role": "user", "content": "x"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
        {"role": "assistant", "content": "y"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":"b"}'},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "two"}],
        },
    ]
    got = dumped(responses(input=items), "messages")
    assert [message["role"] for message in got] == ["user", "assistant", "tool", "tool"]
    assert (got[1]["content"], got[1]["reasoning_content"]) == ("y", "r")
    assert [call["id"] for call in got[1]["tool_calls"]] == ["c1", "c2"]
    assert got[1]["tool_calls"][0] == CALL
    assert [(one["tool_call_id"], one["content"]) for one in got[2:]] == [
        ("c1", "one"),
        ("c2", "two"),
    ]


def test_the_same_turns_in_anthropics_words():
    chat = messages(
        {"role": "user", "content": "x"},
        turn(
            "assistant",
            {"type": "thinking", "thinking": "r", "signature": ""},
            text("y"),
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": "b"}},
        ),
        turn(
            "user",
            text("and"),
            {"type": "tool_result", "tool_use_id": "c1", "content": [text("one")]},
            text("more"),
        ),
    )
    got = dumped(chat, "messages")
    assert [message["role"] for message in got] == ["user", "assistant", "tool", "user"]
    assert got[1] == {
        "role": "assistant",
        "content": "y",
        "reasoning_content": "r",
        "tool_calls": [CALL],
    }
    assert (got[2]["tool_call_id"], got[2]["content"]) == ("c1", "one")
    assert got[3]["content"] == "and\nmore"
    assert chat.continue_final_message is None


@pytest.mark.parametrize(
    "choice, told",
    [
        ("required", "required"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "f"}],
            },
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "f"}}],
                },
            },
        ),
    ],
)
def test_tools_and_their_choice(choice, told):
    tool = {"type": "function", "name": "f", "parameters": SCHEMA}
    chat = responses(tools=[tool], tool_choice=choice, parallel_tool_calls=False)
    assert dumped(chat, "tools") == [FUNCTION]
    assert dumped(chat, "tool_choice") == told
    assert chat.parallel_tool_calls is False


@pytest.mark.parametrize(
    "choice, told",
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tools_and_their_choice_in_anthropics_words(choice, told):
    tools = [{"name": "f", "input_schema": SCHEMA}]
    alone = choice | {"disable_parallel_tool_use": True}
    chat = messages(turn("user", text("x")), tools=tools, tool_choice=alone)
    assert dumped(chat, "tools") == [FUNCTION]
    assert dumped(chat, "tool_choice") == told
    assert chat.parallel_tool_calls is False


def test_what_binds_the_output():
    asked = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    chat = responses(text={"format": asked})
    assert dumped(chat, "response_format")["json_schema"]["schema"] == SCHEMA
    assert dumped(responses(text={"format": {"type": "json_object"}}), "response_format") == {
        "type": "json_object"
    }
    assert responses(text={"format": {"type": "text"}}).response_format is None
    asked = {"format": {"type": "json_schema", "schema": SCHEMA}}
    chat = messages(turn("user", text("x")), output_config=asked)
    assert dumped(chat, "response_format")["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize(
    "thinking, told",
    [({"type": "enabled", "budget_tokens": 2000}, True), ({"type": "disabled"}, False)],
)
def test_thinking_is_a_switch_of_the_template(thinking, told):
    chat = messages(turn("user", text("x")), thinking=thinking)
    assert chat.chat_template_kwargs == {"enable_thinking": told}


def test_what_chat_refuses_is_refused_under_the_dialects_own_name():
    with pytest.raises(RequestValidationError) as caught:
        responses(input=[{"type": "reasoning", "summary": []}])
    assert caught.value.errors()[0]["loc"] == ("body", "input")


def test_a_response_repeats_its_request():
    body = ResponsesRequest.model_validate(
        {"model": "m", "input": "x", "tools": [{"type": "function", "name": "f"}], "top_p": 0.5}
    )
    head = head_of(body, reply_id="resp_1", created=5, store=True)
    assert head["tools"] == [{"type": "function", "name": "f", "parameters": None, "strict": None}]
    assert (head["top_p"], head["tool_choice"], head["text"]) == (
        *(0.5, "auto", {"format": {"type": "text"}}),
    )
