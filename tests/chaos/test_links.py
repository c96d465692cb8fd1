"""The harness' links: what they own, they let go of."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from harness.links import Link


async def test_a_link_that_is_closed_while_it_dials_leaves_nothing_behind():
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # nobody accepts them, so the next one is not answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        before = asyncio.all_tasks()
        link = Link("link", seed=1)
        await link.start()
        link.target = full.getsockname()[1]
        _, client = await asyncio.open_connection("127.0.0.1", link.port)
        async with asyncio.timeout(10):
            while not link._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await link.aclose()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        assert not link.connections
        client.transport.abort()
