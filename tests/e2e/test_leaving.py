"""Clients and API servers that go away: their slots become free, their jobs end."""

from __future__ import annotations

import os
import signal
import socket

import httpx
import pytest

ENDLESS = {
    "model": "m",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 3000,
    "ignore_eos": True,
}
ONE_SLOT = ("--engine", "fake", "--fake-tick", "0.03", "--limit-worker-concurrency", "1")


DOOMED = ("--heartbeat-timeout", "3")  # of an API server that will be killed: soon missed


@pytest.fixture
def api(cluster):
    cluster.worker(*ONE_SLOT)
    return cluster.api(*DOOMED)


def leave(url: str, body: dict, condition, until) -> None:
    """Send a request, and close the connection once `condition` holds."""
    host, port = url.removeprefix("http://").split(":")
    data = httpx.Request("POST", f"{url}/v1/chat/completions", json=body)
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
        head += "Content-Type: application/json\r\n"
        head += f"Content-Length: {len(data.content)}\r\n\r\n"
        connection.sendall(head.encode() + data.content)
        until(condition, "the state in which the client leaves")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_a_running_job_frees_its_slot(cluster, until, api, stream):
    leave(api[0], ENDLESS | {"stream": stream}, cluster.running, until)
    until(lambda: not cluster.running(), "the free slot")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_a_queued_job_takes_it_out_of_the_queue(cluster, until, api, stream):
    with httpx.stream("POST", f"{api[0]}/v1/chat/completions", json=ENDLESS | {"stream": True}):
        depth = lambda: cluster.redis.zcard("qs:{m}:queue")  # noqa: E731
        leave(api[0], ENDLESS | {"stream": stream}, depth, until)
        until(lambda: depth() == 0, "the empty queue")
        assert len(cluster.running()) == 1


def test_an_api_server_that_is_killed_leaves_no_jobs(cluster, until, api):
    url, process = api
    cluster.api()  # somebody must notice
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=ENDLESS | {"stream": True}
    ) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the connection with its iterator
        next(lines)
        until(cluster.running, "the running job")
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: not cluster.running(), "the end of the orphan")
