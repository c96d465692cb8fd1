"""One keep-alive HTTP/1.1 connection of a client: httptools parses, nothing is buffered twice."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import cast
from urllib.parse import urlsplit

import httptools

from queueserve.bench.answer import Answer

_CONNECT_WITHIN = 10.0  # seconds


class Endpoint:
    """Where requests go, and the bytes before a request's body.

    `url` is the server's, with or without /v1; `path` is below /v1. Raises ValueError for a URL
    that is none.
    """

    def __init__(self, url: str, path: str, *, api_key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url!r} is no http URL")
        self.host = parts.hostname
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        base = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        authority = parts.netloc.rpartition("@")[2]
        bearer = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        rest = f"Host: {authority}\r\n{bearer}Accept: */*\r\n"
        self._post = (
            f"POST {base}/{path} HTTP/1.1\r\n{rest}Content-Type: application/json\r\n"
            "Content-Length: "
        ).encode()
        self.models = f"GET {base}/models HTTP/1.1\r\n{rest}\r\n".encode()

    def request(self, body: bytes) -> bytes:
        """Return the whole request for a body."""
        return b"%b%d\r\n\r\n%b" % (self._post, len(body), body)


class Connection(asyncio.Protocol):
    """Sends one request at a time. Use `connect` to make one."""

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.WriteTransport | None = None
        self._answer: Answer | None = None
        self._done: asyncio.Future[None] | None = None
        self._stream = False
        self._body = bytearray()
        self._now = 0.0

    @classmethod
    async def connect(cls, endpoint: Endpoint) -> Connection:
        """Open a connection. Raises OSError."""
        async with asyncio.timeout(_CONNECT_WITHIN):
            _, protocol = await asyncio.get_running_loop().create_connection(
                cls, endpoint.host, endpoint.port, ssl=endpoint.tls
            )
        return protocol

    async def ask(self, request: bytes, answer: Answer, *, timeout: float) -> bytes:
        """Send a request and wait until its answer is complete; what fails is in `answer.error`.

        Returns the body of an answer that was no stream.
        """
        assert self._transport is not None  # noqa: S101 - set by connection_made
        self._parser = httptools.HttpResponseParser(self)
        self._answer = answer
        self._stream = False
        self._body.clear()
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            async with asyncio.timeout(timeout):
                await self._done
        except TimeoutError:
            answer.error = f"no complete answer within {timeout:g} s"
            self.close()
        answer.end(self._now)
        return bytes(self._body)

    def close(self) -> None:
        """Close at once. Idempotent."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is not derived
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail a request that is under way."""
        self.open = False
        self._fail(f"connection lost: {exc or 'closed by the server'}")

    def _fail(self, why: str) -> None:
        if self._done is not None and not self._done.done() and self._answer is not None:
            self._now = time.perf_counter()
            self._answer.error = self._answer.error or why
            self._done.set_result(None)
            self.close()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        """Look for a stream."""
        if name.lower() == b"content-type":
            self._stream = value.startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        """Note the status."""
        if self._answer is not None:
            self._answer.status = self._parser.get_status_code()

    def on_chunk_header(self) -> None:
        """Count what the server wrote at once."""
        if self._answer is not None:
            self._answer.writes += 1

    def on_body(self, data: bytes) -> None:
        """Pass a part of the body on."""
        if self._stream and self._answer is not None:
            self._answer.body(data, self._now)
        else:
            self._body += data

    def on_message_complete(self) -> None:
        """End the request."""
        self.open = self.open and self._parser.should_keep_alive()
        if self._answer is not None and not self._stream:
            self._answer.whole(bytes(self._body), self._now)
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
