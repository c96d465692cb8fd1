"""A Redis that can never do ends both processes at once, with the reason and EX_CONFIG."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

import pytest

from queueserve.queue.connection import open_redis
from queueserve.queue.preflight import check, check_at_start, risks


class OldServer:
    """What a Redis 5, or a 6.2, answers to what we ask at start."""

    def __init__(self, hello: bytes) -> None:
        self._hello = hello
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._server.getsockname()[1]}/0"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            while words := connection.recv(65536):
                for _ in range(words.count(b"*")):
                    known = b"HELLO" in words
                    connection.sendall(self._hello if known else b"-ERR unknown command 'x'\r\n")

    def close(self) -> None:
        self._server.close()


def bulk(word: str) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(word), word.encode())


REDIS_5 = b"-ERR unknown command `HELLO`, with args beginning with: \r\n"
REDIS_6 = b"*4\r\n" + b"".join(map(bulk, ("server", "redis", "version", "6.2.14")))
REASONS = {"5": "older than 6", "6": "This is redis 6.2.14; QueueServe needs Redis 7.0"}


@pytest.fixture(params=["5", "6"])
def old(request):
    server = OldServer(REDIS_5 if request.param == "5" else REDIS_6)
    yield server.url, REASONS[request.param]
    server.close()


@pytest.mark.parametrize(
    "command",
    [
        ("queueserve.cli", "serve", "--port", "0"),
        ("workers.cli", "--engine", "fake"),
        ("queueserve.cli", "up", "--engine", "fake", "--port", "0"),
    ],
    ids=["api", "worker", "up"],
)
def test_a_redis_that_is_too_old_is_refused_at_start(cluster, old, command):
    url, reason = old
    process = cluster.start(*command, "--redis-url", url, name="refused")
    assert process.wait(60) == os.EX_CONFIG
    assert reason in cluster.log()


@pytest.mark.parametrize("command", [("queueserve.cli", "serve"), ("workers.cli",)])
def test_a_wrong_password_is_refused_at_start(cluster, redis_url, command):
    url = redis_url.replace("redis://", "redis://nobody:wrong@")
    engine = () if "serve" in command else ("--engine", "fake")
    process = cluster.start(*command, *engine, "--redis-url", url, name="refused")
    assert process.wait(60) == os.EX_CONFIG
    assert "Redis refuses us" in cluster.log()


@pytest.mark.parametrize("command", [("queueserve.cli", "serve"), ("workers.cli",)])
def test_a_database_that_redis_does_not_have_is_refused_at_start(cluster, redis_url, command):
    url = f"{redis_url.rpartition('/')[0]}/9999"
    engine = () if "serve" in command else ("--engine", "fake")
    process = cluster.start(*command, *engine, "--redis-url", url, name="refused")
    assert process.wait(60) == os.EX_CONFIG
    assert "Redis refuses us: DB index is out of range" in cluster.log()


async def test_that_no_redis_is_there_yet_is_worth_a_warning(caplog):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    await check_at_start(f"redis://127.0.0.1:{port}/0")  # nobody listens any more
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("waiting for Redis: Redis does not answer: Error 111")


async def test_a_redis_that_may_lose_jobs_is_worth_a_warning(start_redis, caplog):
    port = start_redis("--maxmemory-policy", "allkeys-lru").port
    url = f"redis://127.0.0.1:{port}/0"
    while "appendonly" not in caplog.text:  # it starts still
        await check_at_start(url)
    assert "maxmemory-policy is allkeys-lru" in caplog.text


async def test_the_embedded_redis_is_fine(redis_url):
    async with open_redis(redis_url) as redis:
        await check(redis)
        assert await risks(redis) == []
