"""The function library: loading it, its clock, and the keys it derives."""

from __future__ import annotations

import pytest

from queueserve.errors import InvalidRequestError, RedisUnavailableError
from queueserve.queue.connection import open_redis
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys, checked_pool


async def test_keys_of_lua_and_python_are_equal(functions):
    pool = Keys().pool("m/7b")
    derived = {
        pool.state: ("state",),
        pool.fair: ("fair",),
        pool.waiting: ("waiting",),
        pool.queue: ("queue",),
        pool.alive: ("alive",),
        pool.free: ("free",),
        pool.alone: ("alone",),
        pool.reserved: ("reserved",),
        pool.dead: ("dead",),
        pool.dead_letter("j"): ("dead", "j"),
        pool.due: ("due",),
        pool.apis: ("apis",),
        pool.worker("w"): ("worker", "w"),
        pool.lease("w"): ("lease", "w"),
        pool.inbox("w"): ("inbox", "w"),
        pool.control("w"): ("control", "w"),
        pool.job("j"): ("job", "j"),
        pool.by_api("a"): ("by_api", "a"),
    }
    for expected, parts in derived.items():
        assert (await functions.call("key", pool.root, *parts)).decode() == expected


async def test_a_flushed_redis_gets_the_library_again(functions, redis):
    await functions.call("reap", "qs:{m}", 15_000_000, "", "")
    await redis.function_flush()
    verdict, *_ = await functions.call("reap", "qs:{m}", 15_000_000, "", "")
    assert verdict == b"ok"


async def test_two_versions_work_side_by_side(functions, redis):
    other = Functions(redis)
    assert other.name("submit") != functions.name("submit")
    await functions.call("reap", "qs:{m}", 15_000_000, "", "")
    await other.call("reap", "qs:{m}", 15_000_000, "", "")
    assert len(await redis.function_list()) == 2


async def test_a_redis_that_is_away_is_a_clear_error():
    redis = open_redis("redis://127.0.0.1:1")
    with pytest.raises(RedisUnavailableError, match="Redis does not answer"):
        await Functions(redis).call("reap", "qs:{m}", 15_000_000, "", "")
    await redis.aclose()


@pytest.mark.parametrize("pool", ["", "a}b", "{", "x" * 201, "a\nb"])
def test_a_name_that_would_split_the_keys_is_refused(pool):
    with pytest.raises(InvalidRequestError):
        checked_pool(pool)
