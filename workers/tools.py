"""How a chat template is told of tools, calls and results: in its own form, or in plain words.

Templates differ in what they take; that is tried once, not read from their source. A template that
does not know tools is given text: the tools in the system message, calls as the JSON that the model
is to write, results as messages of the user.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypeAlias

from queueserve.errors import InvalidRequestError
from workers.templates.render import ChatTemplate, Message

Tool: TypeAlias = Mapping[str, Any]

_PROBE = "the_name_of_a_probe"
_PROBE_ARGUMENTS = {"probe_argument": "probe_value"}
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE,
        "description": "A probe.",
        "parameters": {
            "type": "object",
            "properties": {"probe_argument": {"type": "string", "description": "A probe."}},
            "required": ["probe_argument"],
        },
    },
}

_TOOLS = """\
You can use these tools; the parameters of each are described by a JSON schema:

{tools}

To use a tool, answer with one JSON object and nothing else:
{{"name": "<name of the tool>", "arguments": {{"<parameter>": <value>}}}}
To use several tools at once, answer with a list of such objects. If no tool helps, answer in \
plain words."""


class ToolForms:
    """What one chat template takes. `short_ids`: the dialect wants ids of nine characters."""

    def __init__(self, template: ChatTemplate, *, short_ids: bool = False) -> None:
        self._template = template
        self._short_ids = short_ids
        self._knows_tools = self._shows_tools()
        self._calls = self._form_of_calls()  # None: the template shows none

    def prepare(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Tool]]:
        """Return the messages and tools as they go to the template."""
        if self._calls is None:
            prepared = _in_words(messages)
        else:
            names: dict[str, str] = {}
            prepared = [self._own_form(message, names) for message in messages]
        if self._knows_tools or not tools:
            return prepared, list(tools)
        return self._with_tools_in_words(prepared, tools), []

    # Templates that know tools

    def _own_form(self, message: Mapping[str, Any], names: dict[str, str]) -> Message:
        calls = message.get("tool_calls")
        if calls:
            assert self._calls is not None  # noqa: S101 - else nothing comes here
            as_text, content = self._calls
            names |= {call.get("id", ""): call["function"]["name"] for call in calls}
            shown = [self._call(call, as_text=as_text) for call in calls]
            return {"content": content, **message, "tool_calls": shown}
        if message.get("role") == "tool":
            asked = message.get("tool_call_id", "")
            named = {"name": names[asked]} if asked in names else {}
            return {**named, **message, "tool_call_id": self._id(asked)}
        return dict(message)

    def _call(self, call: Mapping[str, Any], *, as_text: bool) -> dict[str, Any]:
        function = call["function"]
        arguments = function["arguments"] if as_text else _value(function["arguments"])
        function = {"name": function["name"], "arguments": arguments}
        return {"id": self._id(call.get("id", "")), "type": "function", "function": function}

    def _id(self, asked: str) -> str:
        if not self._short_ids:
            return asked
        return hashlib.blake2b(asked.encode(errors="replace")).hexdigest()[:9]

    def _shows_tools(self) -> bool:
        messages: list[Message] = [{"role": "user", "content": "?"}]
        return _PROBE in self._tried(messages, [_PROBE_TOOL])

    def _form_of_calls(self) -> tuple[bool, str | None] | None:
        """Return whether arguments are text, and the content of a message without one."""
        for as_text, content in product((False, True), (None, "")):
            arguments: Any = json.dumps(_PROBE_ARGUMENTS) if as_text else _PROBE_ARGUMENTS
            call = {"id": "probe0000", "function": {"name": _PROBE, "arguments": arguments}}
            messages: list[Message] = [
                {"role": "user", "content": "?"},
                {
                    "role": "assistant",
                    "content": content,
                    "tool_calls": [call | {"type": "function"}],
                },
                {"role": "tool", "content": "!", "tool_call_id": "probe0000", "name": _PROBE},
            ]
            text = self._tried(messages, None)
            if all(word in text for word in (_PROBE, *_PROBE_ARGUMENTS, "probe_value")):
                return as_text, content
        return None

    def _tried(self, messages: list[Message], tools: list[Any] | None) -> str:
        try:
            return self._template.render(messages, tools=tools)
        except InvalidRequestError:
            return ""

    # Templates that do not

    def _with_tools_in_words(self, messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
        lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        words = _TOOLS.format(tools=lines)
        role = "system" if self._template.takes_system else "user"
        first = messages[0]
        if first.get("role") == role:
            parts = (_text(first), words) if role == "system" else (words, _text(first))
            return [{**first, "content": "\n\n".join(filter(None, parts))}, *messages[1:]]
        return [{"role": role, "content": words}, *messages]


def _in_words(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return the messages with calls and results as text."""
    names: dict[str, str] = {}
    out: list[Message] = []
    answering = False  # the last message holds results: what the user says next goes there, too
    for message in messages:
        calls, role, text = message.get("tool_calls"), message.get("role"), _text(message)
        if calls:
            names |= {call.get("id", ""): call["function"]["name"] for call in calls}
            text = "\n\n".join(filter(None, (text, _written(calls))))
            out.append({"role": role, "content": text})
        elif role in ("tool", "user"):
            if role == "tool":
                text = (
                    f"Result of {names.get(message.get('tool_call_id', ''), 'the tool')}:\n{text}"
                )
            if answering:
                text = f"{out.pop()['content']}\n\n{text}"
            out.append({"role": "user", "content": text})
        else:
            out.append(dict(message))
        answering = role == "tool"
    return out


def _written(calls: Sequence[Mapping[str, Any]]) -> str:
    """Return calls as the model is asked to write them."""
    objects = [
        {"name": call["function"]["name"], "arguments": _value(call["function"]["arguments"])}
        for call in calls
    ]
    return json.dumps(objects[0] if len(objects) == 1 else objects, ensure_ascii=False)


def _value(arguments: str) -> Any:
    """Return what the text of the arguments stands for; the text, if it is no JSON object."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list | tuple):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else ""
