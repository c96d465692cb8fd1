"""Requests with tools, a model that takes them, and the jobs that the requests become."""

from __future__ import annotations

import json

from queueserve.api.jobs import Identity, chat_jobs
from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.protocol import ModelCard
from queueserve.settings import ApiSettings

USER = {"role": "user", "content": "How is Paris?"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str, **fields) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS} | fields}


WEATHER, ADD = tool("get_weather", description="Now"), tool("add", parameters=None)
TOOLS = [WEATHER, ADD]
CARD = ModelCard(
    name="m",
    pool="m",
    context_length=100,
    engine="hand",
    tool_parser="hermes",
    reasoning_parser="think",
)


def named(name: str) -> dict:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def wants(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def request(**fields) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [USER], "tools": TOOLS} | fields
    return ChatCompletionRequest.model_validate(body)


def job(card=CARD, **fields):
    (made,) = chat_jobs(request(**fields), Identity.fresh("x-"), card, ApiSettings())
    return made


def schema(**fields) -> dict:
    """What a call that must come binds the output to."""
    constraint = job(**fields).constraint
    assert (constraint.kind, constraint.param) == ("json_schema", "tool_choice")
    return json.loads(constraint.value)


CALL_WEATHER = {
    "type": "object",
    "properties": {"name": {"const": "get_weather"}, "arguments": PARAMETERS},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
CALL_ADD = CALL_WEATHER | {
    "properties": {
        "name": {"const": "add"},
        "arguments": {"type": "object", "properties": {}, "additionalProperties": False},
    }
}
CALLED = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1}'},
}
