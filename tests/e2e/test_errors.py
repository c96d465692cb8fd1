"""What the openai client is told when something is missing, full or too long."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]


def ask(client, model="m", **options):
    return client.chat.completions.create(model=model, messages=HELLO, **options)


def test_a_model_that_nobody_serves_is_not_found(cluster):
    url, _ = cluster.api()
    with pytest.raises(openai.NotFoundError) as error:
        ask(cluster.client(url))
    assert error.value.code == "model_not_found"
    assert httpx.get(f"{url}/ready").status_code == 503


def test_a_request_waits_through_a_rolling_restart_and_fails_when_nobody_comes(cluster, until):
    url, _ = cluster.api("--queue-timeout", "1")
    patient, _ = cluster.api("--queue-timeout", "60")
    worker = cluster.worker("--engine", "fake", "--grace", "0")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 0
    with pytest.raises(openai.InternalServerError) as error:
        ask(cluster.client(url))
    assert (error.value.status_code, error.value.code) == (503, "no_worker")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(ask, cluster.client(patient), max_tokens=5)
        until(lambda: cluster.redis.zcard("qs:{m}:queue"), "the waiting request")
        cluster.worker()
        assert answer.result(timeout=60).usage.completion_tokens == 5


def test_a_full_queue_is_a_429_that_says_when_to_come_back(cluster, until):
    url, _ = cluster.api("--max-queue", "1")
    cluster.worker("--engine", "fake", "--limit-worker-concurrency", "1", "--fake-tick", "0.05")
    client = cluster.client(url)
    endless = {"max_tokens": 3000, "stream": True, "extra_body": {"ignore_eos": True}}
    running = ask(client, **endless)
    next(running)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, client, max_tokens=1)
        until(lambda: cluster.redis.zcard("qs:{m}:queue"), "the waiting request")
        with pytest.raises(openai.RateLimitError) as error:
            ask(client, max_tokens=1)
        assert error.value.code == "rate_limit_exceeded"
        assert 1 <= int(error.value.response.headers["retry-after"]) <= 120
        running.close()
        assert waiting.result(timeout=60).usage.completion_tokens == 1


def test_too_long_a_prompt_is_a_400_also_for_a_stream(cluster):
    url, _ = cluster.api()
    cluster.worker("--engine", "fake", "--context-length", "64")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            cluster.client(url).chat.completions.create(
                model="m", messages=[{"role": "user", "content": "word " * 99}], stream=stream
            )
        assert error.value.code == "context_length_exceeded"


def test_models_are_listed_with_their_aliases(cluster):
    url, _ = cluster.api()
    cluster.worker(model="m,gpt-3.5-turbo", wait=False)
    client = cluster.client(url)
    while len(names := [model.id for model in client.models.list()]) < 2:
        pass
    assert names == ["gpt-3.5-turbo", "m"]
    assert client.models.retrieve("m").id == "m"
    assert ask(client, model="gpt-3.5-turbo", max_tokens=2).model == "gpt-3.5-turbo"
