"""Chunks that go past ASGI's layers: the same bytes, the head with the first of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial

import pytest
import uvicorn
from starlette.responses import Response

from queueserve.api.chunked import ChunkedBody, ChunkingProtocol, chunked_body
from queueserve.api.sse import EventStream

BOUND = 20.0


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


@pytest.fixture
async def answer_of():
    """Serve an application once; gives what a client reads until the connection closes."""
    stack = contextlib.AsyncExitStack()

    async def start(app, version: str = "1.1") -> bytes:
        async def served(scope, receive, send):
            await receive()
            await app(scope, send)

        listening = socket.create_server(("127.0.0.1", 0))
        protocol = {"http": ChunkingProtocol, "date_header": False}
        server = Server(uvicorn.Config(served, lifespan="off", log_config=None, **protocol))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        async with asyncio.timeout(BOUND):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(f"GET / HTTP/{version}\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            server.should_exit = True
            await serving
        return answer

    async with stack:
        yield start


async def stream(scope, send, *, direct: bool, pieces) -> None:
    body = chunked_body(scope) if direct else None
    assert direct == (body is not None)
    async with EventStream(send, interval=60, body=body) as out:
        for piece in pieces:
            await out.write(piece)
    await out.end(b"end")


@pytest.mark.parametrize("pieces", [[], [b""], [b"a"], [b"", b"a", b"bc"], [b"x" * 300_000] * 3])
async def test_the_bytes_on_the_wire_are_the_same(answer_of, pieces):
    short = await answer_of(lambda scope, send: stream(scope, send, direct=True, pieces=pieces))
    long = await answer_of(lambda scope, send: stream(scope, send, direct=False, pieces=pieces))
    assert short == long
    assert short.startswith(b"HTTP/1.1 200 OK\r\n")
    assert short.endswith(b"3\r\nend\r\n0\r\n\r\n")


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("pieces", [[], [b""], [b"a"], [b"", b"a", b"bc"], [b"x" * 300_000] * 3])
async def test_a_client_of_http_1_0_gets_no_chunks(answer_of, pieces, direct):
    app = partial(stream, direct=direct, pieces=pieces)
    head, _, body = (await answer_of(app, "1.0")).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body == b"".join(pieces) + b"end"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_with_a_length_keeps_it(answer_of, version):
    async def whole(scope, send) -> None:
        await Response(b"whole")(scope, None, send)

    answer = await answer_of(whole, version)
    assert b"content-length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\nwhole")


async def test_an_application_that_fails_after_the_head_closes_the_connection(answer_of):
    async def fails(scope, send) -> None:
        async with EventStream(send, interval=60, body=chunked_body(scope)):
            raise ValueError("a defect")

    assert (await answer_of(fails)).startswith(b"HTTP/1.1 200 OK\r\n")


class Flow:
    write_paused = False


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


class Cycle:
    def __init__(self) -> None:
        self.transport = self.below = Transport()
        self.flow = Flow()
        self.disconnected = False
        self.chunked_encoding = True


def test_the_head_leaves_with_the_first_chunk():
    cycle = Cycle()
    body = ChunkedBody(cycle)
    cycle.transport.write(b"head;")
    assert cycle.below.written == []
    assert body.push(b"a")
    assert body.push(b"b")
    assert cycle.below.written == [b"head;1\r\na\r\n", b"1\r\nb\r\n"]
    assert cycle.transport is cycle.below


def test_a_client_that_is_behind_must_be_waited_for():
    cycle = Cycle()
    body = ChunkedBody(cycle)
    cycle.transport.write(b"head;")
    cycle.flow.write_paused = True
    assert not body.push(b"a")
    assert cycle.below.written == []


def test_nothing_is_written_to_a_client_that_has_gone():
    cycle = Cycle()
    body = ChunkedBody(cycle)
    cycle.transport.write(b"head;")
    cycle.disconnected = True
    assert body.push(b"a")
    assert cycle.below.written == []
