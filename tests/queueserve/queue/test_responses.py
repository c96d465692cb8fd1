"""The store of responses: tenants, bounds, and logs that are read while they grow."""

from __future__ import annotations

import asyncio

import pytest

from queueserve.errors import InvalidRequestError, QueueFullError
from queueserve.queue.responses import Events, ResponseStore, StoredResponse

LIMIT = 10_000


def response(id_="resp_1", status="completed", **fields):
    return StoredResponse(**{"id": id_, "status": status, "response": "{}", "input": "[]"} | fields)


@pytest.fixture
def store(functions, keys, redis_url):
    return ResponseStore(functions, keys, redis_url=redis_url, ttl=60, limit=LIMIT)


async def test_keys_of_lua_and_python_are_equal(functions, keys):
    stored = keys.stored
    derived = {
        stored.response("t", "r"): ("response", "t:r"),
        stored.events("t", "r"): ("events", "t:r"),
        stored.index("t"): ("index", "t"),
        stored.sizes("t"): ("sizes", "t"),
        stored.bytes: ("bytes",),
    }
    for expected, parts in derived.items():
        assert (await functions.call("key", stored.root, *parts)).decode() == expected


async def test_a_response_comes_back_as_it_was_until_it_is_deleted(store):
    made = response(
        chain=("a", "b"), pool="m", job="j", api="x", end_by=9, input='["é"]', digest="d"
    )
    assert await store.create("t", made)
    assert await store.get("t", made.id) == made
    assert await store.delete("t", made.id)
    assert await store.get("t", made.id) is None
    assert not await store.delete("t", made.id)


async def test_an_id_is_taken_once_and_a_tenant_does_not_see_anothers(store):
    assert await store.create("t", response())
    assert not await store.create("t", response(response="[]"))
    assert await store.create("other", response(response="[1]"))
    assert (await store.get("t", "resp_1")).response == "{}"
    assert await store.get("third", "resp_1") is None
    assert not await store.delete("third", "resp_1")


async def test_a_response_ends_once(store):
    await store.create("t", response(status="in_progress"))
    assert await store.write("t", "resp_1", fields={"status": "completed", "response": "[1]"})
    assert not await store.write("t", "resp_1", fields={"status": "failed", "response": "[2]"})
    ended = await store.get("t", "resp_1")
    assert (ended.status, ended.response) == ("completed", "[1]")
    assert not await store.write("t", "not_there", frames=[b"x"])


async def test_everything_lives_as_long_as_it_was_told(store, redis, keys):
    await store.create("t", response(status="in_progress"))
    await store.write("t", "resp_1", frames=[b"x"])
    found = await redis.keys("*stored*")
    assert len(found) == 5
    assert all([0 < await redis.ttl(key) <= 60 for key in found])


async def test_what_expires_is_not_counted_any_more(functions, keys, redis, redis_url):
    short = ResponseStore(functions, keys, redis_url=redis_url, ttl=0.05, limit=LIMIT)
    store = ResponseStore(functions, keys, redis_url=redis_url, ttl=60, limit=LIMIT)
    await store.create("t", response("kept"))
    before = await redis.hget(keys.stored.bytes, "*")
    await short.create("t", response("gone", input="x" * 1000))
    await asyncio.sleep(0.1)
    assert await short.get("t", "gone") is None
    await store.touch("t", ["kept"])
    assert await redis.hget(keys.stored.bytes, "*") == before


async def test_past_the_limit_the_biggest_tenant_loses_its_oldest(store, redis, keys):
    await store.create("small", response("first", input="s" * 1000))
    for number in range(20):
        await store.create("big", response(f"r{number:02}", input="b" * 1000))
        assert int(await redis.hget(keys.stored.bytes, "*")) <= LIMIT
    assert await store.get("small", "first")
    left = [number for number in range(20) if await store.get("big", f"r{number:02}")]
    assert left == list(range(20 - len(left), 20))
    assert len(left) > 5


async def test_touched_responses_go_last(store):
    for name in ("a", "b"):
        await store.create("t", response(name, input="x" * 4000))
    await store.touch("t", ["a", "not_there"])
    await store.create("t", response("c", input="x" * 4000))
    assert [bool(one) for one in await store.get_all("t", ["a", "b", "c"])] == [True, False, True]


async def running(store, redis, tenant, id_, **fields):
    seconds, _ = await redis.time()
    made = response(id_, status="in_progress", job="j", end_by=seconds + 60, **fields)
    await store.create(tenant, made)


async def test_what_runs_is_never_evicted_and_what_has_no_room_beside_it_is_refused(store, redis):
    await store.create("small", response("done", input="x" * 1000))
    for number in range(2):
        await running(store, redis, "big", f"r{number}", input="x" * 4000)
    with pytest.raises(QueueFullError):
        await running(store, redis, "other", "new", input="x" * 4000)
    assert await store.get("small", "done")  # nothing was lost for what found no room
    await running(store, redis, "other", "fits", input="x" * 1000)
    found = [*await store.get_all("big", ["r0", "r1"]), await store.get("other", "fits")]
    assert all(found)
    assert await store.get("small", "done") is None
    assert await store.write("big", "r0", fields={"status": "completed"})
    await store.create("other", response("later", input="x" * 4000))
    assert await store.get("big", "r0") is None
    assert await store.get("big", "r1")


async def test_what_runs_may_grow_beyond_the_limit(store, redis):
    await store.create("t", response("done"))
    await running(store, redis, "t", "runs")
    assert await store.write("t", "runs", frames=[b"x" * LIMIT])
    assert await store.write("t", "runs", first=1, frames=[b"x"], fields={"status": "completed"})
    assert await store.get("t", "done") is None
    assert await store.get("t", "runs")
    await store.create("t", response("next"))
    assert await store.get("t", "runs") is None


async def test_what_should_have_ended_long_ago_is_evicted_like_any_other(store, redis):
    seconds, _ = await redis.time()
    lost = response("lost", status="queued", end_by=seconds - 1, input="x" * 6000)
    await store.create("t", lost)
    await store.create("t", response("new", input="x" * 6000))
    assert await store.get("t", "lost") is None


async def test_one_that_is_closed_is_ended_from_outside(store):
    await store.create("t", response(status="in_progress"))
    await store.write("t", "resp_1", frames=[b"a", b"b"])
    assert await store.close("t", "resp_1")
    assert not await store.write("t", "resp_1", first=2, frames=[b"c"], fields={"status": "x"})
    assert await store.events("t", "resp_1") == Events((b"a", b"b"), 1)
    await store.end("t", "resp_1", 2, b"end", {"status": "cancelled"})
    assert (await store.get("t", "resp_1")).status == "cancelled"
    assert await store.events("t", "resp_1") == Events((b"a", b"b", b"end"), 2)
    await store.end("t", "resp_1", 3, b"again", {"status": "failed"})
    assert (await store.get("t", "resp_1")).status == "cancelled"
    for id_ in ("resp_1", "not_there"):
        assert not await store.close("t", id_)
    await store.end("t", "not_there", 0, b"end", {"status": "cancelled"})
    assert await store.get("t", "not_there") is None


async def test_a_long_log_is_read_to_its_end(store):
    await store.create("t", response(status="in_progress"))
    frames = tuple(b"%d" % number for number in range(1200))
    await store.write("t", "resp_1", frames=frames)
    assert await store.events("t", "resp_1") == Events(frames, 1199)


async def test_what_can_never_fit_is_refused(store):
    with pytest.raises(InvalidRequestError, match="store: false"):
        await store.create("t", response(input="x" * (LIMIT + 1)))


async def test_a_log_is_read_from_anywhere_and_while_it_grows(store):
    await store.create("t", response(status="in_progress"))
    async with store.log("t", "resp_1") as log:
        assert await log.after(-1, wait=0.01) is None
        waiting = asyncio.create_task(log.after(-1, wait=10))
        await store.write("t", "resp_1", first=0, frames=[b"a", b"b"])
        some = await waiting
        assert (some.frames, some.last) == ((b"a", b"b"), 1)
        await store.write("t", "resp_1", first=1, frames=[b"b", b"c"])  # sent again, and more
        some = await log.after(0, wait=1)
        assert (some.frames, some.last) == ((b"b", b"c"), 2)
        assert await log.after(2, wait=0.01) is None


async def test_events_count_as_bytes(store, redis, keys):
    await store.create("t", response(status="in_progress"))
    before = int(await redis.hget(keys.stored.bytes, "t"))
    await store.write("t", "resp_1", frames=[b"x" * 500])
    assert int(await redis.hget(keys.stored.bytes, "t")) >= before + 500
    await store.delete("t", "resp_1")
    assert not await redis.keys("*:events:*")
    assert int(await redis.hget(keys.stored.bytes, "*")) == 0


async def test_an_owner_lives_as_long_as_the_queue_knows_it(store, redis, keys):
    seconds, _ = await redis.time()
    apis = keys.pool("m").apis
    await redis.zadd(apis, {"alive": (seconds + 9) * 1_000_000, "dead": (seconds - 9) * 1_000_000})

    async def has_owner(api, end_by):
        return await store.has_owner(response(pool="m", job="j", api=api, end_by=end_by))

    assert await has_owner("alive", seconds + 9)
    assert not await has_owner("alive", seconds - 9)
    assert not await has_owner("dead", seconds + 9)
    assert not await has_owner("unknown", seconds + 9)
