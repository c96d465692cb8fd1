"""The API server in this process, on a free port: on a real Redis, or on a control plane by hand.

The hand-made plane opens real JobStreams, and the test says what arrives on them: for faults and
orders of events that a real worker cannot be made to show.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from types import SimpleNamespace

import httpx
import openai
import pytest
import uvicorn

from queueserve.api.app import control_plane, create_app
from queueserve.api.server import config
from queueserve.errors import ModelNotFoundError
from queueserve.protocol import Delta, Finished, ModelCard, Started
from queueserve.queue.stream import JobStream
from queueserve.queue.turn import Turn
from queueserve.settings import ApiSettings
from workers.engines.fake import FakeEngine
from workers.settings import WorkerSettings
from workers.worker import Worker

BOUND = 60.0  # seconds that any single wait may take, on however busy a machine
HEARTBEAT = 15.0  # a busy machine may stop a test for seconds


async def wait_until(condition) -> None:
    """Wait until `condition` gives something true; it may be a coroutine function."""
    async with asyncio.timeout(BOUND):
        while True:
            value = condition()
            if await value if inspect.isawaitable(value) else value:
                return
            await asyncio.sleep(0.005)


@pytest.fixture
def until():
    return wait_until


class Server(uvicorn.Server):
    """uvicorn as a task of the test: it leaves the signals alone."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


@pytest.fixture
async def serve():
    """Start an API server with these settings; gives its address."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(open_plane=control_plane, **settings) -> SimpleNamespace:
            made = ApiSettings(port=0, **settings)
            server = Server(config(create_app(made, open_plane=open_plane), made))
            task = asyncio.create_task(server.serve())
            await wait_until(lambda: server.started or task.done())

            async def stop() -> None:
                server.should_exit = True
                async with asyncio.timeout(BOUND):
                    await task

            stack.push_async_callback(stop)
            port = server.servers[0].sockets[0].getsockname()[1]
            return SimpleNamespace(port=port, url=f"http://127.0.0.1:{port}", stop=stop)

        yield start


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=BOUND)


# On a real Redis


@pytest.fixture
async def worker(redis_url, redis):
    """Start a worker on the fake engine; it serves the model `m`."""
    stops = []

    async def start(*, pool: str = "m", **engine) -> None:
        stop = asyncio.Event()
        settings = WorkerSettings(
            redis_url=redis_url, model_names=(pool,), heartbeat_timeout=HEARTBEAT, grace=0.2
        )
        task = asyncio.create_task(
            Worker(FakeEngine(**({"tick": 0.002} | engine)), settings).run(stop)
        )
        stops.append((stop, task))
        await wait_until(lambda: redis.exists(f"qs:{{{pool}}}:alive"))

    yield start
    for stop, task in stops:
        stop.set()
        async with asyncio.timeout(BOUND):
            await task


@pytest.fixture
async def api(serve, redis_url):
    """An API server on the test's Redis, and an openai client for it."""
    server = await serve(redis_url=redis_url, heartbeat_timeout=HEARTBEAT)
    async with client_of(server.url) as client:
        yield SimpleNamespace(url=server.url, port=server.port, client=client)


# By hand


class ByHand:
    """A control plane whose events come from the test."""

    def __init__(self) -> None:
        self.streams: list[JobStream] = []
        self.asked = 0  # calls of open
        self.closed: list[str] = []
        self.refusals: list[Exception | None] = []  # for the next calls of open
        self.hold: asyncio.Event | None = None  # open waits for it
        self.ready = True
        self.turn = Turn()
        self.models = [ModelCard(name="m", pool="m", context_length=100, engine="hand", created=7)]

    @contextlib.asynccontextmanager
    async def plane(self, _settings):
        yield SimpleNamespace(owner=self, directory=self, responses=SimpleNamespace(enabled=False))

    async def open(self, job):
        self.asked += 1
        refusal = self.refusals.pop(0) if self.refusals else None
        if self.hold:
            await self.hold.wait()
        if refusal:
            raise refusal
        stream = JobStream(job, self._close)
        self.streams.append(stream)
        return stream

    async def _close(self, stream) -> None:
        self.closed.append(stream.job.id)

    async def find(self, name):
        for card in self.models:
            if card.name == name:
                return card
        raise ModelNotFoundError(f"The model {name!r} does not exist.", param="model")

    async def list(self):
        return self.models

    async def opened(self, count: int = 1) -> None:
        await wait_until(lambda: len(self.streams) >= count)

    def start(self, index: int = 0, *, prompt_tokens: int = 5, cached_tokens: int = 0) -> None:
        stream = self.streams[index]
        stream.placed("running", 1, "w")
        stream.accept(
            Started(stream.job.id, 1, 0, prompt_tokens, cached_tokens, "hash", "fp-1", "w")
        )

    def say(self, text: str, index: int = 0) -> None:
        stream = self.streams[index]
        seq = len(stream.tokens)
        stream.accept(Delta(stream.job.id, 1, seq, stream.chars, text, (seq,)))

    def finish(self, index: int = 0, text: str = "", reason: str = "stop") -> None:
        stream = self.streams[index]
        seq = len(stream.tokens)
        stream.accept(Finished(stream.job.id, 1, seq, stream.chars, text, reason))


@pytest.fixture
def hand():
    return ByHand()


@contextlib.asynccontextmanager
async def _open_app(settings, plane):
    app = create_app(settings, open_plane=plane)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope, receive, send):
            await app(scope | {"state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@pytest.fixture
def open_app():
    """Opens a client of the application alone, without a server and its connections: quick."""
    return _open_app


@pytest.fixture
async def http(hand, open_app):
    """Such a client, of an application that takes small bodies."""
    async with open_app(ApiSettings(max_body_bytes=100_000), hand.plane) as client:
        yield client


@pytest.fixture
async def by_hand(serve, hand):
    """An API server on the hand-made plane, and an openai client for it."""
    server = await serve(hand.plane, keep_alive=0.05)
    async with client_of(server.url) as client:
        yield SimpleNamespace(url=server.url, port=server.port, client=client, hand=hand)
