"""What can happen to a cluster, and a seeded schedule of it."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from harness.cluster import Cluster, Node, until
from harness.poison import poison_job


@dataclass(frozen=True)
class Fault:
    """A kind of fault; `weight` says how often it is drawn, `happen` whether it took effect.

    What happens `first` is part of every storm, however short.
    """

    name: str
    weight: int
    happen: Callable[[Cluster, random.Random], Awaitable[bool]]
    first: bool = False


def _some(nodes: list[Node], draw: random.Random) -> Node:
    return draw.choice(nodes)


async def _stopped(node: Node, seconds: float) -> bool:
    if not node.signal(signal.SIGSTOP):
        return False
    await asyncio.sleep(seconds)
    node.signal(signal.SIGCONT)
    return True


def _beyond(cluster: Cluster, draw: random.Random) -> float:
    """A time after which a lease is surely over."""
    return cluster.size.heartbeat * draw.uniform(1.2, 1.8)


def _within(cluster: Cluster, draw: random.Random) -> float:
    return cluster.size.heartbeat * draw.uniform(0.2, 0.7)


async def kill_worker(cluster: Cluster, draw: random.Random) -> bool:
    return _some(cluster.workers, draw).signal(signal.SIGKILL)


async def stop_worker_beyond_its_lease(cluster: Cluster, draw: random.Random) -> bool:
    return await _stopped(_some(cluster.workers, draw), _beyond(cluster, draw))


async def stop_worker_briefly(cluster: Cluster, draw: random.Random) -> bool:
    return await _stopped(_some(cluster.workers, draw), _within(cluster, draw))


async def drain_worker(cluster: Cluster, draw: random.Random) -> bool:
    return _some(cluster.workers, draw).signal(signal.SIGTERM)


async def kill_api(cluster: Cluster, draw: random.Random) -> bool:
    return _some(cluster.apis, draw).signal(signal.SIGKILL)


async def stop_api_beyond_its_lease(cluster: Cluster, draw: random.Random) -> bool:
    return await _stopped(_some(cluster.apis, draw), _beyond(cluster, draw))


async def drain_api(cluster: Cluster, draw: random.Random) -> bool:
    return _some(cluster.apis, draw).signal(signal.SIGTERM)


async def kill_redis(cluster: Cluster, _draw: random.Random) -> bool:
    await cluster.restart_redis(kill=True)
    return True


async def restart_redis(cluster: Cluster, _draw: random.Random) -> bool:
    await cluster.restart_redis(kill=False)
    return True


async def hang_redis_briefly(cluster: Cluster, draw: random.Random) -> bool:
    await cluster.hang_redis(_within(cluster, draw))
    return True


async def hang_redis(cluster: Cluster, draw: random.Random) -> bool:
    await cluster.hang_redis(draw.choice([3.0, 5.0, 8.0]))
    return True


async def hang_redis_long(cluster: Cluster, _draw: random.Random) -> bool:
    await cluster.hang_redis(20.0)
    return True


async def fill_disk(cluster: Cluster, draw: random.Random) -> bool:
    return await cluster.fill_disk(draw.uniform(0.5, 2.0) * cluster.size.heartbeat)


async def delay_link(cluster: Cluster, draw: random.Random) -> bool:
    most = draw.choice([0.02, 0.1, 0.4])
    return await draw.choice(cluster.links).delay(most, draw.uniform(1, 4))


async def cut_link(cluster: Cluster, draw: random.Random) -> bool:
    return draw.choice(cluster.links).cut()


async def hold_link(cluster: Cluster, draw: random.Random) -> bool:
    return await draw.choice(cluster.links).hold(draw.choice([_within, _beyond])(cluster, draw))


async def half_open_link(cluster: Cluster, draw: random.Random) -> bool:
    seconds = draw.choice([_within, _beyond])(cluster, draw)
    return await draw.choice(cluster.links).swallow(seconds)


async def drop_after_forwarding(cluster: Cluster, draw: random.Random) -> bool:
    return await draw.choice(cluster.links).drop_answers(draw.uniform(0.05, 0.5))


async def jump_wall_clock(cluster: Cluster, draw: random.Random) -> bool:
    hours = draw.choice([-30, -2, 2, 30])
    worker = _some(cluster.workers, draw)
    return await worker.ask(do="jump", wall=hours * 3600.0, lease=0.0) is not None


async def suspend_worker(cluster: Cluster, draw: random.Random) -> bool:
    """The lease clock jumps, as it does on a machine that was suspended."""
    ahead = _beyond(cluster, draw)
    return await _some(cluster.workers, draw).ask(do="jump", wall=ahead, lease=ahead) is not None


async def restart_all(cluster: Cluster, _draw: random.Random) -> bool:
    """Every process is told to leave, one after the other; each is back before the next one."""
    for node in cluster.nodes:
        before = node.pid
        node.signal(signal.SIGTERM)
        await until(
            lambda node=node, before=before: node.running and node.pid != before,
            f"another process in the place of {node.name}",
        )
    await cluster.restart_redis(kill=False)
    return True


FAULTS = [
    Fault("worker: kill -9", 12, kill_worker),
    Fault("worker: SIGSTOP beyond its lease", 8, stop_worker_beyond_its_lease),
    Fault("worker: SIGSTOP within its lease", 4, stop_worker_briefly),
    Fault("worker: SIGTERM", 6, drain_worker),
    Fault("worker: a job that kills it", 2, poison_job, first=True),
    Fault("worker: wall clock jumps hours", 3, jump_wall_clock),
    Fault("worker: suspended, lease clock jumps", 3, suspend_worker),
    Fault("API server: kill -9", 6, kill_api),
    Fault("API server: SIGSTOP beyond its lease", 3, stop_api_beyond_its_lease),
    Fault("API server: SIGTERM", 3, drain_api),
    Fault("all: restarted one by one", 1, restart_all),
    Fault("Redis: kill -9 and restart", 4, kill_redis),
    Fault("Redis: restart", 2, restart_redis),
    Fault("Redis: hangs within the lease", 3, hang_redis_briefly),
    Fault("Redis: hangs 3 to 8 s", 2, hang_redis),
    Fault("Redis: hangs 20 s", 1, hang_redis_long),
    Fault("Redis: disk full", 2, fill_disk),
    Fault("link: slow", 8, delay_link),
    Fault("link: cut", 8, cut_link),
    Fault("link: held, then delivered", 8, hold_link),
    Fault("link: half-open", 8, half_open_link),
    Fault("link: dropped after forwarding", 7, drop_after_forwarding),
]


class Schedule:
    """Injects faults at random moments, several at a time; the same seed gives the same order.

    Each kind comes once, in any order, until it took effect; then they are drawn by their weights.
    """

    def __init__(self, cluster: Cluster, faults: list[Fault], *, seed: int, pause: float) -> None:
        self.count = Counter(dict.fromkeys((fault.name for fault in faults), 0))  # took effect
        self.missed = 0  # those that did not: what they meant to hurt was down already
        self.failed: list[str] = []  # faults that could not be injected
        self._cluster = cluster
        self._faults = faults
        self._draw = random.Random(f"faults {seed}")
        drawn = self._draw.sample(faults, len(faults))
        self._first = sorted(drawn, key=lambda fault: fault.first)  # its last one is taken first
        self._pause = pause  # seconds between two, on average
        self._running: set[asyncio.Task[bool]] = set()

    async def run(self, most: int) -> None:
        """Until `most` faults took effect, or until cancelled; leaves none behind unhealed."""
        weights = [fault.weight for fault in self._faults]
        try:
            while self.count.total() < most:
                if self.count.total() + len(self._running) >= most:  # one of them may miss
                    await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                    continue
                await asyncio.sleep(self._draw.expovariate(1 / self._pause))
                drawn = self._draw.choices(self._faults, weights)[0]
                self.inject(self._first.pop() if self._first else drawn)
        finally:
            if running := set(self._running):
                await asyncio.shield(asyncio.wait(running))

    def inject(self, fault: Fault) -> None:
        draw = random.Random(self._draw.random())
        task = asyncio.create_task(fault.happen(self._cluster, draw), name=fault.name)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[bool]) -> None:
        self._running.discard(task)
        if task.cancelled():
            return
        if error := task.exception():
            self.failed.append(f"{task.get_name()}: {error!r}")
        if error or task.result():
            self.count[task.get_name()] += 1
        else:
            self.missed += 1
            name = task.get_name()
            if not self.count[name]:
                self._first.append(next(fault for fault in self._faults if fault.name == name))
