"""What is far too large, whoever wrote it, is refused or skipped: nothing dies, others go on."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from queueserve.encoding import MAX_CARD, MAX_MESSAGE, encode
from queueserve.errors import ContextLengthExceededError
from queueserve.protocol import ModelCard

LARGE = MAX_MESSAGE + 1024  # Redis itself cuts off who subscribes to so much
HEARTBEAT = 60.0  # seconds: all of it, and its sender, are in one busy process here


class Going:
    """A worker, an API server, and a stream that runs while something large arrives."""

    def __init__(self, house, read, redis) -> None:
        self.house = house
        self.read = read
        self.redis = redis

    async def start(self) -> None:
        await self.house.worker(heartbeat_timeout=HEARTBEAT)
        self.plane = await self.house.plane(heartbeat_timeout=HEARTBEAT)
        (self.worker,) = await self.house.redis.zrange("qs:{m}:alive", 0, -1)
        self.stream = await self.open(400)

    async def open(self, tokens: int):
        return await self.plane.owner.open(self.house.job(sampling={"max_tokens": tokens}))

    async def goes_on(self) -> None:
        """Both what runs and what comes is answered, by the same incarnation of the worker."""
        assert len((await self.read(self.stream))[1]) == 400
        assert len((await self.read(await self.open(40)))[1]) == 40
        assert await self.house.redis.zrange("qs:{m}:alive", 0, -1) == [self.worker]


@pytest.fixture
async def going(house, read, redis):
    going = Going(house, read, redis)
    await going.start()
    return going


def prompt(size: int):
    return ({"role": "user", "content": "x " * (size // 2)},)


async def test_a_job_that_no_model_can_hold_is_refused_to_its_client(going):
    stream = await going.plane.owner.open(going.house.job(messages=prompt(2 * 1024 * 1024)))
    with pytest.raises(ContextLengthExceededError):
        await going.read(stream)
    await going.goes_on()


async def test_the_body_of_a_job(going, functions, skipped):
    body = encode(going.house.job(id="large", messages=prompt(LARGE)))
    await functions.call(
        "submit", "qs:{m}", "large", going.plane.owner.api, 2_000_000, 0, body, "d", 8, "t", 1, 1,
        60_000_000, 60_000_000, 0, 3, 100, 100, b"", 0,
    )  # fmt: skip

    async def failed() -> bool:
        return await going.redis.hget("qs:{m}:job:large", "state") == b"failed"

    await going.house.until(failed, equal=True)
    await going.goes_on()
    skipped.assert_is(job=1)
    assert any("too many" in line for line in skipped.lines)


async def test_a_card(going, skipped):
    card = ModelCard(name="n", pool="m", context_length=9, engine="x" * (MAX_CARD + 1))
    await going.redis.hset("qs:{m}:cards", "n", encode(card))
    await going.redis.hset("qs:{m}:cards", "o", encode(replace(card, engine="x" * 10_000_000)))
    before = await sent(going.redis)
    assert [found.name for found in await going.plane.directory.list()] == ["m"]
    assert await sent(going.redis) - before < 5_000_000  # it was not even fetched
    await going.goes_on()
    assert skipped.counts["card"] >= 2


async def sent(redis) -> int:
    """Bytes that Redis has sent to anybody."""
    return (await redis.info("stats"))["total_net_output_bytes"]


async def test_a_hint(going, skipped):
    await going.redis.rpush(f"qs:{{m}}:inbox:{going.worker.decode()}", b"7 " + b"j" * LARGE)
    await going.goes_on()
    skipped.assert_is(hint=1)


@pytest.mark.parametrize("size", [1024 * 1024, LARGE])
async def test_a_control_message(going, skipped, size):
    channel = f"qs:{{m}}:control:{going.worker.decode()}"
    unwanted = await going.open(4000)
    await going.redis.publish(channel, b"cancel 17 " + b"j" * size)
    await going.goes_on()
    if size < LARGE:
        skipped.assert_is(control_message=1)
    await going.house.until(lambda: listeners(going.redis, channel), equal=1)
    await unwanted.aclose()  # the next one is heard
    await going.house.until(lambda: going.redis.zcard("qs:{m}:due"), equal=0)


async def test_a_message_on_the_reply_channel(going, skipped):
    await going.redis.publish(f"qs:reply:{going.plane.owner.api}", b"[" + b" " * (LARGE - 1) + b"]")
    await going.goes_on()


async def listeners(redis, channel: str) -> int:
    return (await redis.pubsub_numsub(channel))[0][1]
