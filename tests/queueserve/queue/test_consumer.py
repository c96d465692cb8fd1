"""The worker's claims: hints, and the jobs behind them."""

from __future__ import annotations

import asyncio

import pytest

from queueserve.errors import ProtocolError
from queueserve.protocol import Continuation
from queueserve.queue.connection import open_blocking_redis
from queueserve.queue.consumer import Assignment, Claim, blocking_line


@pytest.fixture
async def blocking(redis_url):
    client = open_blocking_redis(redis_url)
    yield blocking_line(client)
    await client.aclose()


async def test_a_claim_gives_all_that_was_dispatched_in_order(pool, blocking):
    await pool.register("w", slots=3)
    for name in ("j3", "j1", "j2"):
        await pool.submit(name)
    claims = await pool.consumer("w").claim(blocking)
    assert claims == [
        Claim("j3", pool.time),
        Claim("j1", pool.time + 1),
        Claim("j2", pool.time + 2),
    ]


async def test_a_waiting_worker_is_woken_by_a_dispatch(pool, blocking):
    await pool.register("w")
    waiting = asyncio.create_task(pool.consumer("w").claim(blocking))
    await asyncio.sleep(0)
    await pool.submit("j")
    assert await waiting == [Claim("j", pool.time)]  # one that is not woken ends without any


async def test_the_jobs_behind_claims_come_in_their_order(pool):
    await pool.register("w", slots=2)
    await pool.submit("j1", "a", prompt="one")
    await pool.submit("j2", "b", prompt="two")
    claims = [Claim("j2", await pool.epoch("j2")), Claim("j1", await pool.epoch("j1"))]
    found = await pool.consumer("w").fetch(claims)
    assert found == [
        Assignment(pool.job("j2", prompt="two"), pool.time + 1, "b", None, cancelled=False),
        Assignment(pool.job("j1", prompt="one"), pool.time, "a", None, cancelled=False),
    ]


async def test_a_hint_brings_along_what_running_its_job_needs(pool, blocking):
    await pool.register("w")
    await pool.submit("j", "b", prompt="one")
    (claim,) = await pool.consumer("w").claim(blocking)
    assert [claim.carried] == await pool.consumer("w").fetch([claim])
    assert claim.carried.api == "b"


async def test_what_is_large_or_goes_on_from_somewhere_is_fetched(pool, blocking):
    await pool.register("w")
    await pool.submit("large", prompt="x" * 20_000)
    (claim,) = await pool.consumer("w").claim(blocking)
    assert claim.carried is None
    await pool.finish("w", "large")
    at = Continuation(tokens=(5,), chars=2, prompt_hash="", fingerprint="")
    await pool.submit("goes on", resume=at)
    (claim,) = await pool.consumer("w").claim(blocking)
    assert claim.carried is None
    (found,) = await pool.consumer("w").fetch([claim])
    assert found.resume == at


async def test_a_body_in_a_hint_that_cannot_be_read_is_an_error_of_its_own(pool, blocking):
    await pool.redis.rpush(pool.keys.inbox("w"), "7 j\na\nnonsense", "8 k\na", "9 l\n\n")
    broken, *short = await pool.consumer("w").claim(blocking)
    assert isinstance(broken.carried, ProtocolError)
    assert [claim.carried for claim in short] == [None, None]


@pytest.mark.parametrize("gone", ["finished", "orphaned", "dispatched anew", "unknown"])
async def test_a_claim_that_is_out_of_date_gives_nothing(pool, gone):
    await pool.register("w")
    await pool.submit("j")
    claim = Claim("j", await pool.epoch("j"))
    if gone == "finished":
        await pool.finish("w", "j")
    elif gone == "unknown":
        await pool.redis.delete(pool.keys.job("j"))
    else:
        await pool.reap(dead="w")
    if gone == "dispatched anew":
        await pool.resume("j", await pool.epoch("j"))
        await pool.register("w")
        assert await pool.worker_of("j") == "w"
    assert await pool.consumer("w").fetch([claim]) == [None]


async def test_a_body_that_cannot_be_read_is_an_error_of_its_own(pool):
    await pool.register("w", slots=2)
    await pool.submit("j1")
    await pool.submit("j2")
    await pool.redis.hset(pool.keys.job("j1"), "body", b"{")
    claims = [Claim(name, await pool.epoch(name)) for name in ("j1", "j2")]
    broken, whole = await pool.consumer("w").fetch(claims)
    assert isinstance(broken, ProtocolError)
    assert isinstance(whole, Assignment)


async def test_what_is_no_hint_is_skipped(pool, blocking):
    await pool.redis.rpush(pool.keys.inbox("w"), "nonsense", b"\xff\xfe", "12 j")
    assert await pool.consumer("w").claim(blocking) == [Claim("j", 12)]


async def test_a_resync_goes_to_the_worker(pool):
    async with pool.listening(pool.consumer("w").control_channel) as ear:
        await pool.producer.resync(pool.job("j"), "a", "w", 3)
        assert await ear.heard() == [b"resync 3 a j"]
