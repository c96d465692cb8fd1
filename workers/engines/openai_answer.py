"""A streamed answer of a server that speaks the OpenAI API, read as it comes. Pure.

Calls and reasoning, which the server has parsed, are written again as a model writes them
(`<tool_call>`, `<think>`), as our API servers parse text. A bound answer has no reasoning, and its
calls are a list in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson

from queueserve.errors import EngineError
from queueserve.protocol import FinishReason, Job
from workers.engines.openai_requests import refusal

DIALECT = (
    "{# Never rendered: it tells how calls, <tool_call>, and reasoning, <think>, are marked. #}"
)
"""A chat template for the choice of parsers."""

_MAX_LINE = 16 * 1024 * 1024  # bytes
_SHOWN = 200  # bytes of what cannot be read
_DONE = b"[DONE]"
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
"""What a line of server-sent events begins with."""


class EventReader:
    """Server-sent events out of bytes: one JSON object in each `data` line.

    A server that ignores `stream` sends one JSON object instead, which is one event at the end.
    """

    def __init__(self) -> None:
        self.done = False  # the server has said that no event follows
        self.streams: bool | None = None  # whether events come; None while that is not known
        self._rest = b""

    def feed(self, data: bytes) -> list[Mapping[str, Any]]:
        """Return the events that `data` completes. Raises EngineError for what is none."""
        self._rest += data
        if len(self._rest) > _MAX_LINE:
            raise EngineError("The server of this model sent a line without an end.")
        if self.streams is None and b"\n" in (begun := self._rest.lstrip()):
            self.streams = begun.startswith(_FIELDS)
        if not self.streams:
            return []
        *lines, self._rest = self._rest.split(b"\n")
        texts = (line[5:].strip() for line in lines if line.startswith(b"data:"))
        return [self._event(text) for text in texts if not self._ends(text)]

    def end(self) -> list[Mapping[str, Any]]:
        """Return what has come instead of events. Raises EngineError if that is no JSON object."""
        whole = b"" if self.streams else self._rest.strip()
        return [self._event(whole)] if whole and not whole.startswith(_FIELDS) else []

    def _ends(self, text: bytes) -> bool:
        self.done = self.done or text == _DONE
        return self.done or not text

    @staticmethod
    def _event(text: bytes) -> Mapping[str, Any]:
        try:
            event = orjson.loads(text)
        except orjson.JSONDecodeError:
            event = None
        if not isinstance(event, dict):
            begins = text[:_SHOWN].decode(errors="replace")
            raise EngineError(f"The server of this model sent no JSON object, but: {begins}")
        return event


class _Calls:
    """Writes calls as they grow."""

    def __init__(self, *, listed: bool) -> None:
        self._listed = listed
        self._open: tuple[Any, Any] | None = None  # index and id of the call that is being written
        self._begun = False  # its arguments

    def feed(self, call: Mapping[str, Any]) -> str:
        """Return the text of a part of a call."""
        function = call.get("function") or {}
        index, name = call["index"], call.get("id")
        text = ""
        if self._open is None or index != self._open[0] or (name and name != self._open[1]):
            between = (", " if self._listed else "\n") if self._open else "[" * self._listed
            text = self._end() + between + self._start(str(function.get("name") or ""))
            self._open = (index, name)
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):
            arguments = orjson.dumps(arguments).decode()
        self._begun = self._begun or bool(arguments)
        return text + arguments

    def _start(self, name: str) -> str:
        self._begun = False
        tag = "" if self._listed else "<tool_call>\n"
        return f'{tag}{{"name": {orjson.dumps(name).decode()}, "arguments": '

    def _end(self) -> str:
        if self._open is None:
            return ""
        return ("" if self._begun else "{}") + ("}" if self._listed else "}\n</tool_call>")

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self._open is not None

    def end(self) -> str:
        """Return what closes the last call."""
        return self._end() + ("]" if self._listed and self._open else "")


class Answer:
    """What one job's answer is so far, as pieces of text: each stands for one token."""

    def __init__(self, job: Job) -> None:
        self.finish: FinishReason | None = None
        self.prompt_tokens: int | None = None
        self.count = 0  # of pieces
        self._stops = job.sampling.stop
        self._bound = job.constraint is not None
        self._calls = _Calls(listed=self._bound)
        self._must_call = job.constraint is not None and job.constraint.param == "tool_choice"
        self._thinks = False
        self._completion: int | None = None  # tokens, as the server counts them

    def take(self, event: Mapping[str, Any]) -> list[str]:
        """Return the piece that an event brings, if it does. Raises the error that it tells of."""
        if event.get("error"):
            error = event["error"]
            code = error.get("code") if isinstance(error, dict) else None
            raise refusal(code if isinstance(code, int) else 500, event)
        if isinstance(usage := event.get("usage"), dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self._completion = _count(usage.get("completion_tokens"))
        text = "".join(map(self._choice, (event.get("choices") or ())[:1]))
        self.count += bool(text)
        return [text] if text else []

    def end(self, *, most: int) -> list[str]:
        """Return what closes the answer, and empty pieces up to the server's count of tokens.

        At most `most` of them. Raises EngineError if a call had to come and none did.
        """
        if self._must_call and self.finish == "stop" and not self._calls.any:
            raise EngineError("The server of this model made no call, though one was required.")
        closing = ("</think>" if self._thinks else "") + self._calls.end()
        missing = min((self._completion or 0) - self.count, most)
        return [closing] * bool(closing) + [""] * max(0, missing - bool(closing))

    def _choice(self, choice: Mapping[str, Any]) -> str:
        delta = choice.get("delta") or choice.get("message") or {}  # the latter: not streamed
        text = choice.get("text") or self._thought(delta)
        if not self._must_call:  # servers that do not bind calls to come are found out at the end
            text += self._said(delta.get("content") or delta.get("refusal") or "")
        for at, call in enumerate(delta.get("tool_calls") or ()):
            text += self._said(self._calls.feed({"index": at} | call))
        if reason := choice.get("finish_reason"):
            self.finish = "length" if reason == "length" else "stop"
            hit = choice.get("stop_reason") or choice.get("matched_stop")
            text += hit if hit in self._stops else ""  # it is cut off again, and told of
        return cast("str", text)

    def _thought(self, delta: Mapping[str, Any]) -> str:
        text = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if not text or self._bound:
            return ""
        opening = "" if self._thinks else "<think>"
        self._thinks = True
        return opening + text

    def _said(self, text: str) -> str:
        if not text or not self._thinks:
            return text
        self._thinks = False
        return "</think>" + text


def _count(told: Any) -> int | None:
    return told if isinstance(told, int) and told >= 0 else None
