"""Run a coroutine from a callback up to the point where it has to wait, if it has to at all.

An ASGI `send` waits only while its client is behind. To give each of a thousand streams a task that
wakes up for every token, only to call it, costs more than the call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, cast


def begin(work: Awaitable[None]) -> Any:
    """Run `work`, a coroutine; None if it has ended. Raises what it raises.

    Else the result is what it waits for, and `finish` must run the rest in a task.
    """
    try:
        return cast("Coroutine[Any, None, None]", work).send(None)
    except StopIteration:
        return None


async def finish(work: Awaitable[None], waiting: Any) -> None:
    """Await the rest of what `begin` has begun."""
    coroutine = cast("Coroutine[Any, None, None]", work)
    try:
        await _Rest(coroutine, waiting)
    finally:
        coroutine.close()


@dataclass(frozen=True, slots=True)
class _Rest:
    """What a coroutine that waits already still does; one that has begun cannot be awaited."""

    coroutine: Coroutine[Any, None, None]
    waiting: Any

    def __await__(self) -> Generator[Any, Any, None]:
        yield self.waiting
        yield from self.coroutine.__await__()
