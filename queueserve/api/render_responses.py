"""Events become a Response and its stream of events (/v1/responses). Pure.

A stream's events have the numbers 0, 1, 2 …:

    response.created, response.in_progress
    per item: response.output_item.added, what it holds, response.output_item.done
        message    content_part.added, output_text.delta …, output_text.done, content_part.done
        reasoning  content_part.added, reasoning_text.delta …, reasoning_text.done, …part.done
        call       function_call_arguments.delta …, function_call_arguments.done
    response.completed | response.incomplete | response.failed
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import orjson

from queueserve.api.blocks import Block, Blocks, Closed, Grown, Opened, Step
from queueserve.api.errors import status_of
from queueserve.api.generation import Batch
from queueserve.api.parsers import Parser
from queueserve.api.sse import KEEP_ALIVE
from queueserve.errors import CancelledJobError, QueueServeError
from queueserve.protocol import Answered, Delta, Event, Finished, Started

Status: TypeAlias = Literal["queued", "in_progress", "completed", "incomplete", "failed"]

LAST_EVENTS = tuple(
    b"event: response.%b\n" % status for status in (b"completed", b"incomplete", b"failed")
)
"""What the last frame of a stream begins with."""
_ITEM_IDS = {"reasoning": "rs", "text": "msg", "call": "fc"}
_DELTAS = {
    "reasoning": "reasoning_text",
    "text": "output_text",
    "call": "function_call_arguments",
}


def failure_of(error: QueueServeError) -> dict[str, Any]:
    """Return the `error` of a failed Response; its codes are few and fixed."""
    status = status_of(error)
    code = "invalid_prompt" if status < 500 else "server_error"  # noqa: PLR2004 - HTTP's own number
    return {"code": error.code if status == 429 else code, "message": error.message}  # noqa: PLR2004


def event_frame(name: str, number: int, **members: Any) -> bytes:
    """Return the frame of one event of a stream."""
    data = orjson.dumps({"type": name, "sequence_number": number, **members})
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def ending_frame(number: int, response: Mapping[str, Any]) -> bytes:
    """Return the last frame for a Response that has ended, but whose stream has not."""
    if response["status"] == "cancelled":  # there is no event for this
        return error_frame(number, CancelledJobError("The response was cancelled."))
    return event_frame(f"response.{response['status']}", number, response=response)


def error_frame(number: int, error: QueueServeError) -> bytes:
    """Return the frame that ends a stream of which nothing better can be said."""
    told = {"code": error.code, "message": error.message, "param": error.param}
    return event_frame("error", number, **told)


class Answer:
    """One Response as it grows.

    `head` is what does not change: its id ("resp_" and hex digits), created_at, and what the
    request said.
    """

    def __init__(self, head: Mapping[str, Any], parser: Parser) -> None:
        self.stored = bool(head.get("store"))
        self._head = head
        self._ended = 0  # Unix seconds
        self._stem = str(head["id"]).removeprefix("resp_")
        self._blocks = Blocks(parser)
        self._done: dict[int, str] = {}  # block → the status that it ended with
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._reasoning_tokens = 0

    def take(self, event: Event) -> list[Step]:
        """Take an event in; return what it brings."""
        steps: list[Step] = []
        match event:
            case Delta():
                steps = self._blocks.feed(event.text)
                self._reasoning_tokens += len(event.tokens) if self._blocks.reasoning else 0
            case Finished():
                self._finished = event
                self._ended = int(time.time())
                steps = self._blocks.feed(event.text) + self._blocks.end()
            case Started():
                self._started = event
        for step in steps:
            if isinstance(step, Closed):
                self._done[step.block.index] = "completed"
        if self._cut:
            self._done[len(self._blocks.all) - 1] = "incomplete"
        return steps

    def response(
        self, status: Status | None = None, error: QueueServeError | None = None
    ) -> dict[str, Any]:
        """Return the Response as it stands; without a status, in the one that its end gave it."""
        status = status or ("incomplete" if self._cut else "completed")
        return {
            **self._head,
            "store": self.stored,
            "status": status,
            "completed_at": self._ended if status == "completed" else None,
            "error": error and failure_of(error),
            "incomplete_details": {"reason": "max_output_tokens"} if self._cut else None,
            "output": [self.item(block, "incomplete") for block in self._blocks.all],
            "usage": self._usage(),
        }

    def item(self, block: Block, status: str, *, empty: bool = False) -> dict[str, Any]:
        """Return a block's item as it stands, or as it began; `status` is that of an open one."""
        item = {"id": self.item_id(block), "status": self._done.get(block.index, status)}
        if block.kind == "call":
            return item | {
                "type": "function_call",
                "call_id": f"call_{self._stem}{block.index:02x}",
                "name": block.name,
                "arguments": "" if empty else block.text,
            }
        content = [] if empty else [part(block)]
        if block.kind == "reasoning":
            return item | {"type": "reasoning", "summary": [], "content": content}
        return item | {"type": "message", "role": "assistant", "content": content}

    def item_id(self, block: Block) -> str:
        """Return the id of a block's item; the same for every reader."""
        return f"{_ITEM_IDS[block.kind]}_{self._stem}{block.index:02x}"

    @property
    def _cut(self) -> bool:
        return self._finished is not None and self._finished.finish_reason == "length"

    def _usage(self) -> dict[str, Any] | None:
        if self._started is None or self._finished is None:
            return None
        prompt, output = self._started.prompt_tokens, self._finished.seq
        cached = {"cached_tokens": self._started.cached_tokens, "cache_write_tokens": 0}
        return {
            "input_tokens": prompt,
            "input_tokens_details": cached,
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
            "total_tokens": prompt + output,
        }


def part(block: Block, *, empty: bool = False) -> dict[str, Any]:
    """Return the one part that a message or a reasoning item has."""
    text = "" if empty else block.text
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class WholeResponse:
    """A Response in one piece."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def add(self, batch: Batch) -> None:
        """Take events in."""
        for _, events in batch:
            for event in events:
                self._answer.take(event)

    def body(self) -> bytes:
        """Return the JSON of the Response, once its job has finished."""
        return orjson.dumps(self._answer.response())


@dataclass(slots=True)
class InputTokens:
    """How many tokens a prompt has."""

    tokens: int = 0

    def add(self, _index: int, answered: Answered) -> None:
        """Take in the answer of the job."""
        self.tokens += answered.prompt_tokens

    def body(self) -> bytes:
        """Return the JSON of the answer."""
        return orjson.dumps({"object": "response.input_tokens", "input_tokens": self.tokens})


class ResponseEvents:
    """The events of a Response's stream."""

    keep_alive = KEEP_ALIVE

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._number = 0  # of the next event
        self._begun = False
        self._deltas: dict[int, bytes] = {}  # what stands before the number, by block

    def begin(self) -> list[bytes]:
        """Return the frames that a Response which waits begins with."""
        self._begun = True
        return [self._state("created", "queued"), self._state("queued", "queued")]

    def frames(self, batch: Batch) -> list[bytes]:
        """Return the frames for new events, one for each of the stream's events."""
        frames: list[bytes] = []
        for _, events in batch:
            for event in events:
                if isinstance(event, Started):
                    frames += self._start()
                for step in self._answer.take(event):
                    frames += self._step(step)
        return frames

    def render(self, batch: Batch) -> bytes:
        """Return the frames for new events."""
        return b"".join(self.frames(batch))

    def end(self) -> bytes:
        """Return the last frame."""
        response = self._answer.response()
        return self._event(f"response.{response['status']}", response=response)

    def failure(self, error: QueueServeError) -> bytes:
        """Return the frames that end the stream with a failure."""
        begin = b"" if self._begun else self._state("created", "in_progress")
        failed = self._event("response.failed", response=self._answer.response("failed", error))
        return begin + failed

    def _start(self) -> list[bytes]:
        created = [] if self._begun else [self._state("created", "in_progress")]
        self._begun = True
        return [*created, self._state("in_progress", "in_progress")]

    def _state(self, name: str, status: Status) -> bytes:
        return self._event(f"response.{name}", response=self._answer.response(status))

    @property
    def number(self) -> int:
        """The number of the next event."""
        return self._number

    def _step(self, step: Step) -> list[bytes]:
        match step:
            case Grown(block, text):
                return [self._delta(block, text)]
            case Opened(block):
                return self._opened(block)
            case Closed(block):
                return self._closed(block)

    def _opened(self, block: Block) -> list[bytes]:
        item = self._answer.item(block, "in_progress", empty=True)
        frames = [self._event("response.output_item.added", output_index=block.index, item=item)]
        at = self._at(block)
        if block.kind != "call":
            empty = part(block, empty=True)
            frames.append(self._event("response.content_part.added", **at, part=empty))
        name = f"response.{_DELTAS[block.kind]}.delta"
        logprobs: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
        head = orjson.dumps({"type": name, **at, **logprobs}).removesuffix(b"}")
        self._deltas[block.index] = b"event: %b\ndata: %b" % (name.encode(), head)
        return frames

    def _closed(self, block: Block) -> list[bytes]:
        at, name = self._at(block), f"response.{_DELTAS[block.kind]}.done"
        frames: list[bytes] = []
        if block.kind == "call":
            frames.append(self._event(name, **at, arguments=block.text))
        else:
            logprobs: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
            frames.append(self._event(name, **at, **logprobs, text=block.text))
            frames.append(self._event("response.content_part.done", **at, part=part(block)))
        item = self._answer.item(block, "completed")
        done = self._event("response.output_item.done", output_index=block.index, item=item)
        return [*frames, done]

    def _at(self, block: Block) -> dict[str, Any]:
        at = {"item_id": self._answer.item_id(block), "output_index": block.index}
        return at if block.kind == "call" else at | {"content_index": 0}

    def _delta(self, block: Block, text: str) -> bytes:
        number, self._number = self._number, self._number + 1
        head = self._deltas[block.index]
        return b'%b,"sequence_number":%d,"delta":%b}\n\n' % (head, number, orjson.dumps(text))

    def _event(self, name: str, **members: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event_frame(name, number, **members)
