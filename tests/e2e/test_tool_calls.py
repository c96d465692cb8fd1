"""A stream of tool calls survives the death of its worker."""

from __future__ import annotations

import json
import os
import signal

PROMPT = [{"role": "user", "content": "How is the weather in Paris?"}]
SLOW = ("--engine", "fake", "--fake-tick", "0.03")


def tool(name: str, **properties) -> dict:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("get_weather", city={"type": "string", "minLength": 40, "maxLength": 60}),
    tool("add", numbers={"type": "array", "items": {"type": "integer"}, "maxItems": 3}),
]


def ask(client, **options):
    options = {"temperature": 1, "seed": 3, "tools": TOOLS, "tool_choice": "required"} | options
    return client.chat.completions.create(model="m", messages=PROMPT, **options)


def calls_of(stream, *, at=None, then=None) -> tuple[list[list[str]], str]:
    """Name and arguments of each call, and the finish_reason.

    `then` is called once, when the first call's arguments have `at` characters.
    """
    calls, reason = [], None
    for chunk in stream:
        choice = chunk.choices[0]
        reason = choice.finish_reason or reason
        for part in choice.delta.tool_calls or ():
            if part.id:
                assert part.index == len(calls)
                calls.append([part.function.name, ""])
            calls[part.index][1] += part.function.arguments
        if at is not None and calls and len(calls[0][1]) >= at:
            at = None
            then()
    assert at is None, "the stream ended before `then`"
    return calls, reason


def test_a_call_goes_on_where_it_stood_when_its_worker_is_killed(cluster):
    url, _ = cluster.api()
    client = cluster.client(url)
    cluster.worker(*SLOW)
    undisturbed = calls_of(ask(client, stream=True))
    assert undisturbed[1] == "tool_calls"
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in undisturbed[0])
    assert len(undisturbed[0][0][1]) > 20
    cluster.worker(*SLOW)
    killed = []

    def kill() -> None:
        killed.extend(set(cluster.running().values()))
        for worker in killed:
            os.kill(cluster.pid_of(worker), signal.SIGKILL)

    assert calls_of(ask(client, stream=True), at=15, then=kill) == undisturbed
    assert killed
