"""The messages of a request as jobs carry them: older forms become today's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from queueserve.api.schemas.chat import Message

_CARRIED = ("role", "content", "name", "tool_call_id", "reasoning_content")  # as they are


def carried(messages: Sequence[Message]) -> tuple[dict[str, Any], ...]:
    """Return the messages as a worker gets them."""
    out: list[dict[str, Any]] = []
    last_call = ""  # of a `function_call`, which has no id
    for index, message in enumerate(messages):
        fields = {name: value for name in _CARRIED if (value := getattr(message, name)) is not None}
        if isinstance(message.content, list):
            fields["content"] = [{"type": "text", "text": part.text} for part in message.content]
        calls = [call.model_dump() for call in message.tool_calls or ()]
        if message.function_call is not None:
            last_call = f"call_{index}"
            function = message.function_call.model_dump()
            calls.append({"id": last_call, "type": "function", "function": function})
        if calls:
            fields["tool_calls"] = calls
        if message.role == "function":
            fields |= {"role": "tool", "tool_call_id": last_call}
        out.append(fields)
    return tuple(out)
