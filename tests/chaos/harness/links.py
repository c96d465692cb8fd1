"""A TCP proxy between two processes, with what can go wrong between them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

from harness.periods import Periods

_CHUNK = 65_536


class Link:
    """One listening port that leads to another one; faults hold until they are taken back."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.port = 0
        self.target = 0
        self.disturbed = Periods()  # when it cut or held what passes
        self.slowed = Periods()
        self._random = random.Random(f"{seed}:{name}")
        self._delay = 0.0
        self._open = asyncio.Event()
        self._open.set()
        self._swallows = False
        self._drops_answers = False
        self._hurt = 0  # connections that were reset, and pieces that did not pass as they came
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        return len(self._writers) // 2

    # Faults

    # Each says whether it has hurt anything: a link that is idle cannot be.

    def cut(self) -> bool:
        """Reset every connection."""
        self.disturbed.add(0)
        writers = list(self._writers)
        for writer in writers:
            writer.transport.abort()
        return bool(writers)

    async def delay(self, most: float, seconds: float) -> bool:
        """Let every piece take up to `most` seconds, each direction in order."""
        self.slowed.add(seconds)
        before, self._delay = self._hurt, most
        await asyncio.sleep(seconds)
        self._delay = 0.0
        return self._hurt > before

    async def hold(self, seconds: float) -> bool:
        """Let nothing through, then everything: a zombie's words arrive late."""
        self.disturbed.add(seconds)
        before = self._hurt
        self._open.clear()
        await asyncio.sleep(seconds)
        self._open.set()
        return self._hurt > before

    async def swallow(self, seconds: float) -> bool:
        """Half-open: both sides believe that they are connected, and nothing arrives."""
        self.disturbed.add(seconds)
        before, self._swallows = self._hurt, True
        await asyncio.sleep(seconds)
        self._swallows = False
        self.cut()
        return self._hurt > before

    async def drop_answers(self, seconds: float) -> bool:
        """Let requests through, and reset each connection instead of answering."""
        self.disturbed.add(seconds)
        before, self._drops_answers = self._hurt, True
        await asyncio.sleep(seconds)
        self._drops_answers = False
        return self._hurt > before

    # Plumbing

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Ours from the first moment on: the link may be closed before the other side has answered.
        self._writers.add(writer)
        dialled = asyncio.create_task(
            asyncio.open_connection("127.0.0.1", self.target, limit=_CHUNK)
        )
        self._tasks.add(dialled)
        try:
            far = await dialled
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            self._writers.discard(writer)
            return
        finally:
            self._tasks.discard(dialled)
        pair = {writer, far[1]}
        self._writers |= pair
        pumps = (
            self._pump(reader, far[1], answers=False),
            self._pump(far[0], writer, answers=True),
        )
        tasks = [asyncio.create_task(pump) for pump in pumps]
        self._tasks |= set(tasks)
        try:
            await asyncio.wait(tasks)
        finally:
            self._writers -= pair
            self._tasks -= set(tasks)
            for each in pair:
                each.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._delay:
                    self._hurt += 1
                    await asyncio.sleep(self._random.uniform(0, self._delay))
                if not self._open.is_set():
                    self._hurt += 1
                    await self._open.wait()
                if self._swallows:
                    self._hurt += 1
                    continue
                if answers and self._drops_answers:
                    self._hurt += 1
                    break
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            if answers:  # a server that has ended, or was reset: nothing more to say to it
                writer.close()
            else:
                writer.write_eof()
