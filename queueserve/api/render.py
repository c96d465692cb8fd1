"""Events become OpenAI objects. Pure.

A stream's text chunks, one per token, are joined from prepared bytes around the encoded text: no
object is built for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from queueserve.api.generation import Batch
from queueserve.api.sse import DONE, KEEP_ALIVE, error_frame, frame
from queueserve.errors import QueueServeError
from queueserve.protocol import Delta, Event, Finished, Started


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How an endpoint's answers look."""

    whole: str  # the "object" of an answer in one piece
    part: str  # the "object" of a stream's chunk
    opening: Mapping[str, Any] | None  # of a choice's first chunk, before any text
    before: bytes  # what stands before the text in a chunk's choice, as JSON
    after: bytes
    closing: Mapping[str, Any]  # of the chunk with the finish_reason
    part_content: Callable[[str], Mapping[str, Any]]  # of a chunk's choice, with its text
    content: Callable[[str], Mapping[str, Any]]  # of a choice in one piece


CHAT = Shape(
    whole="chat.completion",
    part="chat.completion.chunk",
    opening={"delta": {"role": "assistant", "content": "", "refusal": None}},
    before=b'"delta":{"content":',
    after=b"}",
    closing={"delta": {}},
    part_content=lambda text: {"delta": {"content": text}},
    content=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
)
COMPLETION = Shape(
    whole="text_completion",
    part="text_completion",
    opening=None,
    before=b'"text":',
    after=b"",
    closing={"text": ""},
    part_content=lambda text: {"text": text},
    content=lambda text: {"text": text},
)


class Reply(NamedTuple):
    """What all parts of an answer share."""

    shape: Shape
    id: str
    created: int  # Unix seconds
    model: str
    jobs: int
    choices: int  # per prompt
    service_tier: str | None = None  # the one asked for, if any
    include_usage: bool = False  # in a stream

    def head(self, kind: str, fingerprint: str) -> dict[str, Any]:
        """Return the members that come first in every object."""
        head = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": fingerprint or None,
        }
        if self.service_tier is not None:
            head["service_tier"] = "default" if self.service_tier == "auto" else self.service_tier
        return head


class Tally:
    """The tokens of all jobs of a request. A prompt counts once, however many choices it has."""

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._prompts: dict[int, tuple[int, int]] = {}  # prompt → tokens, cached ones
        self._completion = 0
        self._reasoning = 0

    def started(self, index: int, event: Started) -> None:
        """Count the prompt."""
        counts = (event.prompt_tokens, event.cached_tokens)
        self._prompts.setdefault(index // self._choices, counts)

    def finished(self, index: int, event: Finished, *, reasoning: int = 0) -> None:
        """Count the output; `reasoning` of its tokens were for the model itself."""
        if event.prompt_tokens is not None:
            prompt = index // self._choices
            _, cached = self._prompts.get(prompt, (0, 0))
            self._prompts[prompt] = (event.prompt_tokens, cached)
        self._completion += event.seq
        self._reasoning += reasoning

    def usage(self) -> dict[str, Any]:
        """Return OpenAI's usage object."""
        prompt = sum(tokens for tokens, _ in self._prompts.values())
        cached = sum(cached for _, cached in self._prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._completion,
            "total_tokens": prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": self._reasoning},
        }


class Whole:
    """An answer in one piece."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._tally = Tally(reply.choices)
        self._fingerprint = ""
        self._texts: list[list[str]] = [[] for _ in range(reply.jobs)]
        self._reasons: list[str | None] = [None] * reply.jobs

    def add(self, batch: Batch) -> None:
        """Take events in."""
        for index, events in batch:
            for event in events:
                self._add(index, event)

    def _add(self, index: int, event: Event) -> None:
        match event:
            case Delta():
                self._texts[index].append(event.text)
            case Started():
                self._tally.started(index, event)
                self._fingerprint = self._fingerprint or event.fingerprint
            case Finished():
                self._tally.finished(index, event)
                self._texts[index].append(event.text)
                self._reasons[index] = event.finish_reason

    def body(self) -> bytes:
        """Return the JSON of the answer, once every job has finished."""
        return orjson.dumps(self.answer([self.choice(index) for index in range(self._reply.jobs)]))

    def choice(self, index: int) -> dict[str, Any]:
        """Return what one job has become."""
        return {
            "index": index,
            **self._reply.shape.content("".join(self._texts[index])),
            "logprobs": None,
            "finish_reason": self._reasons[index],
        }

    def answer(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the answer around its choices."""
        head = self._reply.head(self._reply.shape.whole, self._fingerprint)
        return head | {"choices": choices, "usage": self._tally.usage()}


class Chunks:
    """The events of a stream."""

    keep_alive = KEEP_ALIVE

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._tally = Tally(reply.choices)
        self._fingerprint = ""
        self._prefixes: dict[int, bytes] = {}  # of a text chunk, by index
        usage = b',"usage":null' if reply.include_usage else b""
        rest = b',"logprobs":null,"finish_reason":null}]'
        self._suffix = reply.shape.after + rest + usage + b"}\n\n"

    def render(self, batch: Batch) -> bytes:
        """Return the frames for new events, one for each event that has text."""
        frames: list[bytes] = []
        for index, events in batch:
            for event in events:
                if type(event) is Delta:  # the one that counts: once per token
                    if event.text:
                        frames += (self._prefixes[index], orjson.dumps(event.text), self._suffix)
                else:
                    frames += self._other(index, event)
        return b"".join(frames)

    def end(self) -> bytes:
        """Return the frames after the last event."""
        if not self._reply.include_usage:
            return DONE
        head = self._reply.head(self._reply.shape.part, self._fingerprint)
        return frame(orjson.dumps(head | {"choices": [], "usage": self._tally.usage()})) + DONE

    def failure(self, error: QueueServeError) -> bytes:
        """Return the frame that ends the stream with a failure."""
        return error_frame(error)

    def _other(self, index: int, event: Event) -> list[bytes]:
        shape = self._reply.shape
        match event:
            case Started():
                self._tally.started(index, event)
                self._fingerprint = self._fingerprint or event.fingerprint
                self._prefixes[index] = self._prefix(index)
                return [self._chunk(index, shape.opening)] if shape.opening else []
            case Finished():
                self._tally.finished(index, event)
                held_back = [self._prefixes[index], orjson.dumps(event.text), self._suffix]
                closing = self._chunk(index, shape.closing, event.finish_reason)
                return [*(held_back if event.text else ()), closing]
            case _:
                return []

    def _prefix(self, index: int) -> bytes:
        head = orjson.dumps(self._reply.head(self._reply.shape.part, self._fingerprint))
        choice = b',"choices":[{"index":%d,' % index
        return b"data: " + head.removesuffix(b"}") + choice + self._reply.shape.before

    def _chunk(
        self,
        index: int,
        content: Mapping[str, Any],
        reason: str | None = None,
        *,
        beside: Mapping[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, **content}
        choice.setdefault("logprobs", None)
        choice["finish_reason"] = reason
        head = self._reply.head(self._reply.shape.part, self._fingerprint)
        chunk = {**head, **(beside or {}), "choices": [choice]}
        if self._reply.include_usage:
            chunk["usage"] = None
        return frame(orjson.dumps(chunk))
