"""The openai wire format over a raw connection: one request, its head, its body piece by piece."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """A status, headers, and a body that is still to be read."""

    status: int
    headers: Mapping[str, str]
    _reader: asyncio.StreamReader
    complete: bool = False  # the body came to its end, and was not cut off

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Ends early, with `complete` False, if the connection does."""
        if self.headers.get("transfer-encoding") != "chunked":
            yield await self._reader.readexactly(int(self.headers.get("content-length", 0)))
            self.complete = True
            return
        while size := int(await self._reader.readline() or b"-1", 16):
            if size < 0:
                raise asyncio.IncompleteReadError(b"", None)
            piece = await self._reader.readexactly(size + 2)
            yield piece[:-2]
        await self._reader.readline()
        self.complete = True

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])


@asynccontextmanager
async def asked(
    port: int,
    path: str,
    payload: Mapping[str, Any],
    headers: Mapping[str, str] = {},
    *,
    window: int = 0,
) -> AsyncIterator[Answer]:
    """Send one request on a connection of its own. Raises OSError, EOFError if it breaks.

    `window`: how many bytes, about, are taken in before they are read; 0: what is usual.
    """
    reader, writer = await _connected(port, window)
    try:
        writer.write(request_bytes(path, json.dumps(payload).encode(), headers))
        await writer.drain()
        status = int((await _line(reader)).split()[1])
        found = {}
        while line := (await _line(reader)).strip():
            name, _, value = line.partition(":")
            found[name.lower()] = value.strip()
        yield Answer(status, found, reader)
    finally:
        writer.transport.abort() if writer.transport.is_closing() else writer.close()


async def _connected(port: int, window: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not window:
        return await asyncio.open_connection("127.0.0.1", port)
    connection = connected_socket(port, window)
    connection.setblocking(False)
    return await asyncio.open_connection(sock=connection, limit=window)


def connected_socket(port: int, window: int) -> socket.socket:
    """A connection whose far side soon notices that nobody reads."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.connect(("127.0.0.1", port))
    return connection


def request_bytes(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        "connection: close",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _line(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise asyncio.IncompleteReadError(line, None)
    return line.decode()


@dataclass
class Events:
    """Cuts a stream of server-sent events into its data; comments are left out."""

    _rest: bytes = field(default=b"")

    def feed(self, piece: bytes) -> list[bytes]:
        *frames, self._rest = (self._rest + piece).split(b"\n\n")
        return [frame.removeprefix(b"data: ") for frame in frames if frame.startswith(b"data: ")]
