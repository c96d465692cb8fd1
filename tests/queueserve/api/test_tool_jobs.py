"""What a request with tools becomes: the job, and how its output will be taken apart."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace
from tool_requests import (
    ADD,
    CALL_ADD,
    CALL_WEATHER,
    CALLED,
    CARD,
    PARAMETERS,
    USER,
    WEATHER,
    allowed,
    job,
    named,
    request,
    schema,
    tool,
    wants,
)

from queueserve.api.parsers import CALLS
from queueserve.api.tools import MAX_BOUND_CALLS, parsing_of


def test_tools_reach_the_template_as_they_were_sent():
    assert job().tools == (WEATHER, {"type": "function", "function": {"name": "add"}})
    assert job().constraint is None
    assert job(tools=[tool("f", strict=True)]).tools == (tool("f"),)


def test_none_hides_the_tools():
    assert job(tool_choice="none").tools == ()
    parsing = parsing_of(request(tool_choice="none"), CARD, None)
    assert (parsing.tools, parsing.reasoning) == (None, "think")


def test_required_binds_the_output_to_a_list_of_calls():
    assert schema(tool_choice="required") == {
        "type": "array",
        "items": {"anyOf": [CALL_WEATHER, CALL_ADD]},
        "minItems": 1,
        "maxItems": MAX_BOUND_CALLS,
    }


def test_a_model_without_a_dialect_must_call_once_unless_more_are_asked_for():
    plain = replace(CARD, tool_parser="json")
    once, more = (
        json.loads(job(plain, tool_choice="required", parallel_tool_calls=asked).constraint.value)
        for asked in (None, True)
    )
    assert once == {"anyOf": [CALL_WEATHER, CALL_ADD]}
    assert more["type"] == "array"


def test_a_bound_output_is_json_whatever_the_model_speaks():
    wanted = request(tool_choice="required")
    parsing = parsing_of(wanted, CARD, job(tool_choice="required").constraint)
    assert (parsing.tools, parsing.reasoning) == (CALLS, None)
    assert parsing.names == ("get_weather", "add")


@pytest.mark.parametrize(
    "fields,expected,shown",
    [
        ({"tool_choice": named("add")}, CALL_ADD, ["add"]),
        (
            {"tool_choice": "required", "parallel_tool_calls": False, "tools": [ADD]},
            CALL_ADD,
            ["add"],
        ),
        ({"tools": None, "functions": [WEATHER["function"]]}, None, ["get_weather"]),
        (
            {"tools": None, "functions": [ADD["function"]], "function_call": {"name": "add"}},
            CALL_ADD,
            ["add"],
        ),
        ({"tool_choice": allowed("auto", "add")}, None, ["add"]),
    ],
)
def test_what_is_chosen(fields, expected, shown):
    made = job(**fields)
    assert (made.constraint and json.loads(made.constraint.value)) == expected
    assert [one["function"]["name"] for one in made.tools] == shown


def test_allowed_tools_may_be_required():
    items = schema(tool_choice=allowed("required", "add"))["items"]
    assert items == CALL_ADD


# Beside other bounds


@pytest.mark.parametrize("choice", ["required", named("add"), allowed("required", "add")])
@pytest.mark.parametrize("wanted", [{"type": "json_object"}, wants(PARAMETERS)])
def test_beside_a_call_that_must_come_an_answers_form_has_nothing_to_bind(choice, wanted):
    fields = {"tool_choice": choice}
    constraint = job(response_format=wanted, **fields).constraint
    assert constraint == job(**fields).constraint
    assert parsing_of(request(response_format=wanted, **fields), CARD, constraint).tools == CALLS


@pytest.mark.parametrize("fields", [{"guided_regex": "a+"}, {"guided_choice": ["a", "b"]}])
def test_other_constraints_leave_no_room_for_calls(fields):
    constraint = job(**fields).constraint
    assert constraint.kind in ("regex", "choice")
    assert not parsing_of(request(**fields), CARD, constraint)


@pytest.mark.parametrize(
    "fields,bound",
    [
        ({"tool_choice": "required"}, True),
        ({"tool_choice": named("add")}, True),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "json_object"}, "tools": None}, False),
        ({"guided_regex": "a+"}, False),
        ({}, False),
    ],
)
def test_no_stop_cuts_a_call_that_the_output_is_bound_to(fields, bound):
    sampling = job(stop=["Paris"], stop_token_ids=[7], **fields).sampling
    assert (sampling.stop, sampling.stop_token_ids) == (((), ()) if bound else (("Paris",), (7,)))


# The history


def test_calls_and_results_in_the_history():
    history = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALLED], "reasoning_content": "Hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "2"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    parts = [{"type": "text", "text": "No."}]
    assert job(messages=history).messages == (
        USER,
        {"role": "assistant", "tool_calls": [CALLED], "reasoning_content": "Hm"},
        history[2],
        {"role": "assistant", "content": parts},
    )


def test_older_calls_and_results_become_todays():
    history = [
        {"role": "assistant", "content": None, "function_call": CALLED["function"]},
        {"role": "function", "name": "add", "content": "2"},
    ]
    assert job(messages=history).messages == (
        {"role": "assistant", "tool_calls": [CALLED | {"id": "call_0"}]},
        {"role": "tool", "name": "add", "content": "2", "tool_call_id": "call_0"},
    )
