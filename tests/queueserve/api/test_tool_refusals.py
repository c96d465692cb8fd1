"""Requests about tools that are a 400."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace
from tool_requests import ADD, CALLED, CARD, TOOLS, USER, allowed, named, tool, wants

DEEP = json.loads('{"a": ' * 200 + "1" + "}" * 200)
BAD = [
    ({"tools": [tool("f", parameters=DEEP)]}, "tools[0].function.parameters", "invalid_value"),
    ({"response_format": wants(DEEP)}, "response_format.json_schema.schema", "invalid_value"),
    ({"guided_json": json.dumps(DEEP)}, "guided_json", "invalid_value"),
    ({"guided_json": "[" * 300 + "]" * 300}, "guided_json", "invalid_value"),
    *(
        ({"tool_choice": choice} | wanted, next(iter(wanted)), "invalid_value")
        for choice in ("required", named("add"), allowed("required", "add"))
        for wanted in (
            {"guided_regex": "a+"},
            {"guided_choice": ["a"]},
            {"guided_grammar": "start: /a/"},
            {"guided_json": {}},
            {"structured_outputs": {"json_object": True}},
        )
    ),
    ({"chat_template_kwargs": DEEP}, "chat_template_kwargs", "invalid_value"),
    ({"tools": [ADD, ADD]}, "tools", "invalid_value"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0]", "unsupported_value"),
    ({"tools": [tool("a b")]}, "tools[0].function.name", "invalid_value"),
    ({"functions": [{"name": "f"}]}, "functions", "invalid_value"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tool_choice": allowed("auto", "f")}, "tool_choice", "invalid_value"),
    ({"tool_choice": {"type": "custom"}}, "tool_choice", "unsupported_value"),
    ({"tool_choice": "some"}, "tool_choice", "invalid_value"),
    ({"function_call": {"name": "f"}}, "function_call", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "2"}]}, "messages[0]", "invalid_value"),
    ({"messages": [{"role": "function", "content": "2"}]}, "messages[0]", "invalid_value"),
    ({"messages": [USER | {"tool_calls": [CALLED]}]}, "messages[0]", "invalid_value"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALLED | {"id": ""}]}]},
        "messages[0].tool_calls[0].id",
        "invalid_value",
    ),
]


@pytest.mark.parametrize("change,param,code", BAD)
async def test_bad_requests_are_400_and_name_the_field(http, hand, change, param, code):
    hand.models = [CARD]
    body = {"model": "m", "messages": [USER], "tools": TOOLS} | change
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert hand.streams == []


async def test_a_model_that_takes_no_tools_says_so(http, hand):
    hand.models = [replace(CARD, tool_parser=None)]
    body = {"model": "m", "messages": [USER], "tools": TOOLS}
    error = (await http.post("/v1/chat/completions", json=body)).json()["error"]
    assert (error["message"], error["param"]) == ("The model 'm' takes no tools.", "tools")
