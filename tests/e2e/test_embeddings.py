"""Vectors, from workers that are killed at their work."""

from __future__ import annotations

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

TEXTS = [f"text {n} {'and more ' * (n % 5)}" for n in range(300)]


def vectors(client, texts, model="m"):
    answer = client.embeddings.create(model=model, input=texts)
    assert [one.index for one in answer.data] == list(range(len(texts)))
    return [one.embedding for one in answer.data]


@pytest.fixture
def clients(cluster):
    """Clients of a server, closed with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda url: stack.enter_context(cluster.client(url))


def test_killed_workers_do_not_show(cluster, clients, until):
    slow = ("--engine", "fake", "--fake-tick", "0.01", "--limit-worker-concurrency", "2")
    url, _ = cluster.api()
    client = clients(url)
    cluster.worker(*slow)
    expected = vectors(client, TEXTS)
    doomed = cluster.workers()
    cluster.worker(*slow)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(vectors, client, TEXTS)
        until(lambda: doomed & set(cluster.running().values()), "a job on the first worker")
        for worker in doomed:
            os.kill(cluster.pid_of(worker), signal.SIGKILL)
        assert asked.result(timeout=60) == expected
