"""Vectors from real processes: the real model, and workers that are killed at their work."""

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


@pytest.mark.timeout(240)
def test_the_real_model_finds_what_is_meant(cluster, clients):
    url, _ = cluster.api()
    client = clients(url)
    name = "all-minilm-l6-v2"
    cluster.worker("--model-path", "minilm", "--threads", "1", model=name)
    query, near, far = vectors(
        client, ["How old are you?", "What is your age?", "Rain fell on the roof."], name
    )
    alike = sum(a * b for a, b in zip(query, near, strict=True))
    unlike = sum(a * b for a, b in zip(query, far, strict=True))
    assert alike > 0.7
    assert unlike < 0.3
    ranking = client.post(
        "/rerank",
        cast_to=object,
        body={
            "model": name,
            "query": "Where do penguins live?",
            "documents": ["Bread is baked in an oven.", "Penguins are found in Antarctica."],
        },
    )
    assert [one["index"] for one in ranking["results"]] == [1, 0]
    assert ranking["results"][0]["relevance_score"] > 0.5
    [model] = client.models.list().data
    assert model.max_model_len == 256
    assert "embed" in model.capabilities
    assert "chat" not in model.capabilities
