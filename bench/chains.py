"""The chains that are compared: each starts its processes and ends with an URL that answers."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
import redis
from processes import Process, own_seconds, wait_for

from queueserve.queue.embedded import EmbeddedRedis

HERE = Path(__file__).parent
PEERS = HERE / ".peers"
MODEL = "bench"


class MissingError(Exception):
    """The peer is not installed."""


@dataclass(slots=True)
class Chain:
    """A running chain: `pids` are its processes by role."""

    url: str
    pids: dict[str, int]
    engine: int = 0  # the process with the bench's engine; 0: it has another one
    own: Path = Path()
    redis_url: str = ""
    more_urls: tuple[str, ...] = field(default=())

    def engine_seconds(self) -> float:
        """CPU time of the engine's own work so far."""
        return own_seconds(self.engine, self.own) if self.engine else 0.0


class Launcher:
    """Starts processes for one chain; all of them end with its context."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str, *command: str | Path, **env: str) -> Process:
        """Start one process."""
        process = Process([str(part) for part in command], self.scratch / f"{name}.log", env)
        self._stack.callback(process.stop)
        return process

    def answers(self, process: Process, url: str, path: str = "/health") -> None:
        """Wait until the process answers. Raises RuntimeError with the end of its log."""

        def asked() -> bool:
            if not process.running:
                raise RuntimeError(f"{process.log}: {process.log.read_text()[-2000:]}")
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(url + path, timeout=2).is_success
            return False

        wait_for(asked, url + path)

    def redis(self) -> EmbeddedRedis:
        """An embedded Valkey, as `queueserve up` runs it."""
        return self._stack.enter_context(EmbeddedRedis(self.scratch / "redis", port=0))

    def bare(self, tick: float, slots: int) -> Chain:
        """The engine behind a bare server."""
        port, own = free_port(), self.scratch / "own"
        server = self.start(
            "bare",
            *(sys.executable, HERE / "bare.py", "--port", str(port), "--tick", str(tick)),
            *("--slots", str(slots), "--own", own),
        )
        url = f"http://127.0.0.1:{port}"
        self.answers(server, url)
        return Chain(url, {"bare": server.pid}, engine=server.pid, own=own)


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bare(launch: Launcher, tick: float, slots: int) -> Chain:
    """The ceiling."""
    return launch.bare(tick, slots)


def queueserve(launch: Launcher, tick: float, slots: int, *, servers: int = 1) -> Chain:
    """Redis, API servers, one worker."""
    store = launch.redis()
    own = launch.scratch / "own"
    worker = launch.start(
        "worker",
        *(sys.executable, HERE / "fake_worker.py", "--redis-url", store.url),
        *("--tick", str(tick), "--slots", str(slots), "--own", own),
    )
    urls, pids = [], {"redis": store.pid or 0, "worker": worker.pid}
    for number in range(servers):
        port = free_port()
        api = launch.start(
            f"api{number}",
            *(sys.executable, "-m", "queueserve.cli", "serve", "--port", str(port)),
            *("--redis-url", store.url, "--max-queue-per-tenant", "1000000"),
            *("--max-queue", "1000000"),
        )
        urls.append(f"http://127.0.0.1:{port}")
        pids["api" if servers == 1 else f"api {number + 1}"] = api.pid
        launch.answers(api, urls[-1], "/ready")
    with redis.Redis.from_url(store.url) as client:
        wait_for(lambda: client.zcard(f"qs:{{{MODEL}}}:alive"), "the worker")
    return Chain(urls[0], pids, worker.pid, own, store.url, tuple(urls[1:]))


def _peer(name: str, program: str) -> Path:
    path = PEERS / name / "bin" / program
    if not path.exists():
        raise MissingError(f"{name} is not installed: make bench-peers")
    return path


def _before_bare(launch: Launcher, tick: float, slots: int, name: str, *command: str) -> Chain:
    """A gateway that relays to the bare server."""
    program, *rest = command
    path = _peer(name, program)
    chain = launch.bare(tick, slots)
    port = free_port()
    words = [word.format(port=port, bare=chain.url, metrics=free_port()) for word in rest]
    gateway = launch.start("gateway", path, *words)
    url = f"http://127.0.0.1:{port}"
    launch.answers(gateway, url, "/v1/models" if name != "litellm" else "/health/liveliness")
    return Chain(url, {"gateway": gateway.pid, **chain.pids}, chain.engine, chain.own)


def smg(launch: Launcher, tick: float, slots: int) -> Chain:
    """SGLang's gateway, in Rust."""
    return _before_bare(
        *(
            launch,
            tick,
            slots,
            "smg",
            "smg",
            "launch",
            "--host",
            "127.0.0.1",
            "--worker-urls",
            "{bare}",
        ),
        *("--port", "{port}", "--policy", "round_robin", "--prometheus-port", "{metrics}"),
        *("--log-level", "error", "--disable-tokenizer-autoload"),
    )


def vllm_router(launch: Launcher, tick: float, slots: int) -> Chain:
    """The router of vLLM, in Rust."""
    return _before_bare(
        *(
            launch,
            tick,
            slots,
            "vllm-router",
            "vllm-router",
            "--host",
            "127.0.0.1",
            "--worker-urls",
            "{bare}",
        ),
        *("--port", "{port}", "--policy", "round_robin", "--prometheus-port", "{metrics}"),
        *("--log-level", "error"),
    )


def litellm(launch: Launcher, tick: float, slots: int) -> Chain:
    """LiteLLM's proxy, one process."""
    config = launch.scratch / "litellm.yaml"
    chain = launch.bare(tick, slots)
    params = {"model": f"openai/{MODEL}", "api_base": f"{chain.url}/v1", "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": params}]}))
    port = free_port()
    proxy = launch.start(
        "litellm",
        *(_peer("litellm", "litellm"), "--config", config, "--port", str(port)),
        *("--host", "127.0.0.1"),
        LITELLM_LOG="ERROR",
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        DISABLE_ADMIN_UI="True",
        LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY="true",  # loopback, seconds
    )
    url = f"http://127.0.0.1:{port}"
    launch.answers(proxy, url, "/health/liveliness")
    return Chain(url, {"proxy": proxy.pid, **chain.pids}, chain.engine, chain.own)


def fastchat(launch: Launcher, tick: float, _slots: int) -> Chain:
    """Controller, API server, and a stub of a worker."""
    python = _peer("fastchat", "python")
    controller, server, worker = free_port(), free_port(), free_port()
    at = f"http://127.0.0.1:{controller}"
    first = launch.start(
        *("controller", python, "-m", "fastchat.serve.controller", "--port", str(controller)),
        LOGDIR=str(launch.scratch),
    )
    wait_for(lambda: _listens(controller), "FastChat's controller")
    stub = launch.start(
        *("stub", python, HERE / "fastchat_worker.py", "--controller", at),
        *("--port", str(worker), "--tick", str(tick)),
    )
    api = launch.start(
        *("api", python, "-m", "fastchat.serve.openai_api_server", "--port", str(server)),
        *("--controller-address", at),
        LOGDIR=str(launch.scratch),
    )
    url = f"http://127.0.0.1:{server}"
    wait_for(lambda: _listens(worker), "FastChat's worker")
    launch.answers(api, url, "/v1/models")
    return Chain(url, {"controller": first.pid, "api": api.pid, "worker": stub.pid})


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


CHAINS = {
    "bare": bare,
    "queueserve": queueserve,
    "smg": smg,
    "vllm-router": vllm_router,
    "fastchat": fastchat,
    "litellm": litellm,
}
