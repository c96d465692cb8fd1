"""The load generator against a server whose every byte and pause is known."""

import asyncio
import contextlib

import orjson
import pytest

from queueserve.bench.answer import Answer
from queueserve.bench.generator import Generator, LoadError, Plan
from queueserve.bench.report import summary


def event(text=None, **more):
    choices = [] if text is None else [{"delta": {"content": text}}]
    return b"data: " + orjson.dumps({"choices": choices, **more}) + b"\n\n"


STREAM = [
    event("", id="x"),
    event("one"),
    event(" two\n\ndata: {"),
    event(" three"),
    event("", finish="length"),
    event(None, usage={"completion_tokens": 7}),
    b"data: [DONE]\n\n",
]


def read(*pieces: bytes) -> Answer:
    answer = Answer(10.0)
    answer.status = 200
    for number, piece in enumerate(pieces):
        answer.body(piece, 11.0 + number)
    answer.end(20.0)
    return answer


def cuts():
    whole = b"".join(STREAM)
    return [(whole[:at], whole[at:]) for at in range(0, len(whole), 7)]


@pytest.mark.parametrize("pieces", [STREAM, *cuts()])
def test_events_with_text_are_counted_however_the_stream_is_cut(pieces):
    answer = read(*pieces)
    assert (answer.chunks, answer.tokens, answer.error) == (3, 7, "")
    assert answer.together + len(answer.gaps) >= 2


def test_times_are_those_of_reads_with_text():
    answer = read(*STREAM)
    assert answer.first == 12.0
    assert answer.gaps[:2] == [1.0, 1.0]


def test_line_ends_may_be_crlf():
    assert read(*(piece.replace(b"\n", b"\r\n") for piece in (event("a"), event("b")))).chunks == 2


def test_an_error_in_a_stream_is_a_failure():
    failed = read(event("a"), b'data: {"error":{"message":"no"}}\n\n')
    assert failed.error == "no"
    assert read(b"data: [DONE]\n\n").error == "no text came"


class Server:
    """Answers with STREAM, or as `answers` says; notes what it was asked."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.bodies: list[dict] = []
        self.heads: list[str] = []

    async def serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                length = int(head.lower().partition("content-length: ")[2].partition("\r")[0] or 0)
                body = await reader.readexactly(length)
                if not length:
                    await self.models(writer)
                    continue
                self.bodies.append(orjson.loads(body))
                if self.answers:
                    answer = self.answers.pop()
                    writer.write(answer)
                    if b"Connection: close" in answer:
                        break
                else:
                    await self.stream(writer)
        writer.close()

    async def models(self, writer):
        body = b'{"data":[{"id":"first"},{"id":"second"}]}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async def stream(self, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in STREAM:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")


@pytest.fixture
async def start():
    async with contextlib.AsyncExitStack() as stack:

        async def start(server: Server) -> str:
            listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
            stack.callback(listening.close)
            return f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"

        yield start


async def test_so_many_requests_are_asked_each_with_its_own_prompt(start):
    server = Server()
    plan = Plan(url=await start(server), concurrency=3, requests=7, api_key="k", max_tokens=5)
    numbers = summary(await Generator(plan).run())
    assert (numbers["requests"], numbers["failed"], numbers["tokens"]) == (7, 0, 49)
    assert numbers["chunks"] == 21
    assert {body["model"] for body in server.bodies} == {"first"}
    assert {body["max_tokens"] for body in server.bodies} == {5}
    assert len({body["messages"][0]["content"] for body in server.bodies}) == 7
    assert all("Authorization: Bearer k\r\n" in head for head in server.heads)


async def test_a_rate_is_kept_whatever_the_answers_take(start):
    plan = Plan(url=await start(Server()), model="m", requests=20, rate=400.0, concurrency=50)
    load = await Generator(plan, seed=1).run()
    began = sorted(answer.began for answer in load.answers)
    assert len(began) == 20
    assert 0.01 < began[-1] - began[0] < 0.5  # 19 draws with a mean of 2.5 ms


async def test_failures_are_counted_by_their_reason(start):
    refused = (
        b"HTTP/1.1 503 No\r\nContent-Length: 27\r\n\r\n" + b'{"error":{"message":"full"}}'[:27]
    )
    busy = b'HTTP/1.1 429 No\r\nContent-Length: 28\r\n\r\n{"error":{"message":"busy"}}'
    plan = Plan(url=await start(Server(busy, refused)), model="m", requests=3, concurrency=1)
    numbers = summary(await Generator(plan).run())
    assert numbers["requests"] == 1
    assert numbers["errors"] == {"HTTP status 503": 1, "busy": 1}


async def test_a_server_that_hangs_up_is_a_failure_and_the_next_request_goes_on(start):
    cut = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        + STREAM[1]
    )
    server = Server()
    plan = Plan(url=await start(server), model="m", requests=2, concurrency=1)
    server.answers = [cut]
    numbers = summary(await Generator(plan).run())
    assert (numbers["requests"], numbers["failed"]) == (1, 1)


async def test_no_server_is_one_clear_error():
    with pytest.raises(LoadError, match="does not answer"):
        await Generator(Plan(url="127.0.0.1:9", requests=1)).run()
    with pytest.raises(LoadError, match="no http URL"):
        Generator(Plan(url="ftp://x"))
