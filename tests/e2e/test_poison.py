"""A job that kills every worker that runs it: found out alone, and only it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import openai
import pytest


def ask(client, text, max_tokens):
    messages = [{"role": "user", "content": text}]
    sampling = {"max_tokens": max_tokens, "temperature": 0, "extra_body": {"ignore_eos": True}}
    return client.chat.completions.create(model="m", messages=messages, **sampling)


class Poison:
    """What such a job does: its worker is killed as soon as it runs it, however often."""

    def __init__(self, cluster) -> None:
        self.cluster = cluster
        self.killed: list[str] = []
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._kill)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self._thread.join()

    def _kill(self) -> None:
        while not self.over.wait(0.05):
            for job, worker in self.cluster.running().items():
                body = self.cluster.redis.hget(f"qs:{{m}}:job:{job}", "body") or ""
                if worker not in self.killed and "poison" in body:
                    self.killed.append(worker)
                    os.kill(self.cluster.pid_of(worker), signal.SIGKILL)
                    self.cluster.worker("--engine", "fake", wait=False)


def test_a_job_that_kills_its_workers_fails_alone_and_is_a_dead_letter(cluster, until):
    url, _ = cluster.api()
    cluster.worker("--engine", "fake", "--fake-tick", "0.05")
    client = cluster.client(url)
    answers = []
    mates = [
        threading.Thread(target=lambda: answers.append(ask(client, "hello", 100))) for _ in range(3)
    ]
    for mate in mates:
        mate.start()
    until(lambda: len(cluster.running()) == 3, "the others' start")
    with Poison(cluster) as poison:
        with pytest.raises(openai.APIStatusError, match="ended 3 workers, the last one alone"):
            ask(client, "poison", 1000)
        for mate in mates:
            mate.join(60)
    assert [answer.usage.completion_tokens for answer in answers] == [100] * 3
    assert len(poison.killed) == 3
    shown = subprocess.run(
        [sys.executable, "-m", "queueserve.cli", "dead", "--redis-url", cluster.redis_url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(shown) == 2
    assert poison.killed[-1] in shown[1]
    assert ask(client, "hello", 3).usage.completion_tokens == 3
