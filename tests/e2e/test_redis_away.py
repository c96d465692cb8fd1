"""A dead or hung Redis is a clear 503 within five seconds, and it heals by itself."""

from __future__ import annotations

import os
import signal
import time

import httpx
import openai
import pytest

from queueserve.queue.embedded import EmbeddedRedis


def ask(client):
    messages = [{"role": "user", "content": "hello"}]
    return client.chat.completions.create(model="m", messages=messages, max_tokens=3)


def refused_within_five_seconds(client) -> bool:
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError) as error:
        ask(client)
    assert (error.value.status_code, error.value.code) == (503, "redis_unavailable")
    return time.monotonic() - began < 5


@pytest.fixture
def own_server(tmp_path, free_port):
    with EmbeddedRedis(tmp_path / "own", port=free_port()) as server:
        yield server


@pytest.fixture
def redis_url(own_server):
    return own_server.url


@pytest.mark.parametrize("how", ["dead", "hung"])
def test_without_redis_a_503_within_five_seconds_and_then_it_heals(cluster, until, own_server, how):
    url, _ = cluster.api()
    cluster.worker()
    client = cluster.client(url)
    assert ask(client).usage.completion_tokens == 3
    if how == "dead":
        own_server.kill()
    else:
        os.kill(own_server.pid, signal.SIGSTOP)
    # A machine that stands still for seconds makes one of them late, not all.
    assert any(refused_within_five_seconds(client) for _ in range(3))
    assert httpx.get(f"{url}/ready").status_code == 503
    assert httpx.get(f"{url}/health").is_success
    if how == "dead":
        own_server.start()
    else:
        os.kill(own_server.pid, signal.SIGCONT)
    until(lambda: httpx.get(f"{url}/ready").is_success, "the return")
    assert ask(cluster.client(url, max_retries=5)).usage.completion_tokens == 3
