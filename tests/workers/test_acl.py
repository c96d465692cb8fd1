"""The users of docs/redis-users.acl: all that the code does is allowed, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis as sync_redis
from msgspec.structs import replace

from queueserve.dead import forget
from queueserve.dead import read as read_dead
from queueserve.protocol import ModelCard
from queueserve.queue.connection import open_redis
from queueserve.queue.consumer import Consumer
from queueserve.queue.directory import Directory, announce
from queueserve.queue.functions import Functions
from queueserve.queue.keys import Keys
from queueserve.queue.orders import Orders, Unload, give
from queueserve.queue.preflight import check_at_start
from queueserve.queue.producer import Limits
from queueserve.queue.responses import ResponseStore, StoredResponse
from queueserve.queue.tasks import end
from queueserve.status import read as read_status
from workers.engines.fake import FakeEngine

USERS = Path("docs/redis-users.acl")
MODEL = "smollm2-135m-instruct"
NAMES = ("queueserve-api", "queueserve-worker", "queueserve-operator")


def commands_of(line: str) -> set[str]:
    return set(re.findall(r"\+([a-z|]+)", line))


@pytest.fixture(params=["valkey", "redis-server"])
def server(request, start_redis, pytestconfig, tmp_path):
    """A server with the users of the file; `url` gives the URL of one of them."""
    binary = request.getfixturevalue("tls_binary") if request.param == "redis-server" else None
    file = tmp_path / "users.acl"
    shipped = (pytestconfig.rootpath / USERS).read_text().replace(MODEL, "m")
    file.write_text(
        shipped.replace("user default reset off", "user default reset on nopass +@all ~* &*")
    )
    started = start_redis("--aclfile", str(file), binary=binary)
    lines = {line.split()[1]: line for line in shipped.splitlines()}

    def url(user: str) -> str:
        password = re.search(r">(\S+)", lines[user])[1]
        return f"redis://{user}:{password}@127.0.0.1:{started.port}/0"

    with sync_redis.Redis(port=started.port, decode_responses=True) as admin:
        while True:
            assert started.process.poll() is None, "it does not know a command of the file"
            with contextlib.suppress(sync_redis.RedisError):
                admin.ping()
                break
        anybody = f"redis://127.0.0.1:{started.port}/0"
        yield SimpleNamespace(url=url, admin=admin, any_user=anybody, lines=lines)


@pytest.fixture
def redis_url(server):
    """What workers of the `house` get."""
    return server.url("queueserve-worker")


async def everything(house, read, server) -> None:
    """All that API servers, workers and operators do, each as its own user."""
    api = server.url("queueserve-api")
    await check_at_start(api)
    other = type(house)(api, house._stack)
    plane = await other.plane(limits=Limits(max_queue=2))
    await house.until(lambda: loaded(server.admin), above=0)
    await by_hand(server)
    await responses_and_orders(server)
    _, stop = await house.worker(FakeEngine(slots=1, tick=0.005))
    assert len((await read(await plane.owner.open(house.job())))[1]) == 40
    await plane.directory.list()
    moving = await plane.owner.open(house.job(sampling={"max_tokens": 200}))

    async def leave() -> None:
        stop.set()
        await house.worker(FakeEngine(slots=1, tick=0.005))

    assert len((await read(moving, after=5, then=leave))[1]) == 200
    running = await plane.owner.open(house.job(sampling={"max_tokens": 4000}))
    await anext(running)
    plane.owner._reconcile_all()  # asks how it stands, and for what was lost
    waiting = await plane.owner.open(house.job(grace=0.1))
    await waiting.aclose()
    await running.aclose()
    await house.until(lambda: settled(server.admin), equal=0)


async def loaded(admin) -> int:
    return len(admin.function_list())


async def settled(admin) -> int:
    return admin.zcard("qs:{m}:due")


async def by_hand(server) -> None:
    """What comes up only when much goes wrong: a job that ends its workers, one that is refused."""
    keys_of = server.admin.keys
    async with (
        open_redis(server.url("queueserve-api")) as api,
        open_redis(server.url("queueserve-worker")) as worker,
    ):
        await announce(worker, KEYS, [CARD])
        said = (*("j", "a", 2_000_000, 1, b"{}", "d", 8, "t", 1, 1, 60_000_000, 60_000_000, 0, 3),)
        functions, theirs = Functions(api), Functions(worker)
        await functions.call("submit", "qs:{m}", *said, 9, 9, "", 0, 0, "1")
        for n in range(3):
            consumer = Consumer(theirs, KEYS, "m", f"w{n}", heartbeat_timeout=60.0)
            await consumer.register(slots=2, speed=1.0, about={"host": "h"})
            await consumer.heartbeat(steps=1, rate=5.0)
            await functions.call("reap", "qs:{m}", 2_000_000, "a", f"w{n}")
            epoch = server.admin.hget("qs:{m}:job:j", "epoch")
            await functions.call("resume", "qs:{m}", "j", epoch, "a", "{}", 60_000_000)
        await functions.call("cancel", "qs:{m}", "never seen", "", "")
        brief = ("k", "b", 1000, 1, *said[4:])  # an API server that expires after a millisecond
        await functions.call("submit", "qs:{m}", *brief, 9, 9, "", 0, 0, "1")
        await asyncio.sleep(0.01)
        await theirs.call("reap", "qs:{m}", 2_000_000, "", "")
        for redis in (api, worker):
            await redis.ping()  # what a subscription does in a silence
    assert keys_of("qs:{m}:dead*")
    operator = server.url("queueserve-operator")
    assert (await read_status(operator, "qs:")).models
    assert len(await read_dead(operator, "qs:", None)) == 1
    assert await forget(operator, "qs:", None) == 1
    server.admin.delete("qs:{m}:apis")


async def responses_and_orders(server) -> None:
    async with (
        open_redis(server.url("queueserve-api")) as api,
        open_redis(server.url("queueserve-worker")) as worker,
    ):
        where = {"redis_url": server.url("queueserve-api"), "ttl": 60, "limit": 300}
        store = ResponseStore(Functions(api), KEYS, **where)
        for name in ("r1", "r2", "r3"):
            told = {"response": "{}", "input": "[]", "pool": "m", "digest": "d" * 100}
            await store.create("t", StoredResponse(id=name, status="queued", **told))
        await store.write("t", "r3", frames=[b"frame"])
        async with store.log("t", "r3") as log:
            assert (await log.after(-1, wait=1)).frames == (b"frame",)
        await store.touch("t", ["r3"])
        await store.has_owner(await store.get("t", "r3"))
        assert await store.delete("t", "r3")

        async def obey(_order) -> str:
            return "done"

        listening = asyncio.create_task(Orders(worker, KEYS, "host-1", obey).run())
        while not server.admin.pubsub_channels("qs:orders:*"):  # noqa: ASYNC110 - it is in Redis
            await asyncio.sleep(0.01)
        operator = server.url("queueserve-operator")
        assert await give(operator, "qs:", "host-1", Unload("m"), within=60) == "done"
        await end({listening})


async def test_all_that_is_done_is_allowed_and_nothing_else(house, read, server):
    server.admin.acl_log_reset()
    server.admin.config_resetstat()
    await everything(house, read, server)
    denied = {(entry["username"], entry["object"]) for entry in server.admin.acl_log()}
    assert denied == set()
    used = {name.removeprefix("cmdstat_") for name in server.admin.info("commandstats")}
    for name in NAMES:
        assert commands_of(server.lines[name]) - used - {"select"} == set(), name


KEYS = Keys()
CARD = ModelCard(name="m", pool="m", context_length=9, engine="e")
FORBIDDEN = {
    "queueserve-worker": [
        ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("SCAN", "0"), ("ACL", "LIST"),
        ("FUNCTION", "LOAD", "#!lua name=x\n"), ("EVAL", "return 1", "0"), ("MONITOR",),
        ("GET", "other"), ("HGETALL", "other:{m}:job:j"), ("HGETALL", "qs:{stored}:response:t:r"),
        ("DEL", "other"), ("SUBSCRIBE", "qs:reply:api"), ("PUBLISH", "other", "x"),
        ("SHUTDOWN",), ("CLIENT", "KILL", "TYPE", "normal"), ("SREM", "qs:pools", "n"),
        ("DEL", "qs:pools"), ("EXPIRE", "qs:pools", "1"), ("SADD", "qs:{m}:x", "n"),
    ],
    "queueserve-api": [
        ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("ACL", "LIST"), ("GET", "other"),
        ("HGETALL", "other"), ("FUNCTION", "FLUSH"), ("EVAL", "return 1", "0"),
        ("SUBSCRIBE", "other"), ("PUBLISH", "other", "x"), ("BLMPOP", "1", "1", "qs:x", "LEFT"),
    ],
    "queueserve-operator": [
        ("SADD", "qs:pools", "b"), ("FCALL", "x", "0"), ("PUBLISH", "qs:reply:a", "x"),
        ("HGETALL", "other"), ("FLUSHALL",),
    ],
}  # fmt: skip


@pytest.mark.parametrize("user", FORBIDDEN)
def test_what_is_forbidden(server, user):
    with sync_redis.Redis.from_url(server.url(user)) as client:
        for command in FORBIDDEN[user]:
            with pytest.raises(sync_redis.exceptions.NoPermissionError):
                client.execute_command(*command)


async def test_a_worker_of_one_pool_cannot_touch_another(server):
    with sync_redis.Redis.from_url(server.url("queueserve-worker")) as client:
        client.hget("qs:{m}:job:j", "body")
        client.publish("qs:{m}:control:w", "x")
        for command in (
            ("HGETALL", "qs:{n}:job:j"),
            ("PUBLISH", "qs:{n}:control:w", "x"),
            ("FCALL", "x", "1", "qs:{n}"),
            ("HSET", "qs:{n}:cards", "n", "x"),
        ):
            with pytest.raises(sync_redis.exceptions.NoPermissionError):
                client.execute_command(*command)


async def test_a_worker_of_one_pool_cannot_take_the_name_of_another(server):
    async with (
        open_redis(server.url("queueserve-api")) as api,
        open_redis(server.url("queueserve-worker")) as worker,
        open_redis(server.any_user) as other,
    ):
        await announce(other, KEYS, [replace(CARD, name="n", pool="n")])
        await announce(worker, KEYS, [CARD, replace(CARD, name="n")])
        assert (await Directory(api, KEYS).find("n")).pool == "n"


async def test_a_worker_waits_for_an_api_server_that_loads_the_functions(house, server, read):
    joining = asyncio.create_task(house.worker())
    await asyncio.sleep(0.5)
    assert server.admin.function_list() == []
    plane = await type(house)(server.url("queueserve-api"), house._stack).plane()
    await joining
    assert len((await read(await plane.owner.open(house.job())))[1]) == 40
