"""A worker process with vLLM that cannot go on: it says why, and is not registered."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from workers.engines.conversion import converted
from workers.models import resolve

pytest.importorskip("vllm")
pytestmark = pytest.mark.timeout(600)

LOADED = 270.0  # seconds, on a busy machine
HELLO = [{"role": "user", "content": "Tell me a long story."}]
CPU = ("--dtype", "float32", "--context-length", "512", "--limit-worker-concurrency", "2")
EAGER = ("--", "--enforce-eager")


@pytest.fixture
def model(models_dir):
    return converted(Path(resolve("smollm2", "vllm").path), models_dir / "models")


@pytest.fixture
def broken(model, tmp_path):
    """Makes a copy of the model with one file that is not as it should be."""

    def make(name, content):
        copy = tmp_path / "broken"
        shutil.copytree(model, copy, copy_function=os.symlink)
        (copy / name).unlink()
        (copy / name).write_bytes(content((model / name).read_bytes()))
        return copy

    return make


@pytest.mark.parametrize(
    "name,content,says",
    [
        ("model.safetensors", lambda whole: whole[:-1000], "model.safetensors is damaged"),
        ("config.json", lambda _: b"{nonsense", "config.json"),
    ],
)
def test_a_corrupt_checkpoint_ends_a_worker_with_the_reason(cluster, broken, name, content, says):
    options = ("--engine", "vllm", "--model-path", str(broken(name, content)), *CPU, *EAGER)
    command = [sys.executable, "-m", "workers.cli", "--redis-url", cluster.redis_url, *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LOADED, check=False)
    assert ended.returncode == os.EX_CONFIG
    reason = ended.stderr.splitlines()[-1]
    assert reason.startswith("queueserve-worker: ")
    assert says in reason
    assert not cluster.redis.keys("qs:*")


def engine_process(worker):
    """The process id of the child of a worker in which its model runs."""
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    (engine,) = [
        int(child)
        for child in children
        if b"EngineCore" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return engine


def test_a_killed_engine_process_ends_the_worker_and_tells_the_client(cluster, until, models_dir):
    url, _ = cluster.api("--queue-timeout", "3")
    worker = cluster.worker(
        *("--engine", "vllm", *CPU, "--data-dir", str(models_dir), *EAGER), wait=False
    )
    until(cluster.workers, "the registration of the worker", LOADED)
    stream = cluster.client(url).chat.completions.create(
        model="m",
        messages=HELLO,
        max_tokens=400,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(stream)
    os.kill(engine_process(worker), signal.SIGKILL)
    assert worker.wait(60) == 1
    assert "queueserve-worker: vLLM's engine process has ended" in cluster.log()
    # Its lease runs out: a worker that left in order would count no crash against its jobs.
    until(lambda: not cluster.workers(), "the end of the worker's lease", 30)
    with pytest.raises(openai.APIError) as told:
        list(stream)
    assert told.value.code == "no_worker"
    with pytest.raises(openai.APIStatusError) as refused:
        cluster.client(url).chat.completions.create(model="m", messages=HELLO, max_tokens=1)
    assert refused.value.status_code == 503
