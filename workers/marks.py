"""Marks of calls and of reasoning that are special tokens: they must be seen in the text.

A special token has no text, as `<|im_end|>` must not show. But some models mark a call with one
(`[TOOL_CALLS]`, `<|python_tag|>`), and the parser on the API side looks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from queueserve.protocol import Job
from workers.engines.base import Detokenizer, Tokenizer
from workers.templates.dialects import REASONING_MARKS, TOOL_MARKS, Dialect


class Marks:
    """The hidden marks of one model: token → text."""

    def __init__(self, tools: Mapping[int, str], reasoning: Mapping[int, str]) -> None:
        self._reasoning = reasoning
        self._all = {**reasoning, **tools}

    @classmethod
    async def of(cls, tokenizer: Tokenizer, dialect: Dialect) -> Self:
        """Find those of a model that speaks this dialect."""
        tools = TOOL_MARKS[dialect.tools] if dialect.tools else ()
        reasoning = REASONING_MARKS[dialect.reasoning] if dialect.reasoning else ()
        return cls(await _hidden(tokenizer, tools), await _hidden(tokenizer, reasoning))

    def shown(self, job: Job, detokenizer: Detokenizer) -> Detokenizer:
        """Return a detokenizer that shows the marks which the job's parser looks for."""
        marks = self._all if job.tools else self._reasoning
        return _Showing(detokenizer, marks) if marks else detokenizer


class _Showing:
    def __init__(self, detokenizer: Detokenizer, marks: Mapping[int, str]) -> None:
        self._detokenizer = detokenizer
        self._marks = marks

    def feed(self, token: int) -> str:
        return self._detokenizer.feed(token) + self._marks.get(token, "")

    def flush(self) -> str:
        return self._detokenizer.flush()


async def _hidden(tokenizer: Tokenizer, marks: tuple[str, ...]) -> dict[int, str]:
    hidden: dict[int, str] = {}
    for mark in marks:
        tokens = await tokenizer.encode(mark, add_special=False)
        if len(tokens) == 1 and not tokenizer.detokenizer().feed(tokens[0]):
            hidden[tokens[0]] = mark
    return hidden
