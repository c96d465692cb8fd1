"""Requests that are answered with data: their jobs, a few at a time, and their answers in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Protocol

from msgspec.structs import replace
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from queueserve.api.disconnect import Client
from queueserve.errors import ProtocolError, QueueServeError
from queueserve.protocol import Answered, Inputs, Job
from queueserve.queue.owner import Owner

AT_ONCE = 16
"""Jobs of one request in the queue or running: enough for several workers, and no flood."""
_ITEMS = 64  # in one job: its answer is one message, some 100 kB to 1 MB
_TOKENS = 16_384  # in one job, about: it is what is lost when a worker is
_CHARS_PER_TOKEN = 4


class Answers(Protocol):
    """Renders the answers of a request's jobs."""

    def add(self, index: int, answered: Answered) -> None:
        """Take in the answer of job `index`; they come in any order."""


class Body(Answers, Protocol):
    """Renders the answer of a request."""

    def body(self) -> bytes:
        """Return the JSON of the whole, once all are there."""


class DataAnswer(Response):
    """Runs the jobs, then answers. Any failure is an HTTP error, and ends them all."""

    def __init__(self, owner: Owner, jobs: Sequence[Job], answers: Body) -> None:
        super().__init__()
        self._owner = owner
        self._jobs = jobs
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first: that cancels the jobs."""
        await Client(scope, receive).serve(self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await run_all(self._owner, self._jobs, self._answers)
        body = self._answers.body()
        await Response(body, media_type="application/json")(scope, receive, send)


async def run_all(owner: Owner, jobs: Sequence[Job], answers: Answers) -> None:
    """Run the jobs, at most AT_ONCE at a time. Raises the error of the first one that fails."""
    places = asyncio.Semaphore(AT_ONCE)

    async def run(index: int, job: Job) -> None:
        async with places:
            answers.add(index, await _run(owner, job))

    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for index, job in enumerate(jobs):
                group.create_task(run(index, job))
    except* QueueServeError as errors:
        failure = errors.exceptions[0]
    if failure is not None:  # not inside the block: it would become part of a group
        raise failure


async def _run(owner: Owner, job: Job) -> Answered:
    stream = await owner.open(job)
    try:
        async for events in stream:
            for event in events:
                if isinstance(event, Answered):
                    return event
    finally:
        await stream.aclose()
    raise ProtocolError("A job that answers with data has ended without.")


def batched(job: Job, inputs: Inputs) -> list[Job]:
    """Cut a job's items into jobs of a bounded size, each with its id and cost."""
    jobs: list[Job] = []
    for start, end, cost in _cuts([_tokens(item) for item in inputs.items]):
        queries = inputs.queries if len(inputs.queries) == 1 else inputs.queries[start:end]
        part = replace(inputs, items=inputs.items[start:end], queries=queries, first=start)
        jobs.append(replace(job, id=f"{job.id}-{len(jobs)}", inputs=part, cost=cost))
    return jobs


def _cuts(sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Give (start, end, sum of sizes) of consecutive parts."""
    start = total = 0
    for at, size in enumerate(sizes):
        if at > start and (at - start == _ITEMS or total + size > _TOKENS):
            yield start, at, total
            start, total = at, 0
        total += size
    yield start, len(sizes), total


def _tokens(item: str | tuple[int, ...]) -> int:
    """Estimate how many tokens an item is; at least one."""
    return max(1, len(item) // _CHARS_PER_TOKEN if isinstance(item, str) else len(item))
