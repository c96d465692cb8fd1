"""An engine that is lost while its worker lives: the worker leaves, or ends, and its jobs go on."""

from __future__ import annotations

import asyncio

import pytest

from workers.engines.base import EngineDiedError, Fallible
from workers.engines.fake import FakeEngine
from workers.settings import WorkerSettings
from workers.worker import Worker


class Mortal(FakeEngine):
    """A fake engine that can be lost, for a time or for good."""

    def __init__(self):
        super().__init__(tick=0.01)
        self.gone = asyncio.Event()
        self.here = asyncio.Event()
        self.here.set()
        self.dead = False

    def lose(self):
        self.here.clear()
        self.gone.set()

    def recover(self):
        self.gone.clear()
        self.here.set()

    async def lost(self):
        await self.gone.wait()
        if self.dead:
            raise EngineDiedError("the engine's process has ended")
        return "nobody answers"

    async def back(self):
        await self.here.wait()


def alive(house):
    return lambda: house.redis.zcard("qs:{m}:alive")


async def test_jobs_go_on_elsewhere_while_an_engine_is_lost_and_it_comes_back(house, read):
    engine = Mortal()
    assert isinstance(engine, Fallible)
    await house.worker(engine)
    plane = await house.plane()
    undisturbed, _, _ = await read(await plane.owner.open(house.job()))

    async def disturb():
        engine.lose()
        await house.until(alive(house), equal=0)
        await house.worker(FakeEngine(tick=0))

    text, tokens, end = await read(await plane.owner.open(house.job()), after=5, then=disturb)
    assert text == undisturbed
    assert (len(tokens), end.finish_reason) == (40, "length")
    engine.recover()
    await house.until(alive(house), equal=2)


async def test_an_engine_that_comes_back_while_its_worker_drains_does_not_join_again(
    house, redis_url, read
):
    engine = Mortal()
    settings = WorkerSettings(redis_url=redis_url, model_names=("m",), heartbeat_timeout=2.0)
    stop = asyncio.Event()
    running = asyncio.create_task(Worker(engine, settings).run(stop))
    await house.until(alive(house), equal=1)
    plane = await house.plane()

    async def disturb():
        stop.set()
        await house.until(lambda: house.redis.zcard("qs:{m}:free"), equal=0)
        engine.lose()
        engine.recover()
        await asyncio.wait_for(running, 60)
        assert await house.redis.zcard("qs:{m}:alive") == 0
        await house.worker(FakeEngine(tick=0))

    _, tokens, _ = await read(await plane.owner.open(house.job()), after=5, then=disturb)
    assert len(tokens) == 40


@pytest.mark.parametrize("draining", [False, True])
async def test_a_worker_ends_with_its_reason_when_its_engine_is_dead(
    house, redis_url, read, draining
):
    engine = Mortal()
    settings = WorkerSettings(
        redis_url=redis_url, model_names=("m",), heartbeat_timeout=2.0, grace=600.0
    )
    worker = Worker(engine, settings)
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(stop))
    await house.until(alive(house), equal=1)
    plane = await house.plane()

    async def disturb():
        if draining:
            stop.set()
            await house.until(lambda: house.redis.zcard("qs:{m}:free"), equal=0)
        engine.dead = True
        engine.lose()
        with pytest.raises(EngineDiedError, match="has ended"):
            await asyncio.wait_for(running, 60)
        await house.worker(FakeEngine(tick=0))

    _, tokens, end = await read(await plane.owner.open(house.job()), after=5, then=disturb)
    assert (len(tokens), end.finish_reason) == (40, "length")
