"""The directory: which models are known, and which have a worker."""

from __future__ import annotations

import time

import pytest
from msgspec.structs import replace

from queueserve.encoding import encode
from queueserve.errors import ModelNotFoundError
from queueserve.protocol import ModelCard
from queueserve.queue.directory import KNOWN_FOR, MAX_NAMES, Directory, announce, known_cards
from queueserve.queue.skips import counts

CARD = ModelCard(name="m", pool="m", context_length=100, engine="fake")


@pytest.fixture
def directory(redis, keys):
    return Directory(redis, keys)


async def announced_long_ago(redis, keys, card, seconds):
    seen = int(time.time()) - seconds
    await redis.sadd(keys.pools, card.pool)
    await redis.hset(keys.pool(card.pool).cards, card.name, encode(replace(card, seen=seen)))


async def test_an_announced_model_is_found_by_every_name(redis, keys, directory):
    await announce(redis, keys, [CARD, replace(CARD, name="alias")])
    assert (await directory.find("alias")).pool == "m"
    assert (await directory.find("m")).context_length == 100
    assert directory.pools() == {"m"}


async def test_an_api_server_renews_the_set_of_pools(redis, keys, directory):
    await announce(redis, keys, [CARD])
    assert await redis.ttl(keys.pools) == -1  # a worker may not
    await directory.find("m")
    assert 6 * 86400 < await redis.ttl(keys.pools) <= 7 * 86400


async def test_an_unknown_model_is_named_with_those_that_are_known(redis, keys, directory):
    with pytest.raises(ModelNotFoundError, match=r"'x' does not exist.*: none"):
        await directory.find("x")
    await announce(redis, keys, [CARD])
    with pytest.raises(ModelNotFoundError, match=r"'x' does not exist.*: m"):
        await directory.find("x")


async def test_a_model_that_has_just_been_announced_is_found_at_once(redis, keys, directory):
    await announce(redis, keys, [CARD])
    await directory.find("m")
    await announce(redis, keys, [replace(CARD, name="new")])
    assert (await directory.find("new")).name == "new"


async def test_only_models_with_a_worker_are_listed(redis, keys, directory, pool):
    await announce(redis, keys, [CARD, replace(CARD, name="a"), replace(CARD, name="b", pool="b")])
    assert await directory.list() == []
    await pool.register("w")
    assert [card.name for card in await directory.list()] == ["a", "m"]
    await pool.drain("w", leave=True)
    assert await directory.list() == []
    assert (await directory.find("m")).name == "m"  # a request for it waits for the next worker


async def test_a_model_is_forgotten_some_time_after_its_last_worker(redis, keys, directory):
    await announced_long_ago(redis, keys, CARD, KNOWN_FOR - 60)
    assert (await directory.find("m")).name == "m"
    await announced_long_ago(redis, keys, CARD, KNOWN_FOR + 60)
    assert await known_cards(redis, keys) == []


@pytest.mark.parametrize("hours", [-30, 30])
async def test_a_worker_whose_clock_is_wrong_does_not_hide_its_model(
    redis, keys, directory, monkeypatch, hours
):
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + hours * 3600)
    await announce(redis, keys, [CARD])
    monkeypatch.undo()
    assert (await directory.find("m")).name == "m"
    (card,) = await known_cards(redis, keys)
    assert abs(card.seen - right()) < 60


async def test_an_entry_that_is_not_ours_is_skipped(redis, keys, directory, caplog):
    await announce(redis, keys, [CARD])
    before = counts["card"]
    await redis.hset(keys.pool("m").cards, "broken", b"{")
    assert (await directory.find("m")).name == "m"
    assert counts["card"] == before + 1
    assert f"skipped a card ({before + 1} so far): of m" in caplog.text


async def test_more_cards_than_workers_write_hide_their_own_pool_only(
    redis, keys, directory, caplog
):
    names = [f"n{number}" for number in range(MAX_NAMES)]
    cards = [CARD, replace(CARD, name="z", pool="z")]
    await announce(redis, keys, cards + [replace(CARD, name=name, pool="z") for name in names[1:]])
    assert (await directory.find(names[-1])).pool == "z"
    await announce(redis, keys, [replace(CARD, name=names[0], pool="z")])
    assert [card.name for card in await known_cards(redis, keys)] == ["m"]
    assert f"of z: it has more than {MAX_NAMES}" in caplog.text


async def test_the_models_are_no_leak(redis, keys):
    await announce(redis, keys, [CARD])
    assert await redis.ttl(keys.pool("m").cards) > KNOWN_FOR


async def test_a_pool_cannot_take_the_name_of_another(redis, keys, directory):
    await announce(redis, keys, [CARD, replace(CARD, name="z", pool="z")])
    await announce(redis, keys, [replace(CARD, name="z"), replace(CARD, name="a", pool="a")])
    await announce(redis, keys, [replace(CARD, name="m", pool="a")])
    assert (await directory.find("z")).pool == "z"
    assert (await directory.find("m")).pool == "m"


async def test_a_card_that_says_another_pool_is_skipped(redis, keys, directory, caplog):
    await announce(redis, keys, [CARD])
    await redis.hset(
        keys.pool("m").cards, "x", encode(replace(CARD, name="x", pool="z", seen=2**40))
    )
    with pytest.raises(ModelNotFoundError):
        await directory.find("x")
    assert "is said to be of the pool 'z'" in caplog.text


async def test_cards_that_are_no_hash_hide_their_own_pool_only(redis, keys, directory):
    await announce(redis, keys, [CARD, replace(CARD, name="z", pool="z")])
    await redis.set(keys.pool("z").cards, "a string")
    await redis.sadd(keys.pools, b"\xff}")
    assert (await directory.find("m")).name == "m"
    with pytest.raises(ModelNotFoundError):
        await directory.find("z")
