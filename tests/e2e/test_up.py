"""`queueserve up` as a person runs it: one command, real processes, a terminal's signals."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import redis as sync_redis
from up_process import Up

from queueserve.queue.embedded import EmbeddedRedis

FAKE = ("--engine", "fake", "--port", "0", "--redis-port", "0")


@pytest.fixture
def start(tmp_path, until):
    """Start `queueserve up` with these options, and wait until it is ready."""
    started: list[Up] = []

    def start(*options: str, ready: bool = True, data_dir=tmp_path) -> Up:
        up = Up(data_dir, *options)
        started.append(up)
        if ready:
            until(lambda: up.line("Stop"), "the last line of the welcome")
        return up

    yield start
    for up in started:
        up.close()
        sys.stdout.write(up.said)  # shown if the test has failed


@pytest.fixture(scope="module")
def running(tmp_path_factory, until):
    """One that its tests leave as it is."""
    up = Up(tmp_path_factory.mktemp("running"), *FAKE)
    try:
        until(lambda: up.line("Stop"), "the last line of the welcome")
        yield up
    finally:
        up.close()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def need(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not on this machine; CI installs it")


def test_the_curl_line_works_when_it_is_pasted(running):
    need("curl")
    curl = shlex.split(running.line("Try it"))
    done = subprocess.run([*curl, "-sS"], capture_output=True, text=True, timeout=60, check=True)
    answer = json.loads(done.stdout)
    assert answer["model"] == running.line("Model") == "fake"
    assert answer["choices"][0]["message"]["content"]


def test_the_redis_cli_line_works_when_it_is_pasted(running):
    need("redis-cli")
    redis_cli = running.line("Look in").split("   ")[0].split()
    done = subprocess.run(
        [*redis_cli, "smembers", "qs:pools"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "fake\n"


def test_chat_and_status_find_it(running):
    command = [sys.executable, "-m", "queueserve.cli"]
    done = subprocess.run(
        [*command, "chat", "--url", running.url, "--message", "hello"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip()
    assert done.stderr == ""
    done = subprocess.run(
        [*command, "chat", "--url", running.url, "--model", "other", "--message", "hello"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "'other' does not exist" in done.stderr
    done = subprocess.run(
        [*command, "chat", "--url", running.url],
        input="hello\n\nand again\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("> ") == 4  # two questions, an empty line, the end of input
    done = subprocess.run(
        [*command, "status", "--redis-url", f"redis://127.0.0.1:{running.redis_port}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("fake: 0 waiting, 0 running\n")
    assert " 0/8 " in done.stdout


def test_a_worker_that_is_killed_starts_again_and_is_reaped_before_its_timeout(start, until):
    # The timeout is longer than the test may take: only the parent can find the death in time.
    up = start(*FAKE, "--heartbeat-timeout", "600")
    [(worker, pid)] = up.workers().items()
    os.kill(pid, signal.SIGKILL)
    until(lambda: worker not in up.workers(), "the end of the dead worker's registration")
    until(up.workers, "the registration of the next one")
    assert pid not in up.workers().values()
    assert "worker 1 was ended by SIGKILL; it starts again" in up.said
    assert httpx.get(f"{up.url}/ready").status_code == 200


def test_two_workers_share_one_queue(start, until):
    up = start(*FAKE, "--workers", "2")
    until(lambda: up.line("Workers") and len(up.workers()) == 2, "two registrations")
    until(lambda: "2 of 2 are there" in up.said, "that it says so")


def test_a_redis_that_is_killed_starts_again_with_its_data(start, until, free_port):
    port = free_port()  # no connection may get it in between
    up = start("--engine", "fake", "--port", "0", "--redis-port", str(port))
    with up.redis() as client:
        client.set("mine", "1")
        client.execute_command("WAITAOF", 1, 0, 0)
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
    with up.redis() as client:
        until(client.ping, "the restart of Redis")
        assert client.get("mine") == "1"
    until(lambda: httpx.get(f"{up.url}/ready").status_code == 200, "that it is ready again")
    assert up.redis_port == port


def test_what_is_queued_and_known_survives_a_restart(start, tmp_path):
    up = start(*FAKE)
    with up.redis() as client:
        client.set("mine", "1")
    up.process.terminate()
    assert up.end() == 0
    again = start(*FAKE)
    with again.redis() as client:
        assert client.get("mine") == "1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(start, until, number):
    up = start(*FAKE)
    pids = up.pids()
    up.process.send_signal(number)
    assert up.end() == 0
    assert all(map(is_gone, pids))
    assert "Stopping" in up.said
    assert "Traceback" not in up.said


def test_a_signal_ends_everything_also_when_nobody_reads_the_output(tmp_path, until):
    read, write = os.pipe()
    command = [sys.executable, "-m", "queueserve.cli", "up", "--data-dir", str(tmp_path), *FAKE]
    process = subprocess.Popen(command, stdout=write)
    os.close(write)
    try:
        assert os.read(read, 5) == b"Redis"
        os.close(read)
        process.terminate()
        process.wait(timeout=60)
    finally:
        process.kill()


def test_a_running_answer_is_finished_before_the_end(start):
    up = start(*FAKE, "--", "--fake-tick", "0.05")
    body = {"model": "fake", "prompt": "x", "max_tokens": 30, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{up.url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        up.process.terminate()
        rest = list(lines)
    assert "data: [DONE]" in rest
    assert not any('"error"' in line for line in rest)
    assert up.end() == 0


def test_a_second_signal_ends_at_once_what_still_runs(start):
    up = start(*FAKE, "--grace", "600", "--", "--fake-tick", "1")
    body = {"model": "fake", "prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{up.url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()  # kept: httpx closes the connection with its iterator
        next(lines)
        up.process.terminate()
        up.process.send_signal(signal.SIGINT)
        assert up.end() == 0


def test_kill_9_leaves_nothing_behind_and_the_next_one_starts(start, until):
    up = start(*FAKE)
    pids = up.pids()
    up.process.kill()
    again = start(*FAKE)
    until(lambda: all(map(is_gone, pids)), "the end of all processes of the first")
    assert httpx.get(f"{again.url}/ready").status_code == 200


def test_a_second_one_in_the_same_directory_is_refused(running, start):
    second = start(*FAKE, ready=False, data_dir=running.data_dir)
    assert second.end() == 1
    assert f"{running.data_dir}/redis is in use by another QueueServe" in second.said
    assert f"(process {running.process.pid})" in second.said
    assert httpx.get(f"{running.url}/ready").status_code == 200


def test_a_redis_of_ones_own_is_used_and_left_running(start, redis_server, redis_url, tmp_path):
    up = start(*FAKE, "--redis-url", redis_url, "--prefix", "mine:")
    with sync_redis.Redis.from_url(redis_url) as client:
        assert client.hkeys("mine:{fake}:cards") == [b"fake"]
        assert up.line("Redis") == f"at {redis_url}"
        up.process.terminate()
        assert up.end() == 0
        assert client.ping()
    assert not (tmp_path / "redis").exists()


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--engine", "nonsense"], "no engine 'nonsense'"),
        (["--model-path", "{dir}/missing.gguf"], "there is no file or directory"),
        (["--model-path", "{dir}/broken.gguf"], "broken.gguf"),
    ],
)
def test_a_configuration_that_cannot_work_ends_it_with_the_reason(start, tmp_path, options, reason):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but no model")
    options = [option.format(dir=tmp_path) for option in options]
    up = start(*options, "--port", "0", "--redis-port", "0", ready=False)
    assert up.end() == 78
    assert reason in up.said
    assert "Traceback" not in up.said
    assert "worker 1 cannot run with this configuration" in up.said


def test_it_serves_over_tls(start, tmp_path):
    need("openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    up = start(*FAKE, "--ssl-keyfile", str(key), "--ssl-certfile", str(certificate))
    assert up.url.startswith("https://127.0.0.1:")
    command = [sys.executable, "-m", "queueserve.cli", "chat", "--url", up.url, "--message", "hi"]
    env = os.environ | {"SSL_CERT_FILE": str(certificate)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=True)
    assert done.stdout.strip()


def test_a_port_of_redis_that_is_taken_is_a_clear_error(start, tmp_path):
    with EmbeddedRedis(tmp_path / "other", port=0) as other:
        options = ("--engine", "fake", "--port", "0", "--redis-port", str(other.port))
        up = start(*options, ready=False)
        assert up.end() == 1
        assert f"port {other.port} on 127.0.0.1 is taken" in up.said
