"""Events become the stream of a Response (/v1/responses). Pure.

Its events have the numbers 0, 1, 2 …:

    response.created, response.in_progress
    per item: response.output_item.added, what it holds, response.output_item.done
        message    content_part.added, output_text.delta …, output_text.done, content_part.done
        reasoning  content_part.added, reasoning_text.delta …, reasoning_text.done, …part.done
        call       function_call_arguments.delta …, function_call_arguments.done
    response.completed | response.incomplete | response.failed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from queueserve.api.blocks import Block, Closed, Grown, Opened, Step
from queueserve.api.generation import Batch
from queueserve.api.response import Answer, Status, part
from queueserve.api.sse import KEEP_ALIVE
from queueserve.errors import CancelledJobError, QueueServeError
from queueserve.protocol import Started

LAST_EVENTS = (
    *(b"event: response.%b\n" % status for status in (b"completed", b"incomplete", b"failed")),
    b"event: error\n",
)
"""What the last frame of a stream begins with."""
_DELTAS = {
    "reasoning": "reasoning_text",
    "text": "output_text",
    "call": "function_call_arguments",
}


def event_frame(name: str, number: int, **members: Any) -> bytes:
    """Return the frame of one event of a stream."""
    data = orjson.dumps({"type": name, "sequence_number": number, **members})
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def ending_frame(number: int, response: Mapping[str, Any]) -> bytes:
    """Return the last frame of a Response that was ended from outside."""
    if response["status"] == "cancelled":  # there is no event for this
        return error_frame(number, CancelledJobError("The response was cancelled."))
    return event_frame(f"response.{response['status']}", number, response=response)


def error_frame(number: int, error: QueueServeError) -> bytes:
    """Return the frame that ends a stream of which nothing better can be said."""
    told = {"code": error.code, "message": error.message, "param": error.param}
    return event_frame("error", number, **told)


class ResponseEvents:
    """The events of a Response's stream."""

    keep_alive = KEEP_ALIVE

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._number = 0  # of the next event
        self._begun = False
        self._deltas: dict[int, bytes] = {}  # what stands before the number, by block
        self._told = 0  # logprobs of the open block

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
        self._told = 0
        if block.kind != "call":
            empty = part(block, empty=True)
            frames.append(self._event("response.content_part.added", **at, part=empty))
        name = f"response.{_DELTAS[block.kind]}.delta"
        plain = block.kind == "text" and not self._answer.logprobs
        head = orjson.dumps({"type": name, **at, **({"logprobs": []} if plain else {})})
        head = head.removesuffix(b"}")
        self._deltas[block.index] = b"event: %b\ndata: %b" % (name.encode(), head)
        return frames

    def _closed(self, block: Block) -> list[bytes]:
        at, name = self._at(block), f"response.{_DELTAS[block.kind]}.done"
        frames: list[bytes] = []
        if block.kind == "call":
            frames.append(self._event(name, **at, arguments=block.text))
        else:
            logprobs = {"logprobs": block.logprobs} if block.kind == "text" else {}
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
        if block.kind == "text" and self._answer.logprobs:
            told, self._told = self._told, len(block.logprobs)
            head += b',"logprobs":%b' % orjson.dumps(block.logprobs[told:])
        return b'%b,"sequence_number":%d,"delta":%b}\n\n' % (head, number, orjson.dumps(text))

    def _event(self, name: str, **members: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event_frame(name, number, **members)
