"""A client that does not read is cut off, at a bound; one that reads slowly gets everything."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
import uvicorn

from queueserve.api.connections import bounded

BOUND = 20.0
SHORT, LONG = 0.3, 10.0  # seconds that a client has
PIECE = b"x" * 16_384
PIECES = 64


class App:
    """Answers with more than any buffer holds, and tells how that ended."""

    def __init__(self) -> None:
        self.sent = 0
        self.gone = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        watching = asyncio.create_task(self._watch(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while self.sent < PIECES and not self.gone.is_set():
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            self.sent += 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        await watching

    async def _watch(self, receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


@pytest.fixture
async def served(write_timeout):
    """The application and a connection to it, whose request has been sent."""
    app = App()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    protocol = bounded(write_timeout)
    server = Server(uvicorn.Config(app, http=protocol, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    await asyncio.to_thread(client.connect, listening.getsockname())
    client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    yield app, client
    client.close()
    server.should_exit = True
    async with asyncio.timeout(BOUND):
        await serving


@pytest.mark.parametrize("write_timeout", [SHORT])
async def test_who_never_reads_is_cut_off_and_counts_as_gone(served):
    app, _client = served
    async with asyncio.timeout(BOUND):
        await app.gone.wait()
    assert app.sent < PIECES


@pytest.mark.parametrize("write_timeout", [LONG])
async def test_who_reads_slowly_gets_everything(served):
    app, client = served
    got = 0
    async with asyncio.timeout(BOUND):
        while data := await asyncio.to_thread(client.recv, len(PIECE)):
            got += len(data)
            await asyncio.sleep(0.01)
        assert app.sent == PIECES
    assert got > PIECES * len(PIECE)
