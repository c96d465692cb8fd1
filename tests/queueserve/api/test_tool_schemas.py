"""The JSON schema to which an output is bound: the tools' own schemas, put together."""

from __future__ import annotations

import json

import pytest
from tool_requests import ADD, CALL_ADD, CARD, PARAMETERS, job, named, request, schema, tool, wants

from queueserve.api.tools import parsing_of


def test_references_inside_the_parameters_are_moved_with_them():
    point = {"type": "object", "properties": {"next": {"$ref": "#"}, "at": {"$ref": "#/$defs/P"}}}
    wanted = tool("go", parameters=point | {"$defs": {"P": {"type": "integer"}}})
    made = schema(tools=[wanted], tool_choice="required", parallel_tool_calls=False)
    assert made["properties"]["arguments"] == {"$ref": "#/$defs/go"}
    moved = made["$defs"]["go"]
    assert moved["properties"]["next"] == {"$ref": "#/$defs/go"}
    assert moved["properties"]["at"] == {"$ref": "#/$defs/go/$defs/P"}
    assert moved["$defs"] == {"P": {"type": "integer"}}


def test_a_bound_call_has_the_parameters_that_are_named_and_no_others():
    inner = {"type": "object", "properties": {"x": {"enum": [{"type": "object"}]}}}
    properties = {"type": {"type": "string"}, "at": inner, "any": {"type": "object"}}
    wanted = tool("go", parameters={"properties": properties})
    made = schema(tools=[wanted], tool_choice=named("go"))["properties"]["arguments"]
    no_more = {"additionalProperties": False}
    assert made == {
        "type": "object",
        "properties": properties | {"at": inner | no_more},
        **no_more,
    }


@pytest.mark.parametrize("name", ["const", "default", "enum", "examples", "properties"])
def test_what_a_property_is_called_means_nothing(name):
    inner = {"type": "object", "properties": {"a": {"$ref": "#/$defs/P"}}}
    wanted = tool("go", parameters={"properties": {name: inner}, "$defs": {"P": {}}})
    made = schema(tools=[wanted], tool_choice=named("go"))["$defs"]["go"]
    assert made["properties"][name] == {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/go/$defs/P"}},
        "additionalProperties": False,
    }


@pytest.mark.parametrize("keyword", ["const", "default", "enum", "examples"])
def test_values_are_no_schemas(keyword):
    value = {"$ref": "#/a", "type": "object", "properties": {}}
    asked = {"p": {"$ref": "#"}, "q": {keyword: [value]}}
    wanted = tool("go", parameters={"properties": asked})
    made = schema(tools=[wanted], tool_choice=named("go"))["$defs"]["go"]
    assert made["properties"] == {"p": {"$ref": "#/$defs/go"}, "q": {keyword: [value]}}


@pytest.mark.parametrize("others", [{"additionalProperties": True}, {"anyOf": [{}]}])
def test_unless_the_schema_speaks_of_others(others):
    parameters = {"type": "object", "properties": {}} | others
    made = schema(tools=[tool("go", parameters=parameters)], tool_choice=named("go"))
    assert made["properties"]["arguments"] == parameters


POINT = {"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": {}}}


@pytest.mark.parametrize(
    "wanted,answer",
    [
        (wants(PARAMETERS), PARAMETERS),
        (wants(POINT), {"$ref": "#/$defs/:answer"}),
        ({"type": "json_object"}, {"type": "object"}),
    ],
)
def test_an_answer_in_json_or_a_call(wanted, answer):
    fields = {"response_format": wanted, "tools": [ADD], "parallel_tool_calls": False}
    constraint = job(**fields).constraint
    bound = json.loads(constraint.value)
    assert (constraint.kind, constraint.param) == ("json_schema", "response_format")
    assert bound["anyOf"] == [CALL_ADD, answer]
    parsing = parsing_of(request(**fields), CARD, constraint)
    assert (parsing.tools, parsing.reasoning) == ("json", None)


def test_an_answer_in_json_has_the_properties_that_are_named_and_no_others():
    open_schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    constraint = job(tools=None, response_format=wants(open_schema)).constraint
    assert json.loads(constraint.value) == open_schema | {"additionalProperties": False}
