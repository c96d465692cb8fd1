"""Events become a Response, the object of /v1/responses. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import orjson

from queueserve.api.blocks import Block, Blocks, Closed, Grown, Step
from queueserve.api.encrypted_content import packed
from queueserve.api.errors import status_of
from queueserve.api.generation import Batch
from queueserve.api.logprobs import chat_logprobs
from queueserve.api.parsers import Parser
from queueserve.errors import QueueServeError
from queueserve.protocol import Answered, Delta, Event, Finished, Started

Status: TypeAlias = Literal["queued", "in_progress", "completed", "incomplete", "failed"]

_ITEM_IDS = {"reasoning": "rs", "text": "msg", "call": "fc"}


def failure_of(error: QueueServeError) -> dict[str, Any]:
    """Return the `error` of a failed Response; its codes are few and fixed."""
    status = status_of(error)
    codes = {400: "invalid_prompt", 404: "invalid_prompt", 429: error.code}
    return {"code": codes.get(status, "server_error"), "message": error.message}


class Answer:
    """One Response as it grows.

    `head` is what does not change: its id ("resp_" and hex digits), created_at, and what the
    request said. With `logprobs` its texts carry those of their tokens, with `encrypted` its
    reasoning an encrypted_content.
    """

    def __init__(
        self,
        head: Mapping[str, Any],
        parser: Parser,
        *,
        logprobs: bool = False,
        encrypted: bool = False,
    ) -> None:
        self.stored = bool(head.get("store"))
        self.logprobs = logprobs
        self._encrypted = encrypted
        self._pending: list[dict[str, Any]] = []  # logprobs of text that was not given out yet
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
                thinks = self._blocks.open == "reasoning"
                self._reasoning_tokens += len(event.tokens) if thinks else 0
                if self.logprobs:
                    self._attach(chat_logprobs(event.logprobs or ())["content"], steps)
            case Finished():
                self._finished = event
                self._ended = int(time.time())
                steps = self._blocks.feed(event.text) + self._blocks.end()
                self._attach([], steps)
            case Started():
                self._started = event
        for step in steps:
            if isinstance(step, Closed):
                self._done[step.block.index] = "completed"
        if self._cut or self._blocks.cut:
            self._done[len(self._blocks.all) - 1] = "incomplete"
        return steps

    def _attach(self, logprobs: list[dict[str, Any]], steps: list[Step]) -> None:
        """Give the logprobs of new tokens to the text that they have become.

        Those of text that is held back wait for it. A token whose text is none (a mark around
        reasoning or calls, or their own) has none to tell.
        """
        self._pending += logprobs
        grown = (step.block for step in steps if isinstance(step, Grown))
        text = next((block for block in grown if block.kind == "text"), None)
        if text is not None:
            text.logprobs += self._pending
        if text is not None or self._blocks.open in ("reasoning", "call"):
            self._pending = []

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
            closed = self._encrypted and block.index in self._done
            sealed = {"encrypted_content": packed(block.text)} if closed else {}
            return item | {"type": "reasoning", "summary": [], "content": content, **sealed}
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
        prompt, output = self._finished.prompt_tokens, self._finished.seq
        prompt = self._started.prompt_tokens if prompt is None else prompt
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
    logprobs = [] if empty else block.logprobs
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


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
