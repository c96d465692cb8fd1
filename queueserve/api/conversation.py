"""The messages of a request as jobs carry them: older forms become today's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from queueserve.api.schemas.chat import Message


def carried(messages: Sequence[Message]) -> tuple[dict[str, Any], ...]:
    """Return the messages as a worker gets them."""
    out: list[dict[str, Any]] = []
    last_call = ""  # of a `function_call`, which has no id
    for index, message in enumerate(messages):
        fields = message.model_dump(exclude_none=True, exclude={"function_call"})
        if isinstance(message.content, list):
            fields["content"] = [{"type": "text", "text": part.text} for part in message.content]
        if message.function_call is not None:
            last_call = f"call_{index}"
            function = message.function_call.model_dump()
            call = {"id": last_call, "type": "function", "function": function}
            fields["tool_calls"] = [*fields.get("tool_calls", ()), call]
        if message.role == "function":
            fields |= {"role": "tool", "tool_call_id": last_call}
        out.append(fields)
    return tuple(out)
