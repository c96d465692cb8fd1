"""Load the Lua function library and call it.

The names of library and functions carry a hash of the source, so that processes of two versions
work side by side on one Redis during an upgrade.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from queueserve.errors import RedisUnavailableError
from queueserve.queue.connection import translated
from queueserve.queue.exchange import Line

_FILES = (
    *("keys", "fair", "dispatch", "alone", "dead", "jobs"),
    *("submit", "finish", "workers", "reap", "responses", "library"),
)
"""In this order: a local function must stand before its first use."""


class Functions:
    """The function library on one Redis.

    `extra` is appended to the source; tests use it to set the library's clock.
    """

    def __init__(self, redis: Redis, *, extra: str = "") -> None:
        self.redis = redis
        self.line = Line(redis)
        lua = files("queueserve.queue") / "lua"
        source = "\n".join((lua / f"{name}.lua").read_text() for name in _FILES) + extra
        self._version = hashlib.sha256(source.encode()).hexdigest()[:8]
        header = f"#!lua name=queueserve_{self._version}\n"
        self._source = header + source.replace("_@'", f"_{self._version}'")

    def name(self, function: str) -> str:
        """The full name of a function: `submit` → `qs_submit_<version>`."""
        return f"qs_{function}_{self._version}"

    async def call(self, function: str, root: str, *args: str | bytes | float) -> Any:
        """Call `function` on the pool at `root`. Raises RedisUnavailableError.

        A library that is not there (a new or flushed Redis) is loaded; the call did not run, so it
        is safe to send it again.
        """
        command = ("FCALL", self.name(function), 1, root, *args)
        with translated():
            try:
                return await self.line.call(*command)
            except ResponseError as error:
                if "Function not found" not in str(error):
                    raise
            await self.load()
            return await self.line.call(*command)

    async def load(self) -> None:
        """Load the library. Raises RedisUnavailableError, also for a server without functions."""
        with translated():
            try:
                await self.redis.function_load(self._source, replace=True)  # type: ignore[misc]
            except ResponseError as error:
                if isinstance(error, NoPermissionError):
                    raise RedisUnavailableError(
                        "The functions are not there, and this user may not load them: "
                        "start an API server of this version."
                    ) from error
                if "unknown command" in str(error).lower():
                    raise RedisUnavailableError(
                        "This Redis is too old: QueueServe needs Redis 7 or Valkey 7.2."
                    ) from error
                raise
