"""Requests of other dialects become chat requests, which everything behind them knows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from queueserve.api.schemas.chat import ChatCompletionRequest


def chat_request(members: Mapping[str, Any], names: Mapping[str, str]) -> ChatCompletionRequest:
    """Return the chat request with these members, those that are None left out.

    `names` says what a member is called in the dialect. Raises RequestValidationError, with the
    dialect's name.
    """
    given = {name: value for name, value in members.items() if value is not None}
    try:
        return ChatCompletionRequest.model_validate(given)
    except ValidationError as error:
        places = [names.get(str(one["loc"][0]), one["loc"][0]) for one in error.errors()]
        errors = [
            {**one, "loc": ("body", place)}
            for one, place in zip(error.errors(), places, strict=True)
        ]
        raise RequestValidationError(errors, body=dict.fromkeys(places)) from error


def function_tool(
    name: str, description: str | None, parameters: Mapping[str, Any] | None, *, strict: bool | None
) -> dict[str, Any]:
    """Return a tool as chat requests have it."""
    function = {
        "name": name,
        "description": description,
        "parameters": parameters,
        "strict": strict,
    }
    given = {member: value for member, value in function.items() if value is not None}
    return {"type": "function", "function": given}


def named_function(name: str) -> dict[str, Any]:
    """Return the tool_choice that asks for one function."""
    return {"type": "function", "function": {"name": name}}


def function_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """Return a call as an assistant's message has it."""
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def image_part(link: str, detail: str | None = None) -> dict[str, Any]:
    """Return an image as chat messages hold it."""
    return {"type": "image_url", "image_url": {"url": link, "detail": detail}}


class Conversation:
    """Collects chat messages; what an assistant did in one turn becomes one message."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._reasoning = ""

    def say(self, role: str, content: Any) -> None:
        """Add a message."""
        if role == "assistant":
            self._assistant()["content"] = content
        else:
            self.messages.append({"role": role, "content": content})

    def think(self, text: str) -> None:
        """Add reasoning, which belongs to the assistant's message that follows."""
        self._reasoning += text

    def call(self, call: dict[str, Any]) -> None:
        """Add a call to the assistant's turn."""
        message = self.messages[-1] if self.messages else {}
        if message.get("role") != "assistant" or self._reasoning:
            message = self._assistant()
        message.setdefault("tool_calls", []).append(call)

    def result(self, call_id: str, content: str) -> None:
        """Add what a call gave."""
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _assistant(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
            self._reasoning = ""
        self.messages.append(message)
        return message
