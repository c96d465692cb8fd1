"""One pool on a real server, as the state machine asks it and looks at it."""

from __future__ import annotations

import json
from typing import Any

from redis import Redis

from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys

Snapshot = dict[str, tuple[bytes, int]]


class Remote:
    """Calls the functions at times of its caller's choice, and reads what they left."""

    def __init__(self, client: Redis, functions: Functions) -> None:
        self.client = client
        self.keys = Keys().pool("m")
        self._functions = functions
        self._pubsub = client.pubsub()
        self._pubsub.psubscribe("qs:reply:*", self.keys.control("*"))
        self._pubsub.parse_response()
        self._pubsub.parse_response()

    def close(self) -> None:
        self._pubsub.close()

    def empty(self) -> None:
        self.client.flushdb()
        self.heard()

    def ask(self, now: int, function: str, *args: Any) -> Any:
        """Call a function at `now`; bytes come back as text."""
        with self.client.pipeline(transaction=False) as pipe:
            for name, values in (("freeze", [now]), (function, args)):
                pipe.execute_command(
                    "FCALL", self._functions.name(name), 1, self.keys.root, *values
                )
            return _text(pipe.execute()[1])

    def heard(self) -> list[tuple[Any, ...]]:
        """What was published since the last call, in the model's words."""
        self._pubsub.ping()
        messages: list[tuple[Any, ...]] = []
        while True:
            kind, *rest = self._pubsub.parse_response()
            if kind == b"pong":
                return messages
            channel, body = _text(rest[1]), _text(rest[2])
            if channel.startswith("qs:reply:"):
                messages += [(channel[3:], *event[:4]) for event in json.loads(body)]
            else:
                word, epoch, job = body.split(" ")
                channel = channel.removeprefix(f"{self.keys.root}:")
                messages.append((channel, word, int(epoch), job))

    def dump(self) -> Snapshot:
        """All that is there."""
        names = self.client.keys()
        with self.client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.dump(name)
                pipe.pttl(name)
            found = pipe.execute()
        return dict(zip(names, zip(found[::2], found[1::2], strict=True), strict=True))

    def restore(self, snapshot: Snapshot) -> None:
        """Make it all as it was."""
        with self.client.pipeline(transaction=False) as pipe:
            pipe.flushdb()
            for name, (value, ttl) in snapshot.items():
                pipe.restore(name, max(0, ttl), value)
            pipe.execute()

    def read(self, *commands: tuple[Any, ...]) -> list[Any]:
        """The answers to many commands in one round trip."""
        with self.client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return pipe.execute()

    def lasting(self) -> set[str]:
        """The keys without a TTL."""
        names = self.client.keys()
        ttls = self.read(*(("TTL", name) for name in names))
        return {_text(name) for name, ttl in zip(names, ttls, strict=True) if ttl == -1}


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value
