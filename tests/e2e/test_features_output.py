"""Outputs that are bound to a form, and tool calls: one test for each feature, on a small model."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

TELL = [{"role": "user", "content": "Describe a lighthouse as JSON."}]
WEATHER = [{"role": "user", "content": "How is the weather in Paris?"}]
Short = Annotated[str, Field(max_length=16)]


class Light(BaseModel):
    name: Short
    colour: Literal["red", "white", "striped"]
    height: Annotated[int, Field(ge=1, le=200)]
    keepers: Annotated[list[Short], Field(min_length=1, max_length=2)]


def tool(name: str, **properties) -> dict:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    function = {"name": name, "parameters": parameters | {"additionalProperties": False}}
    return {"type": "function", "function": function}


TOOLS = [
    tool("get_weather", city={"enum": ["Paris", "Rome"]}),
    tool("add", numbers={"type": "array", "items": {"type": "integer"}, "maxItems": 3}),
]
SCHEMAS = {one["function"]["name"]: one["function"]["parameters"] for one in TOOLS}


def named(name: str) -> dict:
    return {"type": "function", "function": {"name": name}}


@pytest.fixture
def ask(client, up):
    def ask(**fields):
        asked = {"model": up.chat, "messages": TELL, "temperature": 0} | fields
        return client.chat.completions.create(**{"max_completion_tokens": 100} | asked)

    return ask


@pytest.fixture
def call(ask):
    return lambda **fields: ask(**{"messages": WEATHER, "tools": TOOLS} | fields)


def is_valid(call) -> bool:
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    return bool(call.id) and call.type == "function"


def test_any_object_of_json(ask):
    example = [{"role": "user", "content": 'Write the JSON object {"a": 1}.'}]
    (choice,) = ask(messages=example, response_format={"type": "json_object"}).choices
    assert choice.finish_reason == "stop"
    assert isinstance(json.loads(choice.message.content), dict)


def test_a_strict_schema_read_by_the_client(client, up):
    answer = client.chat.completions.parse(
        model=up.chat, messages=TELL, response_format=Light, n=2, temperature=1, seed=3
    )
    for choice in answer.choices:
        assert isinstance(choice.message.parsed, Light)
        assert choice.finish_reason == "stop"


@pytest.mark.parametrize(
    "bound, expected",
    [
        ({"guided_choice": ["north", "south"]}, "north|south"),
        ({"guided_regex": r"\d{1,3} m"}, r"\d{1,3} m"),
        ({"guided_grammar": 'root ::= "N" [0-9] "E" [0-9]'}, "N[0-9]E[0-9]"),
        ({"guided_json": {"enum": [1, 2]}}, "1|2"),
        ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
    ],
    ids=str,
)
def test_what_other_servers_bind_outputs_to(ask, bound, expected):
    assert re.fullmatch(expected, ask(extra_body=bound).choices[0].message.content)


def test_a_form_that_is_none_is_refused(ask):
    with pytest.raises(openai.BadRequestError) as error:
        ask(extra_body={"guided_regex": "("})
    assert error.value.param == "guided_regex"


def test_tools_that_must_not_be_called(call):
    choice = call(tool_choice="none", max_completion_tokens=16).choices[0]
    assert choice.message.content
    assert choice.message.tool_calls is None


def test_tools_that_may_be_called(call):
    answer = call(tool_choice="auto", max_completion_tokens=16)
    choice = answer.choices[0]
    if choice.message.tool_calls:  # it is the model's choice
        assert choice.finish_reason == "tool_calls"
    else:
        assert choice.message.content


def test_a_tool_that_must_be_called(call):
    fields = {"tool_choice": "required", "parallel_tool_calls": False}
    for choice in call(n=2, temperature=1, seed=3, **fields).choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert all(map(is_valid, choice.message.tool_calls))


def test_the_one_tool_that_is_named(call):
    (one,) = call(tool_choice=named("add")).choices[0].message.tool_calls
    assert one.function.name == "add"
    assert is_valid(one)


def test_several_calls_at_once_or_a_single_one(call):
    both = [{"role": "user", "content": "How is the weather in Paris, and how in Rome?"}]
    fields = {"messages": both, "tools": TOOLS[:1], "tool_choice": "required"}
    several = call(parallel_tool_calls=True, **fields)
    first, second, *_ = several.choices[0].message.tool_calls
    assert is_valid(first)
    assert second.id != first.id
    (one,) = call(parallel_tool_calls=False, **fields).choices[0].message.tool_calls
    assert is_valid(one)


def test_calls_in_a_stream_come_in_pieces(call):
    fields = {"tool_choice": "required", "parallel_tool_calls": False}
    (whole,) = call(**fields).choices[0].message.tool_calls
    chunks = list(call(stream=True, **fields))
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    first, *rest = parts
    assert (first.index, first.type, first.function.name) == (0, "function", whole.function.name)
    assert first.id
    assert len(rest) > 2
    assert not any(part.id or part.function.name for part in rest)
    assert "".join(part.function.arguments for part in parts) == whole.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_result_of_a_call_goes_back_into_the_conversation(call):
    asked = call(tool_choice=named("get_weather")).choices[0].message
    result = {
        "role": "tool",
        "tool_call_id": asked.tool_calls[0].id,
        "content": "22 degrees and sunny",
    }
    history = [*WEATHER, asked.model_dump(exclude_none=True), result]
    told = call(messages=history, tool_choice="none", max_completion_tokens=24)
    assert told.choices[0].message.content
    alone = call(tool_choice="none", max_completion_tokens=24)
    assert told.usage.prompt_tokens > alone.usage.prompt_tokens
