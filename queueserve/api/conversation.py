"""The messages of a request as jobs carry them: older forms become today's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from queueserve.api.schemas.chat import ImagePart, Message, Part

_CARRIED = ("role", "content", "name", "tool_call_id", "reasoning_content")  # as they are


def carried(messages: Sequence[Message]) -> tuple[dict[str, Any], ...]:
    """Return the messages as a worker gets them."""
    out: list[dict[str, Any]] = []
    last_call = ""  # of a `function_call`, which has no id
    for index, message in enumerate(messages):
        fields = {name: value for name in _CARRIED if (value := getattr(message, name)) is not None}
        if isinstance(message.content, list):
            fields["content"] = [*map(_part, message.content)]
        calls = [call.model_dump() for call in message.tool_calls or ()]
        if message.function_call is not None:
            last_call = f"call_{index}"
            function = message.function_call.model_dump()
            calls.append({"id": last_call, "type": "function", "function": function})
        if calls:
            fields["tool_calls"] = calls
        elif message.content is None:  # an answer that refused, or that did nothing but think
            fields["content"] = message.refusal or ""
        if message.role == "function":
            fields |= {"role": "tool", "tool_call_id": last_call}
        out.append(fields)
    return tuple(out)


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return part.model_dump(exclude_none=True)
    return {"type": "text", "text": part.text}
