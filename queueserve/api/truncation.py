"""What of a conversation that is too long is left: its instructions, and its newest turns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from queueserve.api.schemas.chat import ChatCompletionRequest, Message

Count: TypeAlias = Callable[[ChatCompletionRequest], Awaitable[int]]
"""Counts the tokens of a request's prompt."""

_ANSWER = 8  # where a request sets no bound, its answer gets this fraction of the context


async def truncated(
    request: ChatCompletionRequest, count: Count, *, context_length: int
) -> ChatCompletionRequest:
    """Return the request without its oldest turns, as few as must go; as it is, if it fits.

    A turn begins with a message of the user, so that calls and their results go together. What
    comes first from the system or a developer stays, and so does the last turn: if these are too
    long, nothing helps, and the job will say so. Counts O(log turns) times.
    """
    asked = request.max_completion_tokens
    if await count(request) + (asked or 1) <= context_length:
        return request
    room = context_length - (asked or context_length // _ANSWER)
    messages = request.messages
    first = next((i for i, one in enumerate(messages) if not _instructs(one)), len(messages))
    turns = [i for i in range(first + 1, len(messages)) if messages[i].role == "user"]
    low, high = 0, len(turns) - 1  # the turn that is the first to stay
    while low < high:
        middle = (low + high) // 2
        if await count(_without(request, first, turns[middle])) <= room:
            high = middle
        else:
            low = middle + 1
    return _without(request, first, turns[low]) if turns else request


def _instructs(message: Message) -> bool:
    return message.role in ("system", "developer")


def _without(request: ChatCompletionRequest, start: int, end: int) -> ChatCompletionRequest:
    messages = [*request.messages[:start], *request.messages[end:]]
    return request.model_copy(update={"messages": messages})
