"""Models that come and go while their process runs, on an operator's order."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from queueserve.errors import EngineError, RedisUnavailableError
from queueserve.queue.orders import Load, OrderError, Unload, give
from workers.engines.fake import FakeEngine
from workers.host import Host
from workers.incarnation import process_name
from workers.settings import WorkerSettings
from workers.worker import Worker

BOUND = 60.0
CHANNEL = f"qs:orders:{process_name()}"


class Broken(FakeEngine):
    async def start(self, sink):
        raise EngineError("the weights are damaged")


@pytest.fixture
async def hosted(redis_url):
    """Start a host with these workers; it makes fake ones, and a broken one for `broken`."""
    async with contextlib.AsyncExitStack() as stack:

        def worker(*names, engine=FakeEngine) -> Worker:
            settings = WorkerSettings(
                redis_url=redis_url, model_names=names, heartbeat_timeout=15.0, grace=0.2
            )
            return Worker(engine(tick=0.005), settings)

        def make(order: Load) -> Worker:
            if order.model_path == "nowhere":
                raise EngineError("there is no file nowhere")
            engine = Broken if order.model_path == "broken" else FakeEngine
            return worker(*(order.model_names or (order.model_path,)), engine=engine)

        async def start(*workers):
            stop = asyncio.Event()
            host = Host(workers, make, redis_url=redis_url, prefix="qs:")
            task = asyncio.create_task(host.run(stop))

            async def end():
                stop.set()
                async with asyncio.timeout(BOUND):
                    await asyncio.wait({task})

            stack.push_async_callback(end)
            return task, stop

        start.worker = worker
        yield start


@pytest.fixture
def order(redis_url, redis):
    async def ask(wanted, on=None):
        async with asyncio.timeout(BOUND):
            while not (await redis.pubsub_numsub(CHANNEL))[0][1]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return await give(redis_url, "qs:", on or process_name(), wanted, within=BOUND)

    return ask


async def alive(redis, pool) -> int:
    return await redis.zcard(f"qs:{{{pool}}}:alive")


async def test_a_model_is_loaded_and_unloaded_while_the_others_run(hosted, order, redis):
    task, _ = await hosted(hosted.worker("a"))
    assert "serves b, c" in await order(Load("x", ("b", "c")))
    assert await alive(redis, "b") == 1
    assert "has unloaded c" in await order(Unload("c"))
    assert (await alive(redis, "a"), await alive(redis, "b")) == (1, 0)
    assert "serves b" in await order(Load("b"))  # and it may come back
    assert not task.done()


async def test_the_worker_may_be_named_by_its_id(hosted, order, redis):
    await hosted(hosted.worker("a"))
    await order(Load("b"))
    (worker,) = await redis.zrange("qs:{b}:alive", 0, -1)
    assert "has unloaded b" in await order(Unload("b"), on=worker.decode())


async def test_a_process_without_a_model_waits_for_one(hosted, order, redis):
    task, _ = await hosted(hosted.worker("a"))
    await order(Unload("a"))
    assert not task.done()
    assert "serves b" in await order(Load("b"))


@pytest.mark.parametrize(
    "wanted, why",
    [
        (Load("nowhere"), "there is no file nowhere"),
        (Load("broken"), "the weights are damaged"),
        (Load("x", ("b", "a")), "a is served by this process already"),
        (Unload("z"), "does not serve z: it serves a"),
    ],
)
async def test_what_cannot_be_done_is_an_answer_and_harms_nobody(hosted, order, redis, wanted, why):
    task, _ = await hosted(hosted.worker("a"))
    with pytest.raises(OrderError) as caught:
        await order(wanted)
    assert why in caught.value.message
    assert not task.done()
    assert await alive(redis, "a") == 1


async def test_a_worker_that_is_not_there_is_said_to_be_so(redis_url):
    with pytest.raises(OrderError) as caught:
        await give(redis_url, "qs:", "box-7", Unload("a"), within=1)
    assert "No worker process 'box-7'" in caught.value.message
    with pytest.raises(RedisUnavailableError):
        await give("redis://127.0.0.1:1", "qs:", "box-7", Unload("a"), within=1)


@pytest.mark.parametrize("answer", [b"junk", b"[]", b'{"ok": true}'])
async def test_what_is_no_answer_is_said_to_be_none(redis_url, redis, answer):
    async with redis.pubsub() as worker:
        await worker.subscribe("qs:orders:host-1")
        giving = asyncio.create_task(give(redis_url, "qs:", "host-1", Unload("m"), within=BOUND))
        async for message in worker.listen():
            if message["type"] == "message":
                break
        name = json.loads(message["data"])["id"]
        await redis.publish(f"qs:reply:order-{name}", answer)
        with pytest.raises(OrderError, match="no answer to an order"):
            await giving


async def test_what_is_no_order_is_skipped(hosted, order, redis, skipped):
    task, _ = await hosted(hosted.worker("a"))
    await order(Load("b"))
    junk = (
        b"",
        b"{}",
        b"[]",
        b'{"id": 1, "do": "run"}',
        b'{"id": 1, "do": "load"}',
        b"\xff",
    )
    for message in junk:
        await redis.publish(CHANNEL, message)
    assert "has unloaded b" in await order(Unload("b"))
    assert not task.done()
    skipped.assert_is(order=len(junk))


async def test_a_first_model_that_fails_ends_the_process_with_its_reason(hosted):
    task, _ = await hosted(hosted.worker("a"), hosted.worker("b", engine=Broken))
    async with asyncio.timeout(BOUND):
        with pytest.raises(EngineError, match="damaged"):
            await task


async def test_at_the_end_all_models_leave(hosted, order, redis):
    task, stop = await hosted(hosted.worker("a"))
    await order(Load("b"))
    stop.set()
    async with asyncio.timeout(BOUND):
        await task
    assert (await alive(redis, "a"), await alive(redis, "b")) == (0, 0)
