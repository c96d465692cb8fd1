"""A pool whose own keys are not ours any more ends its requests, and nobody else's."""

from __future__ import annotations

import asyncio

import pytest

from queueserve.errors import RedisUnavailableError, ServerExpiredError
from workers.engines.fake import FakeEngine

LONG = {"max_tokens": 4000}


@pytest.mark.parametrize("part", ["state", "queue", "apis"])
async def test_streams_of_other_models_go_on_and_the_pool_heals(house, read, part):
    await house.worker()
    await house.worker(model_names=("n",), engine=FakeEngine(tick=0.05))
    plane = await house.plane(heartbeat_timeout=4.0)
    damaged = await plane.owner.open(house.job(sampling=LONG))
    other = await plane.owner.open(house.job(pool="n", model="n", sampling=LONG))
    api, name = plane.owner.api, f"qs:{{m}}:{part}"
    await house.redis.delete(name)
    await house.redis.set(name, "a string")
    with pytest.raises(ServerExpiredError):
        await read(damaged)
    with pytest.raises(RedisUnavailableError, match="WRONGTYPE"):
        await plane.owner.open(house.job())
    had = len(other.tokens)
    async with asyncio.timeout(60):
        while len(other.tokens) < had + 40:
            await anext(other)
    assert plane.owner.api == api
    await other.aclose()
    await house.redis.delete(name)
    assert len((await read(await plane.owner.open(house.job())))[1]) == 40


async def test_the_models_of_other_pools_are_listed(house):
    await house.worker()
    await house.worker(model_names=("n",))
    plane = await house.plane()
    await house.redis.delete("qs:{m}:alive")
    await house.redis.set("qs:{m}:alive", "a string")
    assert [card.name for card in await plane.directory.list()] == ["n"]
    await house.redis.delete("qs:{m}:alive")
