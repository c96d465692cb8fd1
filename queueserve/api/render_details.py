"""Answers with more than text: log-probabilities, token ids, the prompt, the best of several. Pure.

Kept apart from `render`, so that plain answers pay nothing for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from queueserve.api.generation import Batch
from queueserve.api.logprobs import chat_logprobs, joined, prompt_logprobs, text_logprobs
from queueserve.api.render import CHAT, Chunks, Reply, Whole
from queueserve.api.render_parsed import ParsedChunks
from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.api.schemas.completions import CompletionRequest
from queueserve.api.tools import Parsing
from queueserve.protocol import Delta, Event, Job, Prompt, Started


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What an answer tells beside its text."""

    logprobs: bool = False
    token_ids: bool = False
    echo: bool = False  # the prompt in front of the text
    best: int | None = None  # so many of each prompt's sequences are the answer; None: all

    @property
    def any(self) -> bool:
        """Whether a plain answer would not do."""
        return self.logprobs or self.token_ids or self.echo or self.best is not None


_PLAIN = Details()


def chat_details(request: ChatCompletionRequest) -> Details:
    """Return what a chat request asks for."""
    if not (request.logprobs or request.return_token_ids):
        return _PLAIN
    return Details(logprobs=bool(request.logprobs), token_ids=bool(request.return_token_ids))


def completion_details(request: CompletionRequest) -> Details:
    """Return what a request for completions asks for."""
    choices = request.n or 1
    return Details(
        logprobs=request.logprobs is not None,
        token_ids=bool(request.return_token_ids),
        echo=bool(request.echo),
        best=choices if request.draws > choices else None,
    )


@dataclass(slots=True)
class _Choice:
    """One sequence, as far as it has come."""

    job: Job
    prompt: Prompt | None = None
    shown: str = ""  # the prompt's text, with echo
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    total: float = 0.0  # of the tokens' log-probabilities

    def start(self, event: Started, details: Details) -> None:
        self.prompt = event.prompt
        if details.echo:
            self.shown = _text(self.job, event.prompt)

    @property
    def mean(self) -> float:
        return self.total / len(self.tokens) if self.tokens else float("-inf")


def _text(job: Job, prompt: Prompt | None) -> str:
    if isinstance(job.prompt, str):
        return job.prompt
    return b"".join(prompt.pieces if prompt else ()).decode(errors="replace")


class _Detailed:
    """What answers in one piece and streams have in common."""

    def __init__(self, reply: Reply, details: Details, jobs: Sequence[Job]) -> None:
        self.chat = reply.shape is CHAT
        self._details = details
        self.choices = [_Choice(job) for job in jobs]

    def started(self, index: int, event: Started) -> dict[str, Any]:
        """Return what a choice tells of its prompt."""
        choice, details = self.choices[index], self._details
        choice.start(event, details)
        told: dict[str, Any] = {}
        if details.echo:
            told["text"] = choice.shown
            if details.logprobs and choice.prompt:
                told["logprobs"] = prompt_logprobs(choice.prompt, choice.shown)
        if details.token_ids and choice.prompt and not self.chat:
            told["prompt_token_ids"] = choice.prompt.tokens
        return told

    def delta(self, index: int, event: Delta) -> dict[str, Any]:
        """Return what a choice tells of new tokens."""
        choice, details = self.choices[index], self._details
        told: dict[str, Any] = {}
        if details.logprobs and event.logprobs:
            told["logprobs"] = (
                chat_logprobs(event.logprobs)
                if self.chat
                else text_logprobs(event, base=len(choice.shown))
            )
        if details.token_ids:
            told["token_ids"] = event.tokens
        return told

    def of_all(self, choice: _Choice | None) -> dict[str, Any]:
        """Return what stands beside all choices."""
        if choice and choice.prompt and self._details.token_ids and self.chat:
            return {"prompt_token_ids": choice.prompt.tokens}
        return {}


class DetailedWhole:
    """An answer in one piece: `whole`, and more."""

    def __init__(self, reply: Reply, details: Details, jobs: Sequence[Job], whole: Whole) -> None:
        self._reply = reply
        self._details = details
        self._whole = whole
        self._told = _Detailed(reply, details, jobs)

    def add(self, batch: Batch) -> None:
        """Take events in."""
        self._whole.add(batch)
        for index, events in batch:
            for event in events:
                self._add(self._told.choices[index], index, event)

    def _add(self, choice: _Choice, index: int, event: Event) -> None:
        told: dict[str, Any] = {}
        match event:
            case Started():
                told = self._told.started(index, event)
            case Delta():
                told = self._told.delta(index, event)
                choice.tokens += event.tokens
                choice.total += sum(one.logprob for one in event.logprobs or ())
        if logprobs := told.get("logprobs"):
            choice.logprobs.append(logprobs)

    def _choice(self, index: int) -> dict[str, Any]:
        told, details = self._told.choices[index], self._details
        choice = self._whole.choice(index) | {"logprobs": joined(told.logprobs)}
        if details.echo:
            choice["text"] = told.shown + choice["text"]
        if details.token_ids:
            choice["token_ids"] = told.tokens
            if told.prompt and not self._told.chat:
                choice["prompt_token_ids"] = told.prompt.tokens
        return choice

    def body(self) -> bytes:
        """Return the JSON of the answer, once every job has finished."""
        indices = [index for one in self._by_prompt() for index in one]
        choices = [self._choice(index) | {"index": place} for place, index in enumerate(indices)]
        return orjson.dumps(self._whole.answer(choices) | self._told.of_all(self._told.choices[0]))

    def _by_prompt(self) -> list[list[int]]:
        """The sequences that are the answer to each prompt, the best first."""
        jobs, each, best = self._reply.jobs, self._reply.choices, self._details.best
        if best is None:
            return [[*range(jobs)]]
        mean = [choice.mean for choice in self._told.choices]
        prompts = [range(first, first + each) for first in range(0, jobs, each)]
        return [sorted(prompt, key=lambda index: -mean[index])[:best] for prompt in prompts]


class DetailedChunks(Chunks):
    """The events of a stream."""

    def __init__(self, reply: Reply, details: Details, jobs: Sequence[Job]) -> None:
        super().__init__(reply)
        self._told = _Detailed(reply, details, jobs)
        self._part = reply.shape.part_content

    def render(self, batch: Batch) -> bytes:
        """Return the frames for new events, one for each that has tokens or text."""
        return b"".join(
            frame
            for index, events in batch
            for event in events
            for frame in self._frames(index, event)
        )

    def _frames(self, index: int, event: Event) -> list[bytes]:
        match event:
            case Delta():
                told = self._told.delta(index, event)
                if not (event.text or told):
                    return []
                return [self._chunk(index, {**self._part(event.text), **told})]
            case Started():
                return self._beginning(index, event)
            case _:
                return self._other(index, event)

    def _beginning(self, index: int, event: Started) -> list[bytes]:
        opening = self._other(index, event)
        told = self._told.started(index, event)
        beside = self._told.of_all(self._told.choices[index])
        if not (told or beside):
            return opening
        content = {**(self._reply.shape.opening or self._part("")), **told}
        return [self._chunk(index, content, beside=beside)]


class DetailedParsedChunks(ParsedChunks):
    """The events of a stream whose text is taken apart: details come in chunks of their own."""

    def __init__(
        self, reply: Reply, details: Details, jobs: Sequence[Job], parsing: Parsing
    ) -> None:
        super().__init__(reply, parsing)
        self._told = _Detailed(reply, details, jobs)

    def render(self, batch: Batch) -> bytes:
        """Return the frames for new events."""
        return b"".join(
            super(DetailedParsedChunks, self).render([(index, [event])])
            + self._detail(index, event)
            for index, events in batch
            for event in events
        )

    def _detail(self, index: int, event: Event) -> bytes:
        told: dict[str, Any] = {}
        beside: dict[str, Any] = {}
        match event:
            case Started():
                told = self._told.started(index, event)
                beside = self._told.of_all(self._told.choices[index])
            case Delta():
                told = self._told.delta(index, event)
        return self._chunk(index, {"delta": {}, **told}, beside=beside) if told or beside else b""
