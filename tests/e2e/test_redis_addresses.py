"""Real processes on a Redis with TLS and users, behind a unix socket, and behind Sentinel."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import redis as sync_redis

# An answer that is disturbed takes half a minute by itself; what goes on with it is quick.
SLOW, QUICK = ("--engine", "fake", "--fake-tick", "0.03"), ("--engine", "fake", "--fake-tick", "0")
ACL_FILE, ACL_MODEL = (
    Path(__file__).parents[2] / "docs" / "redis-users.acl",
    "smollm2-135m-instruct",
)
LONG = ("--heartbeat-timeout", "15")  # the default, which is longer than a fail-over


def answer(client, tokens: int, then=lambda: None) -> str:
    """The text of a stream; `then` is called once, when some of it has come."""
    stream = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "Tell me about queues"}],
        stream=True,
        max_tokens=tokens,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    text = ""
    for count, chunk in enumerate(stream):
        text += chunk.choices[0].delta.content or ""
        if count == 5:
            then()
    assert chunk.choices[0].finish_reason == "length"
    return text


def a_worker_may_die(cluster, client) -> None:
    """A stream is answered, also if its worker is killed."""
    quick = cluster.worker(*QUICK)
    whole = answer(client, 1000)
    quick.terminate()
    assert quick.wait(60) == 0
    cluster.worker(*SLOW)

    def kill_what_runs() -> None:
        (worker,) = set(cluster.running().values())
        os.kill(cluster.pid_of(worker), signal.SIGKILL)
        cluster.worker(*QUICK)

    assert answer(client, 1000, kill_what_runs) == whole


# TLS, a password each, and no more rights than the file gives


@pytest.fixture
def secured(start_redis, certificates, free_port, tls_binary, tmp_path):
    """The URL of each user of the server: those of the file, and `admin`."""
    shipped = ACL_FILE.read_text().replace(ACL_MODEL, "m")
    users = tmp_path / "users.acl"
    users.write_text(f"{shipped}user admin reset on >secret ~* &* +@all\n")
    port = free_port()
    start_redis(
        *("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", f"{certificates}/server.pem"),
        *("--tls-key-file", f"{certificates}/server.key"),
        *("--tls-ca-cert-file", f"{certificates}/ca.pem"),
        *("--aclfile", str(users)),
        binary=tls_binary,
    )
    passwords = dict(re.findall(r"^user (\S+) .*?>(\S+)", users.read_text(), re.MULTILINE))
    return {
        user: f"rediss://{user}:{password}@127.0.0.1:{port}/0?ssl_ca_certs={certificates}/ca.pem"
        for user, password in passwords.items()
    }


@pytest.mark.parametrize("redis_url", ["secured"], indirect=True)
def test_tls_and_users_with_few_rights(cluster, secured, redis_url):
    cluster.redis_url = secured["queueserve-api"]
    url, _ = cluster.api()
    cluster.redis_url = secured["queueserve-worker"]
    a_worker_may_die(cluster, cluster.client(url))
    assert cluster.redis.acl_log() == []


# A unix socket


@pytest.fixture
def socket_url(start_redis, tmp_path_factory):
    path = tmp_path_factory.mktemp("socket") / "s"
    start_redis("--port", "0", "--unixsocket", str(path))
    return f"unix://{path}?db=1"


@pytest.mark.parametrize("redis_url", ["socket"], indirect=True)
def test_a_unix_socket(cluster, redis_url):
    url, _ = cluster.api()
    a_worker_may_die(cluster, cluster.client(url))


# Sentinel


@pytest.mark.parametrize("redis_url", ["master"], indirect=True)
def test_a_stream_goes_on_over_a_fail_over(cluster, sentinels, sentinel_url, until, redis_url):
    cluster.redis_url = sentinel_url
    url, _ = cluster.api(*LONG)
    cluster.worker(*SLOW, *LONG)
    client = cluster.client(url, max_retries=10)
    whole = answer(client, 100)
    assert answer(client, 100, sentinels.master.kill) == whole
    cluster.redis.close()
    cluster.redis = sync_redis.Redis(port=sentinels.replica_port, decode_responses=True)
    until(lambda: cluster.redis.role()[0] == "master", "the fail-over")
    assert answer(client, 20)


@pytest.fixture
def redis_url(request, until):
    """Where the test itself looks, once it answers there."""
    match request.param:
        case "secured":
            url = request.getfixturevalue("secured")["admin"]
        case "socket":
            url = request.getfixturevalue("socket_url")
        case _:
            url = f"redis://127.0.0.1:{request.getfixturevalue('sentinels').master_port}/0"
    with sync_redis.Redis.from_url(url) as asked:
        until(asked.ping, "an answer of Redis")
    return url
