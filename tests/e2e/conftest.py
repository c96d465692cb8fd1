"""Real processes for end-to-end tests: API servers and workers on the embedded Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import anthropic
import httpx
import openai
import pytest
import redis as sync_redis
from up_process import Up, shared

HEARTBEAT = 2.0  # seconds, of workers: short, so that a dead one is noticed soon
# One that a busy machine stops for longer loses its jobs to another, as if it were dead, and no
# client sees it. An API server would end its streams.
API_HEARTBEAT = 15.0
BOUND = 60.0  # seconds that any single wait may take, on however busy a machine
# Sets that get their TTL with the reaper's next look, for which the end of a test does not wait.
NOT_YET = {"alive", "alone", "apis", "due", "free", "queue"}


def wait_for(condition, what: str, seconds: float = BOUND):
    """The first true value of `condition`; a bound, not a measurement."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if value := condition():
                return value
        except (httpx.HTTPError, sync_redis.RedisError):
            pass
        time.sleep(0.02)
    pytest.fail(f"{what} did not happen within {seconds} s")


class Cluster:
    """The processes of one test; all of them end with it."""

    def __init__(self, redis_url: str, logs: Path, free_port: Callable[[], int]) -> None:
        self.redis_url = redis_url
        self.free_port = free_port
        self.redis = sync_redis.Redis.from_url(redis_url, decode_responses=True)
        self.logs = logs
        self.processes: list[subprocess.Popen[bytes]] = []
        self.clients: list[openai.OpenAI] = []
        self.has_api = False

    def start(self, *command: str, name: str) -> subprocess.Popen[bytes]:
        log = (self.logs / f"{name}-{len(self.processes)}.log").open("wb")
        env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=log, stderr=subprocess.STDOUT, env=env
        )
        log.close()
        self.processes.append(process)
        return process

    def worker(self, *options: str, model: str = "m", wait: bool = True):
        """A fake-engine worker, registered; `options` may name another engine."""
        known = self.workers(model)
        process = self.start(
            "workers.cli",
            *("--redis-url", self.redis_url, "--heartbeat-timeout", str(HEARTBEAT)),
            *("--model-names", model, *(options or ("--engine", "fake"))),
            name="worker",
        )
        if wait:
            wait_for(lambda: self.workers(model) - known, "the registration of a worker", 120)
        return process

    def api(self, *options: str):
        """An API server that answers: its base URL and process."""
        self.has_api = True
        port = self.free_port()
        process = self.start(
            "queueserve.cli",
            *("serve", "--port", str(port), "--redis-url", self.redis_url),
            *("--heartbeat-timeout", str(API_HEARTBEAT), *options),
            name="api",
        )
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: httpx.get(f"{url}/health").is_success, "an answering API server")
        return url, process

    def client(self, url: str, **options) -> openai.OpenAI:
        defaults = {"max_retries": 0, "timeout": 150}  # a real model on a busy machine
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", **(defaults | options))
        self.clients.append(client)
        return client

    def workers(self, model: str = "m") -> set[str]:
        return set(self.redis.zrange(f"qs:{{{model}}}:alive", 0, -1))

    def running(self, model: str = "m") -> dict[str, str]:
        """Job → worker, from the leases."""
        held = {}
        for worker in self.workers(model):
            for job in self.redis.hkeys(f"qs:{{{model}}}:lease:{worker}"):
                held[job] = worker
        return held

    def pid_of(self, worker: str, model: str = "m") -> int:
        return int(self.redis.hget(f"qs:{{{model}}}:worker:{worker}", "pid"))

    def state(self, job: str, model: str = "m") -> str | None:
        return self.redis.hget(f"qs:{{{model}}}:job:{job}", "state")

    def log(self) -> str:
        """All the logs, for the message of a failed test."""
        return "\n".join(
            f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.logs.iterdir())
        )

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
        for process in self.processes:
            process.wait(timeout=10)


@pytest.fixture
def cluster(redis_url, tmp_path, free_port):
    logs = tmp_path / "logs"
    logs.mkdir()
    cluster = Cluster(redis_url, logs, free_port)
    yield cluster
    cluster.close()
    print(cluster.log())
    for_ever = {key for key in cluster.redis.keys("qs:*") if cluster.redis.ttl(key) == -1}
    # API servers see to the TTL of the set of pools.
    may_stay = NOT_YET if cluster.has_api else NOT_YET | {"pools"}
    assert {key.rpartition(":")[2] for key in for_ever} <= may_stay
    cluster.redis.close()


@pytest.fixture(scope="session")
def until():
    return wait_for


@pytest.fixture(scope="session")
def models_dir(pytestconfig):
    """The data directory of this checkout: weights are converted once, not once a run."""
    return pytestconfig.rootpath / ".queueserve"


# What users get of `queueserve up`, with a real model for text and one for vectors: one for all
# tests of features, whichever test process they run in.
CHAT, EMBEDDINGS = "smollm2-135m-instruct", "all-minilm-l6-v2"


def _up(home: Path) -> Up:
    models = ("--model-path", "smollm2", "--model-path", "minilm")
    # A thread each: with more they would wait for each other, where other tests run beside them.
    up = Up(home, "--port", "0", "--redis-port", "0", *models, "--", "--threads", "1")

    def is_there() -> bool:
        told = up.line("Stop") and httpx.get(f"{up.url}/v1/models").json()["data"]
        return {model["id"] for model in told} == {CHAT, EMBEDDINGS}

    wait_for(is_there, "both models", 240)
    return up


@pytest.fixture(scope="session")
def up(tmp_path_factory):
    """Its address, and the names of its models."""
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        home = home.parent  # which all processes of this run have
    with shared(home / "up", _up) as url:
        yield SimpleNamespace(url=url, chat=CHAT, embeddings=EMBEDDINGS)


@pytest.fixture(scope="session")
def client(up):
    """The openai client."""
    with openai.OpenAI(
        base_url=f"{up.url}/v1", api_key="none", max_retries=0, timeout=150
    ) as client:
        yield client


@pytest.fixture(scope="session")
def claude(up):
    """The anthropic client."""
    with anthropic.Anthropic(base_url=up.url, api_key="none", max_retries=0, timeout=150) as client:
        yield client
