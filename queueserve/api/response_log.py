"""What the events of a Response's log say of its output. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

_GROWS = ("response.output_text.delta", "response.reasoning_text.delta")


def output_of(frames: Iterable[bytes]) -> list[dict[str, Any]]:
    """Return the output that these events tell of; an item that was not done is incomplete."""
    items: dict[int, dict[str, Any]] = {}
    for frame in frames:
        event = orjson.loads(frame.partition(b"data: ")[2])
        match event["type"]:
            case "response.output_item.added" | "response.output_item.done":
                items[event["output_index"]] = event["item"]
            case "response.content_part.added":
                items[event["output_index"]]["content"].append(event["part"])
            case "response.function_call_arguments.delta":
                items[event["output_index"]]["arguments"] += event["delta"]
            case kind if kind in _GROWS:
                part = items[event["output_index"]]["content"][-1]
                part["text"] += event["delta"]
                part.get("logprobs", []).extend(event.get("logprobs", ()))
    return [
        item | {"status": "incomplete"} if item["status"] == "in_progress" else item
        for item in items.values()
    ]
