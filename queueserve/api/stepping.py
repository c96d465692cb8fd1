"""Run a coroutine from a callback up to the point where it has to wait, if it has to at all.

An ASGI `send` waits only while its client is behind. To give each of a thousand streams a task that
wakes up for every token, only to call it, costs more than the call.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, cast


def begin(work: Awaitable[None]) -> Any:
    """Run `work`, a coroutine; None if it has ended. Raises what it raises.

    Else the result is what it waits for, and `finish` must run the rest in a task.
    """
    try:
        return cast("Coroutine[Any, None, None]", work).send(None)
    except StopIteration:
        return None


@types.coroutine
def finish(work: Awaitable[None], waiting: Any) -> Generator[Any, Any, None]:
    """Await the rest of what `begin` has begun."""
    coroutine = cast("Coroutine[Any, None, None]", work)
    try:
        yield waiting
        yield from coroutine.__await__()
    finally:
        coroutine.close()
