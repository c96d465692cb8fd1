"""How a model writes tool calls and reasoning, read from its chat template.

The API server parses the output; a worker only says which parser its model needs. A template writes
earlier calls as the model is to write the next one, so it shows which dialect that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from queueserve.errors import EngineError

TOOL_MARKS: Mapping[str, tuple[str, ...]] = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "llama3": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    "json": (),
}
"""Tool parser → the marks around calls that may be tokens of their own."""

REASONING_MARKS: Mapping[str, tuple[str, str]] = {
    "think": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
}
"""Reasoning parser → the marks before and after the reasoning."""

AUTO, NONE = "auto", "none"


@dataclass(frozen=True, slots=True)
class Dialect:
    """Which parsers a model's output needs; None: there is nothing to find."""

    tools: str | None = None
    reasoning: str | None = None


def choose_dialect(template: str | None, *, tools: str = AUTO, reasoning: str = AUTO) -> Dialect:
    """Return the dialect of a model with this chat template.

    `tools` and `reasoning` are the values of `--tool-parser` and `--reasoning-parser`. Raises
    EngineError for an unknown one.
    """
    _check("--tool-parser", tools, TOOL_MARKS)
    _check("--reasoning-parser", reasoning, REASONING_MARKS)
    if template is None:  # no chat, so nothing to parse
        return Dialect()
    return Dialect(
        _tools_of(template) if tools == AUTO else _named(tools),
        _reasoning_of(template) if reasoning == AUTO else _named(reasoning),
    )


def _check(option: str, value: str, known: Mapping[str, object]) -> None:
    if value not in (AUTO, NONE, *known):
        raise EngineError(f"{option} {value}: it is auto, none or one of {', '.join(known)}")


def _named(value: str) -> str | None:
    return None if value == NONE else value


def _tools_of(template: str) -> str:
    if "<tool_call>" in template and "<function=" not in template:
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<|python_tag|>" in template or "ipython" in template:
        return "llama3"
    return "json"


def _reasoning_of(template: str) -> str | None:
    for name, marks in REASONING_MARKS.items():
        if any(mark in template for mark in marks):
            return name
    return None
