"""Responses that are kept: gone on from, looked up, run in the background, replayed."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

from queueserve.errors import QueueServeError
from queueserve.queue.owner import Owner
from queueserve.queue.responses import ResponseStore

EVENT = TypeAdapter(ResponseStreamEvent)
GREEDY = {"model": "m", "temperature": 0, "extra_body": {"ignore_eos": True}}
LONG = GREEDY | {"max_output_tokens": 2000}


@pytest.fixture
async def responses(api, worker):
    await worker()
    return api.client.responses


@pytest.fixture
async def slow(api, worker):
    """The client's responses, on a worker with which a background response takes its time."""
    await worker(tick=0.02)
    return api.client.responses


async def ended(responses, id_):
    async with asyncio.timeout(20):
        while True:
            response = await responses.retrieve(id_)
            Response.model_validate_json(response.to_json(), strict=True)
            if response.status not in ("queued", "in_progress"):
                return response
            await asyncio.sleep(0.02)


async def collected(stream):
    events = [event async for event in stream]
    for event in events:
        EVENT.validate_json(event.to_json(), strict=True)
    return events


@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_is_kept_until_it_is_deleted(responses, stream):
    made = await responses.create(input="Hello", max_output_tokens=20, stream=stream, **GREEDY)
    if stream:
        made = (await collected(made))[-1].response
    assert made.to_dict()["store"] is True
    assert (await responses.retrieve(made.id)).to_dict() == made.to_dict()
    await responses.delete(made.id)
    with pytest.raises(openai.NotFoundError) as caught:
        await responses.retrieve(made.id)
    assert caught.value.code == "response_not_found"
    with pytest.raises(openai.NotFoundError):
        await responses.delete(made.id)


async def test_a_response_that_shall_not_be_stored_is_not(responses, redis):
    made = await responses.create(input="Hello", max_output_tokens=5, store=False, **GREEDY)
    assert made.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        await responses.retrieve(made.id)
    assert not await redis.keys("*stored*")


async def test_a_response_goes_on_from_the_ones_before(api, responses):
    options = GREEDY | {"max_output_tokens": 20}
    first = await responses.create(input="One", instructions="Be brief.", **options)
    second = await responses.create(input="Two", previous_response_id=first.id, **options)
    third = await responses.create(
        input=[{"role": "user", "content": "Three"}], previous_response_id=second.id, **options
    )
    assert third.previous_response_id == second.id
    said = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Two"},
        {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "Three"},
    ]
    chat = await api.client.chat.completions.create(messages=said, max_tokens=20, **GREEDY)
    assert third.output_text == chat.choices[0].message.content
    await responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as caught:
        await responses.create(input="Four", previous_response_id=third.id, **options)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "response_not_found")


async def test_a_response_that_is_not_there_cannot_be_gone_on_from(responses):
    with pytest.raises(openai.NotFoundError) as caught:
        await responses.create(input="Hello", previous_response_id="resp_nothing", **GREEDY)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "response_not_found")


async def test_input_items_come_in_pages(responses):
    items = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "d"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "e"}]},
    ]
    made = await responses.create(input=items, max_output_tokens=2, **GREEDY)
    page = await responses.input_items.list(made.id, order="asc", limit=2)
    raw = httpx.Response(200, json=page.to_dict()).text
    ResponseItemList.model_validate_json(raw, strict=True)
    assert page.has_more
    found = [item async for item in page]
    assert [item.type for item in found] == [
        *("message", "message", "function_call", "function_call_output", "reasoning")
    ]
    assert (found[0].content[0].text, found[3].output) == ("a", "d")
    newest_first = [item.id async for item in responses.input_items.list(made.id, limit=3)]
    assert newest_first == [item.id for item in reversed(found)]
    with pytest.raises(openai.BadRequestError):
        await responses.input_items.list(made.id, after="nope")


async def test_a_background_response_goes_on_without_a_reader(slow):
    made = await slow.create(input="Hello", max_output_tokens=30, background=True, **GREEDY)
    assert (made.status, made.background, made.output) == ("queued", True, [])
    done = await ended(slow, made.id)
    assert (done.status, done.usage.output_tokens) == ("incomplete", 30)
    assert len(done.output_text) > 30


async def test_a_background_stream_can_be_left_and_read_again_from_anywhere(slow):
    options = GREEDY | {"max_output_tokens": 30}
    stream = await slow.create(input="Hello", background=True, stream=True, **options)
    begun = [await anext(stream) for _ in range(6)]
    await stream.close()
    id_ = begun[0].response.id
    assert [event.type for event in begun[:3]] == [
        *("response.created", "response.queued", "response.in_progress")
    ]
    rest = await collected(await slow.retrieve(id_, stream=True, starting_after=5))
    events = [*begun, *rest]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert rest[-1].type == "response.incomplete"
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == rest[-1].response.output_text == (await slow.retrieve(id_)).output_text
    async with slow.stream(response_id=id_, starting_after=5) as helped:
        assert [event.sequence_number async for event in helped] == list(range(6, len(events)))
    again = await collected(await slow.retrieve(id_, stream=True))
    assert [event.to_dict() for event in again[6:]] == [event.to_dict() for event in rest]


async def test_a_background_response_is_cancelled(slow, redis, until):
    stream = await slow.create(input="Hello", background=True, stream=True, **LONG)
    events = [await anext(stream) for _ in range(6)]
    id_ = events[0].response.id
    cancelled = await slow.cancel(id_)
    Response.model_validate_json(cancelled.to_json(), strict=True)
    assert cancelled.status == "cancelled"
    assert (await slow.cancel(id_)).to_dict() == cancelled.to_dict()
    events += await collected(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[-1].type, events[-1].code) == ("error", "cancelled")
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert said
    assert cancelled.output_text == said
    assert cancelled.output[0].status == "incomplete"
    (job,) = await redis.keys("qs:{m}:job:*")
    await until(lambda: _is(redis, job, b"cancelled"))
    assert (await slow.retrieve(id_)).status == "cancelled"


async def test_any_api_server_shows_and_cancels_what_another_one_runs(
    slow, serve, redis_url, redis, until
):
    server = await serve(redis_url=redis_url)
    made = await slow.create(input="Hello", background=True, **LONG)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as other:
        stream = await other.responses.retrieve(made.id, stream=True)
        assert [(await anext(stream)).sequence_number for _ in range(6)] == list(range(6))
        assert (await other.responses.cancel(made.id)).status == "cancelled"
        assert (await collected(stream))[-1].code == "cancelled"
    (job,) = await redis.keys("qs:{m}:job:*")
    await until(lambda: _is(redis, job, b"cancelled"))
    assert (await slow.retrieve(made.id)).status == "cancelled"


async def test_a_background_response_that_is_deleted_stops(slow, redis, until):
    made = await slow.create(input="Hello", background=True, **LONG)
    await slow.delete(made.id)
    (job,) = await redis.keys("qs:{m}:job:*")
    await until(lambda: _is(redis, job, b"cancelled"))
    with pytest.raises(openai.NotFoundError):
        await slow.retrieve(made.id)


async def _longer(redis, log, length):
    return await redis.xlen(log) > length


async def test_the_stream_of_what_was_cancelled_ends_at_once(slow, monkeypatch):
    monkeypatch.setattr("queueserve.api.replay._LOOK", 1e6)
    made = await slow.create(input="Hello", background=True, **LONG)
    await slow.cancel(made.id)
    for after in ({}, {"starting_after": 1000}):
        events = await collected(await slow.retrieve(made.id, stream=True, **after))
        assert (events[-1].type, events[-1].code) == ("error", "cancelled")


async def _is(redis, job, state):
    return await redis.hget(job, "state") == state


async def test_only_what_runs_in_the_background_is_cancelled_or_streamed_again(responses):
    made = await responses.create(input="Hello", max_output_tokens=2, **GREEDY)
    for call in (responses.cancel(made.id), responses.retrieve(made.id, stream=True)):
        with pytest.raises(openai.BadRequestError):
            await call
    with pytest.raises(openai.BadRequestError) as caught:
        await responses.create(input="Hello", background=True, store=False, **GREEDY)
    assert caught.value.param == "background"


async def test_a_background_response_whose_job_fails_is_failed(responses):
    made = await responses.create(model="m", input="Hello " * 5000, background=True)
    failed = await ended(responses, made.id)
    assert (failed.status, failed.error.code) == ("failed", "invalid_prompt")
    assert "context length" in failed.error.message
    events = await collected(await responses.retrieve(made.id, stream=True))
    assert [event.type for event in events] == [
        *("response.created", "response.queued", "response.failed")
    ]


async def test_an_idempotency_key_finds_the_background_response(slow, redis):
    options = GREEDY | {"max_output_tokens": 30, "background": True}
    options["extra_headers"] = {"Idempotency-Key": "k"}
    first = await slow.create(input="Hello", **options)
    second = await slow.create(input="Hello", **options)
    assert first.id == second.id
    with pytest.raises(openai.ConflictError):
        await slow.create(input="Else", **options)
    done = await ended(slow, first.id)
    third = await slow.create(input="Hello", **options)
    assert third.to_dict() == done.to_dict()
    assert len(await redis.keys("qs:{m}:job:*")) == 1


async def test_an_idempotency_key_stands_for_one_request_at_each_path(responses):
    options = GREEDY | {"extra_headers": {"Idempotency-Key": "k"}}
    made = await responses.create(input="Hello", max_output_tokens=2, **options)
    counted = await responses.input_tokens.count(
        model="m", input="Hello", extra_headers=options["extra_headers"]
    )
    assert made.usage.input_tokens == counted.input_tokens


async def test_requests_at_once_with_one_idempotency_key_share_the_response(slow, redis):
    options = GREEDY | {"max_output_tokens": 30, "background": True}
    options["extra_headers"] = {"Idempotency-Key": "k"}
    made = await asyncio.gather(*[slow.create(input="Hello", **options) for _ in range(5)])
    assert len({response.id for response in made}) == 1
    done = await ended(slow, made[0].id)
    assert (done.status, done.usage.output_tokens) == ("incomplete", 30)
    assert len(await redis.keys("qs:{m}:job:*")) == 1


async def test_a_background_response_whose_job_cannot_be_opened_is_not_kept(
    slow, redis, monkeypatch
):
    async def full(*_):
        raise QueueServeError("No job is opened.")

    with monkeypatch.context() as patch:
        patch.setattr(Owner, "open", full)
        with pytest.raises(openai.InternalServerError):
            await slow.create(input="Hello", background=True, **GREEDY)
    assert not await redis.keys("*stored*response:*")


async def test_a_retry_waits_until_the_first_request_has_its_job(slow, redis, until, monkeypatch):
    going, open_ = asyncio.Event(), Owner.open

    async def full(*_):
        await going.wait()
        monkeypatch.setattr(Owner, "open", open_)
        raise QueueServeError("No job is opened.")

    monkeypatch.setattr(Owner, "open", full)
    options = GREEDY | {"max_output_tokens": 5, "background": True}
    options["extra_headers"] = {"Idempotency-Key": "k"}
    first = asyncio.create_task(slow.create(input="Hello", **options))
    await until(lambda: redis.keys("*stored*response:*"))
    retry = asyncio.create_task(slow.create(input="Hello", **options))
    done, _ = await asyncio.wait([retry], timeout=0.3)
    assert not done  # or it would tell of a response that may never be
    going.set()
    with pytest.raises(openai.InternalServerError):
        await first
    assert (await ended(slow, (await retry).id)).status == "incomplete"


async def test_a_cancelled_response_is_told_even_if_there_is_no_room_to_keep_it(slow, monkeypatch):
    made = await slow.create(input="Hello", background=True, **LONG)
    end = ResponseStore.end

    async def evicted(self, tenant, response, *rest):
        await end(self, tenant, response, *rest)
        await self.delete(tenant, response)

    monkeypatch.setattr(ResponseStore, "end", evicted)
    cancelled = await slow.cancel(made.id)
    assert (cancelled.id, cancelled.status) == (made.id, "cancelled")


async def test_no_room_beside_what_runs_is_a_429(serve, worker, redis_url):
    await worker(tick=0.02)
    server = await serve(redis_url=redis_url, max_response_bytes=12_000)
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:
        made = []

        async def fill():
            for _ in range(10):
                one = await client.responses.create(input="x" * 900, background=True, **LONG)
                made.append(one.id)

        with pytest.raises(openai.RateLimitError) as caught:
            await fill()
        assert int(caught.value.response.headers["retry-after"]) >= 1
        kept = await client.responses.create(input="x" * 900, max_output_tokens=2, **GREEDY)
        assert kept.to_dict()["store"] is False
        for id_ in made:
            assert (await client.responses.cancel(id_)).status == "cancelled"


async def test_a_server_that_stops_fails_its_background_responses(serve, worker, redis_url, api):
    await worker(tick=0.05)
    server = await serve(redis_url=redis_url, shutdown_grace=0.1)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        made = await client.responses.create(input="Hello", background=True, **LONG)
    await server.stop()
    failed = await api.client.responses.retrieve(made.id)
    assert (failed.status, failed.error.code) == ("failed", "server_error")
    assert "shut down" in failed.error.message


async def test_a_background_response_without_an_owner_is_failed(slow, redis, keys, until):
    """The owner's registration is gone, as after a kill: what it wrote last must not stay."""
    made = await slow.create(input="Hello", background=True, **LONG)
    log = keys.stored.events("default", made.id)
    await until(lambda: _longer(redis, log, 8))
    record = keys.stored.response("default", made.id)
    await redis.hset(record, "api", "a-server-that-died")
    failed = await slow.retrieve(made.id)
    assert (failed.status, failed.error.code) == ("failed", "server_error")
    assert "gone" in failed.error.message
    assert failed.output_text
    events = await collected(await slow.retrieve(made.id, stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].sequence_number == len(events) - 1
    (job,) = await redis.keys("qs:{m}:job:*")
    await until(lambda: _is(redis, job, b"cancelled"))  # its owner, who does live, lets go


async def test_a_tenant_does_not_see_anothers_responses(serve, worker, redis_url):
    await worker()
    server = await serve(redis_url=redis_url, api_keys=("a", "b"))
    options = {"base_url": f"{server.url}/v1", "max_retries": 0}
    async with (
        openai.AsyncOpenAI(api_key="a", **options) as one,
        openai.AsyncOpenAI(api_key="b", **options) as other,
    ):
        made = await one.responses.create(input="Hello", max_output_tokens=2, **GREEDY)
        assert (await one.responses.retrieve(made.id)).id == made.id
        for call in (
            other.responses.retrieve(made.id),
            other.responses.delete(made.id),
            other.responses.input_items.list(made.id),
            other.responses.create(model="m", input="x", previous_response_id=made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await call


async def test_a_server_can_store_nothing(serve, worker, redis_url):
    await worker()
    server = await serve(redis_url=redis_url, response_ttl=0.0)
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:
        made = await client.responses.create(input="Hello", max_output_tokens=2, **GREEDY)
        assert made.to_dict()["store"] is False
        for wanted in ({"store": True}, {"background": True}):
            with pytest.raises(openai.BadRequestError):
                await client.responses.create(input="Hello", **wanted, **GREEDY)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
