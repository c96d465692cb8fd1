"""A worker's way out, where what it should carry cannot leave any more."""

from __future__ import annotations

import asyncio

import pytest

from queueserve.protocol import Delta
from queueserve.queue.connection import open_redis
from queueserve.queue.functions import Functions
from queueserve.queue.publisher import Publisher

EVENT = Delta("j", 1, 0, 0, "text", (7,))


@pytest.fixture
async def publisher(keys):
    """Publishes to the Redis at an address, on a lease that is certain or not; and runs."""
    clients, running = [], []

    def start(url, *, confirmed):
        clients.append(open_redis(url))
        made = Publisher(
            clients[-1],
            Functions(clients[-1]),
            keys,
            confirmed=lambda: confirmed,
            acknowledged=lambda _: None,
        )
        running.append(asyncio.create_task(made.run()))
        return made

    yield start
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize("confirmed", [False, True])
async def test_events_that_are_lost_leave_nothing_to_wait_for(
    publisher, redis_url, closed_port, confirmed
):
    """Nothing leaves on a lease that is not certain, and nothing without a Redis."""
    url = f"redis://127.0.0.1:{closed_port}/0" if confirmed else redis_url
    lossy = publisher(url, confirmed=confirmed)
    lossy.publish("api", EVENT)
    async with asyncio.timeout(60):
        await lossy.flushed()
