"""A client that does not read, or does not send, is cut off at a bound; a slow one is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from types import SimpleNamespace

import pytest
import uvicorn

from queueserve.api.connections import MAX_HEAD, SLOWEST, bounded

BOUND = 60.0  # seconds that any single wait may take, on however busy a machine
SHORT, LONG = 0.3, 50.0  # seconds that a client has
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


# Reading requests


class Echo:
    """Answers with the length of the body, and tells when a client has left before its end."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        length, more = 0, scope["path"] != "/unread"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            length, more = length + len(message["body"]), message["more_body"]
        answer = str(length).encode()
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@pytest.fixture
async def echo(read_timeout):
    """The application, and a function that connects to it."""
    app = Echo()
    protocol = bounded(LONG, read_timeout)
    listening = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None)
    server = Server(settings)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    writers = []

    async def connect():
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writers.append(writer)
        return reader, writer

    yield SimpleNamespace(app=app, connect=connect, settings=settings)
    for writer in writers:
        writer.close()
    server.should_exit = True
    async with asyncio.timeout(BOUND):
        await serving


async def all_of(reader) -> bytes:
    async with asyncio.timeout(BOUND):
        return await reader.read()


def error_of(answer: bytes, status: bytes, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert b"\r\nx-request-id: req_" in head
    assert b"\r\nconnection: close" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


POST = b"POST / HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("read_timeout", [SHORT])
@pytest.mark.parametrize(
    "part",
    [
        b"P",
        b"\r\n",
        POST,
        POST + b"x-long: ",
        POST + b"content-length: 9\r\n\r\n",
        POST + b"content-length: 9\r\n\r\n12345",
        CHUNKED,
        CHUNKED + b"5\r\n123",
        CHUNKED + b"3\r\n123\r\n0\r\nx-trailer: ",
    ],
)
async def test_a_request_that_does_not_come_whole_is_a_408(echo, part):
    reader, writer = await echo.connect()
    writer.write(part)
    error_of(await all_of(reader), b"408 Request Timeout", "read_timeout")


@pytest.mark.parametrize("read_timeout", [SHORT])
async def test_drops_of_a_body_do_not_keep_a_connection(echo):
    reader, writer = await echo.connect()
    writer.write(POST + b"content-length: 9000\r\n\r\n")

    async def drip() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(SHORT / 10)

    dripping = asyncio.create_task(drip())
    answer = await all_of(reader)
    dripping.cancel()
    error_of(answer, b"408", "read_timeout")
    async with asyncio.timeout(BOUND):
        await echo.app.gone.wait()  # the application learns that there is no client any more


@pytest.mark.parametrize("read_timeout", [SHORT])
async def test_who_sends_slowly_and_steadily_has_the_time(echo):
    reader, writer = await echo.connect()
    # Each piece is worth half a minute, for which no busy machine stops a test.
    pieces, piece = 10, b"x" * (30 * SLOWEST)
    writer.write(POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % (pieces * len(piece)))
    for _ in range(pieces):  # in four times as long as a request has that stands still
        writer.write(piece)
        await asyncio.sleep(SHORT * 4 / pieces)
    assert (await all_of(reader)).endswith(b"\r\n\r\n%d" % (pieces * len(piece)))


@pytest.mark.parametrize("read_timeout", [SHORT])
async def test_a_second_request_has_a_time_of_its_own(echo):
    echo.settings.timeout_keep_alive = LONG
    reader, writer = await echo.connect()
    async with asyncio.timeout(BOUND):
        for _ in range(3):
            writer.write(POST + b"content-length: 1\r\n\r\nx")
            assert await reader.readuntil(b"\r\n\r\n1")
            await asyncio.sleep(SHORT * 0.75)  # idle, which is allowed for longer than that
    writer.write(POST)
    error_of(await all_of(reader), b"408", "read_timeout")


@pytest.mark.parametrize("read_timeout", [SHORT])
@pytest.mark.parametrize("rest", [b"", b"\r\n"])
async def test_an_answered_request_whose_body_does_not_come_gets_no_second_answer(echo, rest):
    reader, writer = await echo.connect()
    writer.write(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n1" + rest)
    answer = await all_of(reader)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("read_timeout", [LONG])
async def test_a_connection_without_a_request_is_idle_like_one_between_two(echo):
    echo.settings.timeout_keep_alive = SHORT
    reader, _writer = await echo.connect()
    assert await all_of(reader) == b""


@pytest.mark.parametrize("read_timeout", [LONG])
@pytest.mark.parametrize(
    "part",
    [
        POST + b"x-a: " + b"a" * MAX_HEAD,
        b"GET /" + b"a" * MAX_HEAD,
        POST + b"x: y\r\n" * (MAX_HEAD // 6),
        CHUNKED + b"3\r\n123\r\n0\r\nx-trailer: " + b"a" * 2 * MAX_HEAD,
    ],
)
async def test_a_head_without_an_end_is_a_431(echo, part):
    reader, writer = await echo.connect()
    writer.write(part)
    error_of(await all_of(reader), b"431", "head_too_large")


@pytest.mark.parametrize("read_timeout", [LONG])
async def test_a_body_in_the_shortest_chunks_is_no_head(echo):
    reader, writer = await echo.connect()
    size = MAX_HEAD // 2
    closing = CHUNKED.replace(b"host", b"connection: close\r\nhost")
    writer.write(closing + b"1\r\nx\r\n" * size + b"0\r\n\r\n")
    assert (await all_of(reader)).endswith(b"\r\n\r\n%d" % size)


@pytest.mark.parametrize("read_timeout", [LONG])
async def test_what_is_no_http_is_a_400(echo):
    reader, writer = await echo.connect()
    writer.write(b"\x16\x03\x01 hello\r\n\r\n")
    error_of(await all_of(reader), b"400", "invalid_http")


WHOLE = POST + b"content-length: 5\r\n\r\nhello"


@pytest.mark.parametrize("read_timeout", [LONG])
async def test_a_body_longer_than_its_length_is_a_400_that_says_so(echo):
    reader, writer = await echo.connect()
    writer.write(WHOLE + b'"}')  # who counts characters, and not bytes
    answer = await all_of(reader)
    error_of(answer, b"400", "invalid_http")
    assert b"is its body longer than its Content-Length?" in answer
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("read_timeout", [LONG])
async def test_of_several_requests_none_is_answered_with_what_is_wrong_with_a_later_one(echo):
    reader, writer = await echo.connect()
    writer.write(WHOLE + WHOLE + b'"}')
    assert await all_of(reader) == b""


OFFER = (
    b"POST / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
    b"http2-settings: AAEAAEAAAAIAAAAB\r\n"
)


@pytest.mark.parametrize("read_timeout", [LONG])
@pytest.mark.parametrize(
    "framed",
    [
        b"content-length: 5\r\n\r\nhello",
        b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 1000])
async def test_an_offer_of_another_protocol_is_ignored_and_the_body_read(echo, framed, piece):
    reader, writer = await echo.connect()
    async with asyncio.timeout(BOUND):
        for request in (OFFER + framed, POST + framed, OFFER + framed):
            for at in range(0, len(request), piece):
                writer.write(request[at : at + piece])
                await asyncio.sleep(0)
            answer = await reader.readuntil(b"\r\n\r\n5")
            assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("read_timeout", [SHORT])
async def test_a_request_with_an_offer_is_bounded_like_any_other(echo):
    reader, writer = await echo.connect()
    writer.write(OFFER + b"content-length: 5\r\n\r\nh")
    error_of(await all_of(reader), b"408", "read_timeout")


@pytest.mark.parametrize("read_timeout", [LONG])
async def test_this_is_no_proxy(echo):
    reader, writer = await echo.connect()
    writer.write(b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n")
    error_of(await all_of(reader), b"400", "invalid_http")
