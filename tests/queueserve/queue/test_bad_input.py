"""Whatever else writes below our prefix: it is skipped and counted, and everything else goes on."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from redis.exceptions import ResponseError

from queueserve.encoding import decode_card, decode_continuation, decode_events, decode_job, encode
from queueserve.errors import ProtocolError, QueueServeError, RedisUnavailableError
from queueserve.protocol import Inputs, Job, ModelCard
from queueserve.queue.connection import open_blocking_redis
from queueserve.queue.directory import announce, known_cards
from queueserve.queue.exchange import Line
from queueserve.queue.inspect import snapshot
from queueserve.queue.producer import Holder
from queueserve.queue.recovery import declare_dead
from queueserve.queue.replies import events_of

CARD = ModelCard(name="m", pool="m", context_length=100, engine="fake")
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
json = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
junk = st.binary(max_size=200)


def dumps(value) -> bytes:
    import json as text  # noqa: PLC0415

    return text.dumps(value).encode("utf-8", "surrogatepass")


TAGS = ["started", "delta", "progress", "finished", "answered", "failed", "orphaned"]
rows = st.lists(json, max_size=9) | st.tuples(
    st.sampled_from(TAGS), st.just("j"), st.integers(-3, 3), *([json] * 4)
)
messages = junk | json.map(dumps) | st.lists(rows).map(dumps)


@given(messages)
@QUICK
def test_a_message_of_events_is_read_or_skipped(message):
    assert isinstance(events_of(message), list)


def test_a_message_that_is_far_too_long_is_skipped():
    with pytest.raises(ProtocolError, match="too many"):
        decode_events(b"[" + b" " * (64 * 1024 * 1024) + b"]")


WHOLE = {
    decode_card: encode(CARD),
    decode_job: b'{"id":"j","pool":"m","model":"m","kind":"chat","sampling":{"max_tokens":3}}',
    decode_continuation: b'{"tokens":[1],"chars":1,"prompt_hash":"a","fingerprint":"f"}',
}


@pytest.mark.parametrize("decode", WHOLE)
@given(data=st.data())
@QUICK
def test_a_body_is_read_or_refused(decode, data):
    import json as text  # noqa: PLC0415

    whole = text.loads(WHOLE[decode])
    name = data.draw(st.sampled_from(sorted(whole)))
    bodies = [
        data.draw(junk),
        dumps(data.draw(json)),
        dumps(whole | {name: data.draw(json)}),
        dumps({key: value for key, value in whole.items() if key != name}),
    ]
    for body in bodies:
        with contextlib.suppress(ProtocolError):
            decode(body)


@pytest.mark.parametrize(
    "field, value", [("context_length", b'"many"'), ("seen", b'"x"'), ("name", b"5")]
)
async def test_a_card_whose_fields_are_of_another_type_is_skipped(
    redis, keys, skipped, field, value
):
    await announce(redis, keys, [CARD])
    ours = b'"%s":%s' % (field.encode(), dumps(getattr(CARD, field)))
    body = encode(CARD).replace(ours, b'"%s":%s' % (field.encode(), value))
    assert body != encode(CARD)
    await redis.hset(keys.pool("m").cards, "bad", body)
    for _ in range(2):
        assert [card.name for card in await known_cards(redis, keys)] == ["m"]
    skipped.assert_is(card=2)


# Keys of another type, each in the place of one of ours


@pytest.fixture
async def busy(pool, redis, keys):
    """A pool with a job that runs and one that waits; `works` shows that it still does its work."""
    await announce(redis, keys, [CARD])
    await pool.register("w")
    await pool.submit("runs")
    await pool.submit("waits")

    async def works() -> None:
        for _ in range(3):
            await pool.reap()
        await pool.register("fresh", slots=5)
        await pool.submit("later")
        assert await pool.state("later") == "running"
        await pool.beat("fresh")
        assert await pool.finish(await pool.worker_of("later"), "later") == "accepted"
        await pool.reap(dead="fresh")

    return SimpleNamespace(pool=pool, works=works)


OURS = ["job:runs", "job:waits", "worker:w", "lease:w", "inbox:w", "by_api:a"]


@pytest.mark.parametrize("key", OURS)
@pytest.mark.parametrize("kind", ["string", "other"])
async def test_a_foreign_key_costs_its_own_job_or_worker_only(busy, redis, key, kind):
    pool, name = busy.pool, f"{busy.pool.root}:{key}"
    await redis.delete(name)
    if kind == "string":
        await redis.set(name, b"\xff not ours")
    else:
        await redis.xadd(name, {"not": "ours"})
    for call in (
        lambda: pool.beat("w"),
        lambda: pool.finish("w", "runs", epoch=pool.time),
        lambda: pool.cancel("waits"),
        lambda: pool.drain("w"),
        lambda: pool.submit("waits"),
    ):
        with contextlib.suppress(QueueServeError, ResponseError):
            await call()
    await pool.wait(700)  # everything is due, everybody has expired
    await busy.works()
    left = await redis.zrange(pool.keys.due, 0, -1)
    assert set(left) <= {b"later"}


@pytest.mark.parametrize("kind", ["completion", "tokenize"])
@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("spoiled", ["worker", "lease", "slots"])
async def test_a_worker_that_cannot_be_read_takes_nothing_and_others_go_on(
    pool, redis, spoiled, taken, kind
):
    await pool.register("spoiled", "whole", slots=2)
    for n in range(4 if taken else 0):
        await pool.submit(f"before{n}")
    if spoiled == "slots":
        await redis.hset(pool.keys.worker("spoiled"), "slots", "many")
    else:
        name = {"worker": pool.keys.worker, "lease": pool.keys.lease}[spoiled]
        await redis.set(name("spoiled"), "not ours")
    jobs = {f"job{n}" for n in range(9)}
    for job in sorted(jobs):
        await pool.submit(job, kind=kind)
    await pool.beat("whole")
    await pool.reap(api="a")
    ran = {job for job in jobs if await pool.state(job) == "running"}
    free = 0 if taken else 2
    assert len(ran) == (9 if kind == "tokenize" else free)  # a light one needs no slot
    assert {await pool.worker_of(job) for job in ran} <= {"whole"}
    assert ran <= {job.decode() for job in await redis.zrange(pool.keys.due, 0, -1)}


async def test_a_head_of_the_queue_that_is_not_ours_does_not_stop_the_pool(busy, redis):
    await redis.set(busy.pool.keys.job("waits"), "not ours")
    await busy.works()


async def test_a_reserved_worker_that_cannot_be_read_does_not_stop_the_pool(busy, redis):
    await redis.hset(busy.pool.keys.reserved, "w", "")
    await redis.set(busy.pool.keys.worker("w"), "not ours")
    await redis.delete(busy.pool.keys.lease("w"))
    await busy.works()


async def test_what_functions_skip_is_counted_and_said_by_those_who_reap(busy, redis, skipped):
    await redis.set(busy.pool.keys.job("runs"), "a string")
    await busy.pool.wait(700)
    await busy.works()
    count, last = await redis.hmget(busy.pool.keys.state, "skipped", "skipped_last")
    assert int(count) >= 1
    assert b"WRONGTYPE" in last
    (line,) = [line for line in skipped.lines if "not ours" in line]
    assert "of m that" in line
    assert "runs: WRONGTYPE" in line
    for more in (7, 8):  # it is said again only if there is more, and once a minute at most
        await redis.hset(busy.pool.keys.state, "skipped", more)
        await busy.pool.reap()
    assert len([line for line in skipped.lines if "not ours" in line]) == 1


@pytest.mark.parametrize("value", [b"", b"x", b"\xff", b"1e400", b"-1"])
@pytest.mark.parametrize("field", ["seen", "epoch", "V:8", "rate", "rated", "best", "turn"])
async def test_a_foreign_value_in_the_state_does_not_stop_the_pool(busy, redis, field, value):
    await redis.hset(busy.pool.keys.state, field, value)
    await busy.pool.wait(3)
    await busy.works()


async def test_members_that_nobody_knows_do_not_stop_the_pool(busy, redis):
    pool = busy.pool
    for name in (pool.keys.queue, pool.keys.due, pool.keys.alive, pool.keys.free, pool.keys.apis):
        await redis.zadd(name, {b"\xff\xfe": -5, "unknown": 5})
    await redis.zadd(pool.keys.alone, {"unknown": 1})
    await redis.hset(pool.keys.reserved, "unknown", "x")
    await busy.works()
    assert await pool.states("runs") == ["running"]


@pytest.mark.parametrize("part", ["queue", "state", "due"])
async def test_a_pool_whose_own_keys_are_foreign_is_a_clear_error_and_others_work(
    pool, redis, functions, part
):
    await redis.set(f"{pool.root}:{part}", "a string")
    with pytest.raises(RedisUnavailableError, match="WRONGTYPE"):
        await pool.submit("j")
    verdict, *_ = await functions.call("reap", "qs:{n}", 15_000_000, "", "")
    assert verdict == b"ok"


# The readers in Python


async def test_leases_that_are_not_ours_are_skipped(pool, redis, skipped):
    await pool.register("w", slots=9)
    await pool.submit("j")
    strange = {"e": b"", "a": "", "b": "x y", "c": "9" * 30, "d": b"\xff cancel"}
    for job in strange:
        await redis.hset(pool.keys.job(job), "a", 1)
    await redis.hset(pool.keys.lease("w"), mapping=strange)
    assert set((await pool.beat("w")).leases) == {"j"}
    skipped.assert_is(lease=len(strange))


@given(hints=st.lists(junk, max_size=5))
@QUICK
def test_hints_are_read_or_skipped(redis_url, hints):
    async def claim() -> None:
        from queueserve.queue.consumer import Consumer, blocking_line  # noqa: PLC0415
        from queueserve.queue.functions import Functions  # noqa: PLC0415
        from queueserve.queue.keys import Keys  # noqa: PLC0415

        blocking = open_blocking_redis(redis_url)
        try:
            await blocking.rpush("qs:{m}:inbox:w", *hints, b"7 j")
            consumer = Consumer(Functions(blocking), Keys(), "m", "w", heartbeat_timeout=9)
            assert (await consumer.claim(blocking_line(blocking)))[-1].job == "j"
        finally:
            await blocking.aclose()

    asyncio.run(claim())


async def test_the_claim_of_a_foreign_key_is_refused_and_the_others_are_served(pool, redis):
    await pool.register("w", slots=2)
    await pool.submit("j1")
    await pool.submit("j2")
    claims = await pool.consumer("w").claim(Line(redis))
    await redis.set(pool.keys.job("j1"), "a string")
    broken, whole = await pool.consumer("w").fetch(claims)
    assert isinstance(broken, ProtocolError)
    assert whole.job.id == "j2"
    assert await pool.finish("w", "j1", epoch=claims[0].epoch, outcome="failed") == "stale"
    assert await pool.leases("w") == {"j2"}


async def test_who_runs_a_job_whose_key_is_foreign_is_unknown(pool, redis):
    await pool.register("w")
    await pool.submit("j1")
    await redis.set(pool.keys.job("j2"), "a string")
    await redis.hset(pool.keys.job("j3"), mapping={"state": b"\xff", "epoch": "x"})
    found = await pool.producer.holders([pool.job(name) for name in ("j1", "j2", "j3", "j4")])
    assert found == [Holder("running", pool.time, "w"), None, None, None]


@given(result=junk | json.map(dumps))
@QUICK
def test_a_stored_result_is_read_or_refused(result):
    from queueserve.queue.producer import _standing  # noqa: PLC0415

    for answer, inputs in product(
        (
            [b"exists", b"done", 1, b"w", 0, result],
            [b"exists", b"failed", 1, b"w", 0, result],
            [b"exists", result, 1, b"", 0],
        ),
        (None, Inputs()),
    ):
        job = Job(id="j", pool="m", model="m", kind="chat", inputs=inputs)
        with contextlib.suppress(ProtocolError):
            _standing(job, answer)


async def test_status_shows_what_can_be_read(busy, redis, keys, skipped):
    pool = busy.pool
    await pool.register("x", "y")
    await redis.hset(pool.keys.worker("w"), mapping={"slots": "many", "host": b"\xff"})
    await redis.delete(pool.keys.worker("x"))
    await redis.set(pool.keys.worker("x"), "a string")
    await redis.hset(pool.keys.job("waits"), "submitted", "long ago")
    (model,) = (await snapshot(redis)).models
    assert [worker.id for worker in model.workers] == ["y"]
    skipped.assert_is(registration=2)
    assert await declare_dead(redis, keys, "nobody", heartbeat_timeout=9) == 0


async def test_status_and_the_reaping_of_a_process_pass_over_a_pool_that_is_not_ours(
    pool, redis, keys
):
    await pool.register("host-1-w")
    await announce(redis, keys, [replace(CARD, name="a", pool="a"), CARD])
    await redis.set(keys.pool("a").alive, "a string")
    assert [model.name for model in (await snapshot(redis)).models] == ["m"]
    assert await declare_dead(redis, keys, "host-1", heartbeat_timeout=9) == 1
