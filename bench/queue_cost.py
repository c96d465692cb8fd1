"""What the queue itself costs: at any depth, with any number of workers, and when nothing happens.

Costs are Redis' own: microseconds that it spends in a function call (INFO commandstats), so what
else runs on the machine hardly shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import sys
import time
from typing import Any

import redis as sync_redis
from chains import HERE, MODEL, Launcher, free_port
from processes import wait_for
from redis.asyncio import Redis

from queueserve.protocol import Job
from queueserve.queue.connection import open_redis
from queueserve.queue.consumer import Claim, Consumer, Finish
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys
from queueserve.queue.producer import Limits, Producer

_LOOK = 0.5  # seconds
_CALLS = 500  # measured at each depth
_PARTS = 10
_AT_ONCE = 5_000  # jobs that one call submits
_FILL = """
local function fill(keys, args)
  local given = { unpack(args, 3) }
  for number = tonumber(args[1]), tonumber(args[1]) + tonumber(args[2]) - 1 do
    given[1] = string.format('job-%08d', number)
    submit(keys, given)
  end
end
redis.register_function('qs_fill_@', fill)
"""  # many submits in one call of a function: a million from here would take minutes
_TIMEOUT = 3600.0  # s: nothing here beats
_NO_LIMITS = Limits(max_queue=10_000_000, max_queue_per_tenant=10_000_000)


class _Captured(Functions):
    """Keeps the arguments of a call, so that they can be used a million times."""

    args: tuple[Any, ...] = ()

    async def call(self, _function: str, _root: str, *args: Any) -> Any:
        """Note the arguments and answer as Redis would."""
        self.args = args
        return [b"new", b"queued", 0, b"", 1, b""]


class _Bench:
    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.functions = Functions(redis, extra=_FILL)
        self.keys = Keys()
        self.api = Producer(
            self.functions, self.keys, heartbeat_timeout=_TIMEOUT, limits=_NO_LIMITS
        )
        self._number = 0

    def job(self) -> Job:
        self._number += 1
        return Job(
            id=f"job-{self._number:08d}",
            pool=MODEL,
            model=MODEL,
            kind="completion",
            prompt="x" * 100,
            queue_timeout=_TIMEOUT,
            timeout=_TIMEOUT,
        )

    async def submit(self) -> None:
        await self.api.submit(self.job(), "api", new_api=True)

    async def fill(self, jobs: int) -> None:
        captured = _Captured(self.redis)
        producer = Producer(captured, self.keys, heartbeat_timeout=_TIMEOUT, limits=_NO_LIMITS)
        await producer.submit(self.job(), "api", new_api=True)
        root, left = self.keys.pool(MODEL).root, jobs
        while left > 0:
            count = min(left, _AT_ONCE)
            await self.functions.call("fill", root, self._number + 1, count, *captured.args)
            self._number += count
            left -= count

    async def worker(self, number: int, *, slots: int) -> Consumer:
        worker = Consumer(
            self.functions, self.keys, MODEL, f"worker-{number}", heartbeat_timeout=_TIMEOUT
        )
        await worker.register(slots=slots, speed=1.0, about={})
        return worker

    async def cost(self, calls: int, work: Any) -> float:
        """Microseconds of Redis per call of `work`: the median of some parts.

        What else runs on the machine now and then takes the processor away from Redis.
        """
        parts = []
        for _ in range(_PARTS):
            before, count = await self._spent(), max(1, calls // _PARTS)
            for _ in range(count):
                await work()
            parts.append((await self._spent() - before) / count)
        return statistics.median(parts)

    async def _spent(self) -> float:
        stats = await self.redis.info("commandstats")
        return float(stats.get("cmdstat_fcall", {}).get("usec", 0))

    async def finish_next(self, workers: list[Consumer]) -> None:
        """End one running job of a worker, by turns; the head of the queue takes its slot."""
        worker = workers.pop(0)
        workers.append(worker)
        leases = await self.redis.hgetall(self.keys.pool(MODEL).lease(worker.worker))
        for job, epoch in leases.items():
            end = Finish(Claim(job.decode(), int(epoch)).job, int(epoch), "done", b"{}")
            await self.redis.execute_command("FCALL", *worker.finish_args(end))
            return


async def depths(url: str, sizes: list[int]) -> list[dict[str, float]]:
    """Cost of a submit, and of an end with the dispatch of the next, by the number of jobs."""
    redis = open_redis(url)
    bench = _Bench(redis)
    await redis.config_set("appendonly", "no")  # a million jobs a minute are not what is measured
    workers = [await bench.worker(0, slots=1)]
    await bench.submit()  # fills the slot
    rows, there = [], 0
    for size in sizes:
        await bench.fill(size - there)
        submit = await bench.cost(_CALLS, bench.submit)
        dispatch = await bench.cost(_CALLS, lambda: bench.finish_next(workers))
        rows.append({"waiting": size, "submit_us": submit, "dispatch_us": dispatch})
        there = size
    await redis.aclose()
    return rows


async def pools(url: str, sizes: list[int]) -> list[dict[str, float]]:
    """Cost of a submit that is dispatched at once, and of an end, by the number of workers."""
    redis = open_redis(url)
    bench = _Bench(redis)
    rows: list[dict[str, float]] = []
    workers: list[Consumer] = []
    for size in (sizes[0], *sizes):  # the first row is a warm-up
        workers += [await bench.worker(n, slots=1000) for n in range(len(workers), size)]
        submit = await bench.cost(_CALLS, bench.submit)
        busy = [
            one for one in workers if await redis.hlen(bench.keys.pool(MODEL).lease(one.worker))
        ]
        finish = await bench.cost(len(busy), lambda: bench.finish_next(busy))  # noqa: B023
        rows.append({"workers": size, "submit_us": submit, "finish_us": finish})
    await redis.aclose()
    return rows[1:]


def idle(launch: Launcher, seconds: float) -> dict[str, float]:
    """Commands a second that clients send with one API server and ten idle workers."""
    store = launch.redis()
    for number in range(10):
        own = launch.scratch / f"own{number}"
        worker = (sys.executable, HERE / "fake_worker.py", "--redis-url", store.url, "--own", own)
        launch.start(f"worker{number}", *worker)
    port = free_port()
    serve = (sys.executable, "-m", "queueserve.cli", "serve", "--redis-url", store.url)
    api = launch.start("api", *serve, "--port", str(port))
    launch.answers(api, f"http://127.0.0.1:{port}", "/ready")
    with sync_redis.Redis.from_url(store.url) as client:
        wait_for(lambda: client.zcard(f"qs:{{{MODEL}}}:alive") == 10, "ten workers")  # noqa: PLR2004
        time.sleep(2)
        reads = client.info("stats")["total_reads_processed"]
        commands = _monitored(store.port or 0, seconds)
        reads = client.info("stats")["total_reads_processed"] - reads
    return {"commands_per_s": commands / seconds, "reads_per_s": reads / seconds}


def _monitored(port: int, seconds: float) -> int:
    """Count the commands of clients; what functions call inside is not one."""
    seen, until = b"", time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port), timeout=_LOOK) as monitor:
        monitor.sendall(b"MONITOR\r\n")
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                seen += monitor.recv(65536)
    lines = seen.split(b"\r\n")[1:-1]  # the first is the answer
    return sum(b" lua]" not in line.partition(b'"')[0] for line in lines)


def run_depths(launch: Launcher, sizes: list[int]) -> list[dict[str, float]]:
    """`depths` on a server of its own."""
    return asyncio.run(depths(launch.redis().url, sizes))


def run_pools(launch: Launcher, sizes: list[int]) -> list[dict[str, float]]:
    """`pools` on a server of its own."""
    return asyncio.run(pools(launch.redis().url, sizes))
