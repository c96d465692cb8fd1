"""The `queueserve-worker` command: several models in one process, and clear ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

BOUND = 60.0  # seconds that any single wait may take, on however busy a machine
HELLO = [{"role": "user", "content": "hello"}]


def test_one_process_serves_several_models(cluster, until):
    url, _ = cluster.api()
    cluster.start(
        "workers.cli",
        *("--redis-url", cluster.redis_url, "--engine", "fake"),
        *("--model-path", "one", "--model-names", "one"),
        *("--model-path", "two", "--model-names", "two,deux"),
        name="worker",
    )
    client = cluster.client(url)
    until(lambda: cluster.workers("one") and cluster.workers("two"), "both registrations")
    assert [model.id for model in client.models.list()] == ["deux", "one", "two"]
    for model in ("one", "two", "deux"):
        answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=3)
        assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--engine", "nothing"], "no engine 'nothing'"),
        (["--model-path", "/nowhere/model.gguf"], "there is no file or directory"),
        (["--model-path", "a", "--model-path", "b", "--model-names", "x"], "once for every"),
        (["--dtype", "float99"], "one of auto, float32, bfloat16, float16"),
        (["--engine", "fake", "--model-names", "a}b"], "cannot name a model"),
        (["--engine", "fake", "--chat-template", "nothing"], "no chat template"),
    ],
)
def test_a_configuration_that_cannot_work_ends_with_its_reason(redis_url, arguments, reason):
    command = [sys.executable, "-m", "workers.cli", "--redis-url", redis_url, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)
    assert ended.returncode == os.EX_CONFIG
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr


# Told to stop before it serves

STUCK = """
import sys, time
import workers.engines.llama_cpp as adapter
def load(*_, **__):
    print("loading", flush=True)
    time.sleep(3600)
adapter.LlamaServer = load
from workers.cli import main
main(sys.argv[1:])
"""


def test_a_worker_that_is_told_to_stop_while_its_model_loads_does_not_wait_for_it(redis_url):
    command = [sys.executable, "-c", STUCK, "--redis-url", redis_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout.readline() == "loading\n"
            worker.terminate()
            assert worker.wait(BOUND) == 0
        finally:
            worker.kill()


def test_a_worker_that_is_told_to_stop_before_it_loads_ends_in_order(redis_url, tmp_path, until):
    os.mkfifo(pipe := tmp_path / "model.gguf")  # whoever reads it waits for ever

    held = []

    def is_read():
        with contextlib.suppress(OSError):  # nobody reads it yet
            held.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(held)

    command = [sys.executable, "-m", "workers.cli", "--redis-url", redis_url, "--model-path"]
    with subprocess.Popen([*command, tmp_path]) as worker:
        try:
            until(is_read, "that its header is read")
            worker.terminate()
            assert worker.wait(BOUND) == 0
        finally:
            worker.kill()
            os.close(*held)


def test_a_model_is_loaded_into_a_running_worker_and_unloaded_by_commands(cluster):
    cluster.worker()
    (worker,) = cluster.workers()

    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "queueserve.cli", *arguments, "--redis-url", cluster.redis_url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    loaded = command("load", "other", "--engine", "fake", "--on", worker)
    assert "serves other" in loaded.stdout, loaded.stderr
    assert len(cluster.workers("other")) == 1
    unloaded = command("unload", "other", "--on", worker)
    assert "has unloaded other" in unloaded.stdout, unloaded.stderr
    assert cluster.workers("other") == set()
    nobody = command("unload", "m", "--on", "box-7")
    assert (nobody.returncode, "No worker process" in nobody.stderr) == (1, True)
