"""Events become a Message and its stream of events (/v1/messages). Pure.

    message_start, ping
    per block: content_block_start, content_block_delta …, content_block_stop
    message_delta (why it stopped, usage), message_stop

A failure after that has begun is an `error` event, and the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from queueserve.api import errors_anthropic
from queueserve.api.blocks import Block, Blocks, Closed, Grown, Opened, Step
from queueserve.api.errors import status_of
from queueserve.api.generation import Batch
from queueserve.api.parsers import Parser
from queueserve.errors import QueueServeError
from queueserve.protocol import Answered, Delta, Event, Finished, Started

_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


def _arguments(text: str) -> dict[str, Any]:
    """Return a call's input; what the model left unfinished is no object and gives an empty one."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


class Message:
    """One Message as it grows. `reply_id` is "msg_" and hex digits."""

    def __init__(self, reply_id: str, model: str, parser: Parser) -> None:
        self._id = reply_id
        self._model = model
        self._blocks = Blocks(parser)
        self._started: Started | None = None
        self._finished: Finished | None = None

    def take(self, event: Event) -> list[Step]:
        """Take an event in; return what it brings."""
        match event:
            case Delta():
                return self._blocks.feed(event.text)
            case Finished():
                self._finished = event
                return self._blocks.feed(event.text) + self._blocks.end()
            case Started():
                self._started = event
        return []

    def body(self) -> dict[str, Any]:
        """Return the Message as it stands."""
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [self.block(block) for block in self._blocks.all],
            **(self.stopped() if self._finished else {"stop_reason": None, "stop_sequence": None}),
            "usage": self.usage(),
        }

    def block(self, block: Block, *, empty: bool = False) -> dict[str, Any]:
        """Return a content block as it stands, or as it began."""
        text = "" if empty else block.text
        match block.kind:
            case "text":
                return {"type": "text", "text": text}
            case "reasoning":
                return {"type": "thinking", "thinking": text, "signature": ""}
            case "call":
                name = f"toolu_{self._id.removeprefix('msg_')}{block.index:02x}"
                head = {"type": "tool_use", "id": name, "name": block.name}
                return head | {"input": _arguments(text)}

    def stopped(self) -> dict[str, Any]:
        """Return why it has ended."""
        reason = "end_turn"
        stop = self._finished.stop if self._finished else None
        if self._finished and self._finished.finish_reason == "length":
            reason = "max_tokens"
        elif stop is not None:
            reason = "stop_sequence"
        elif not self._blocks.cut and any(block.kind == "call" for block in self._blocks.all):
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": stop}

    def usage(self) -> dict[str, Any]:
        """Return the tokens so far; what came from the cache is not in input_tokens."""
        prompt = self._started.prompt_tokens if self._started else 0
        if self._finished and self._finished.prompt_tokens is not None:
            prompt = self._finished.prompt_tokens
        cached = self._started.cached_tokens if self._started else 0
        return {
            "input_tokens": prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self._finished.seq if self._finished else 0,
        }


class WholeMessage:
    """A Message in one piece."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def add(self, batch: Batch) -> None:
        """Take events in."""
        for _, events in batch:
            for event in events:
                self._message.take(event)

    def body(self) -> bytes:
        """Return the JSON of the Message, once its job has finished."""
        return orjson.dumps(self._message.body())


@dataclass(slots=True)
class TokenCount:
    """How many tokens a prompt has."""

    tokens: int = 0

    def add(self, _index: int, answered: Answered) -> None:
        """Take in the answer of the job."""
        self.tokens += answered.prompt_tokens

    def body(self) -> bytes:
        """Return the JSON of the answer."""
        return orjson.dumps({"input_tokens": self.tokens})


def _event(kind: str, **members: Any) -> bytes:
    data = orjson.dumps({"type": kind, **members})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


class MessageEvents:
    """The events of a Message's stream."""

    keep_alive = _event("ping")

    def __init__(self, message: Message, request_id: str | None = None) -> None:
        self._message = message
        self._request_id = request_id

    def render(self, batch: Batch) -> bytes:
        """Return the frames for new events."""
        frames: list[bytes] = []
        for _, events in batch:
            for event in events:
                steps = self._message.take(event)
                if isinstance(event, Started):
                    frames += (_event("message_start", message=self._message.body()), _PING)
                frames += map(self._step, steps)
        return b"".join(frames)

    def end(self) -> bytes:
        """Return the last frames."""
        delta, usage = self._message.stopped(), self._message.usage()
        return _event("message_delta", delta=delta, usage=usage) + _event("message_stop")

    def failure(self, error: QueueServeError) -> bytes:
        """Return the frame that ends the stream with a failure; the client raises it."""
        body = errors_anthropic.error_body(
            status_of(error), error.message, request_id=self._request_id
        )
        return b"event: error\ndata: %b\n\n" % body

    def _step(self, step: Step) -> bytes:
        match step:
            case Grown(block, text):
                kind, member = _DELTAS[block.kind]
                delta = {"type": kind, member: text}
                return _event("content_block_delta", index=block.index, delta=delta)
            case Opened(block):
                empty = self._message.block(block, empty=True)
                return _event("content_block_start", index=block.index, content_block=empty)
            case Closed(block):
                return _event("content_block_stop", index=block.index)


_PING = MessageEvents.keep_alive
