"""POST /v1/chat/completions as the openai client sees it, on a real Redis and a fake engine."""

from __future__ import annotations

import asyncio
import re

import httpx
import openai
import pytest

MESSAGES = [{"role": "user", "content": "Tell me about queues, 請用中文 🙂"}]


@pytest.fixture(autouse=True)
async def _a_worker(worker):
    await worker()


async def whole(api, **options):
    options.setdefault("extra_body", {"ignore_eos": True})
    return await api.client.chat.completions.create(model="m", messages=MESSAGES, **options)


async def chunks(api, **options):
    stream = await whole(api, stream=True, **options)
    return [chunk async for chunk in stream]


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def test_an_answer_in_one_piece(api):
    answer = await whole(api, temperature=0, max_tokens=5)
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", answer.id)
    assert (answer.object, answer.model) == ("chat.completion", "m")
    assert answer.system_fingerprint.startswith("fake-1")
    assert answer.choices[0].message.role == "assistant"
    assert len(answer.choices[0].message.content) > 5
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


async def test_a_stream_brings_the_same_text_in_one_chunk_per_token(api):
    answer = await whole(api, temperature=0, max_tokens=20)
    got = await chunks(api, temperature=0, max_tokens=20)
    assert got[0].choices[0].delta.role == "assistant"
    assert got[0].choices[0].delta.content == ""
    text = [chunk.choices[0].delta.content for chunk in got[1:-1]]
    assert "".join(text) == answer.choices[0].message.content
    assert len(text) > 5
    assert all(text)
    assert got[-1].choices[0].finish_reason == "length"
    assert {chunk.choices[0].finish_reason for chunk in got[:-1]} == {None}
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in got}) == 1
    assert {chunk.usage for chunk in got} == {None}


async def test_usage_comes_last_when_asked_for(api):
    got = await chunks(api, temperature=0, max_tokens=3, stream_options={"include_usage": True})
    assert {chunk.usage for chunk in got[:-1]} == {None}
    assert all("usage" in chunk.model_fields_set for chunk in got)
    assert got[-1].choices == []
    assert got[-1].usage.completion_tokens == 3
    assert got[-1].usage.prompt_tokens_details.cached_tokens == 0


async def test_choices_are_different_jobs_with_seeds_in_a_row(api):
    both = await whole(api, n=2, seed=3, max_tokens=20)
    first, second = (choice.message.content for choice in both.choices)
    assert first != second
    assert [choice.index for choice in both.choices] == [0, 1]
    again = await whole(api, seed=4, max_tokens=20)
    assert again.choices[0].message.content == second
    assert both.usage.completion_tokens == 40
    assert both.usage.prompt_tokens == again.usage.prompt_tokens


async def test_choices_interleave_in_a_stream(api):
    got = await chunks(api, n=2, seed=3, max_tokens=20)
    texts = {0: "", 1: ""}
    order = []
    for chunk in got:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        order.append(choice.index)
    answer = await whole(api, n=2, seed=3, max_tokens=20)
    assert texts == {choice.index: choice.message.content for choice in answer.choices}
    assert order.index(1) < len(order) - 1 - order[::-1].index(0)


async def test_more_choices_than_slots_all_come(api):
    answer = await whole(api, n=20, max_tokens=2)
    assert len(answer.choices) == 20
    assert {choice.finish_reason for choice in answer.choices} == {"length"}


async def test_without_a_seed_answers_differ(api):
    first, second = await whole(api, max_tokens=20), await whole(api, max_tokens=20)
    assert first.choices[0].message.content != second.choices[0].message.content
    assert first.id != second.id


async def test_text_parts_and_stop_strings(api):
    parts = [{"type": "text", "text": MESSAGES[0]["content"]}]
    options = {"model": "m", "temperature": 0, "max_tokens": 20}
    options["extra_body"] = {"ignore_eos": True}
    asked = [{"role": "user", "content": parts}]
    answer = await api.client.chat.completions.create(messages=asked, **options)
    text = answer.choices[0].message.content
    assert text == (await whole(api, temperature=0, max_tokens=20)).choices[0].message.content
    stopped = await whole(api, temperature=0, max_tokens=20, stop=text[10:14])
    assert stopped.choices[0].message.content == text[: text.index(text[10:14])]
    assert stopped.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [True, False])
async def test_too_long_a_prompt_is_a_400_before_any_byte_of_an_answer(api, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        await api.client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "word " * 5000}], stream=stream
        )
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.type == "invalid_request_error"


async def test_an_unknown_model_is_a_404(api):
    with pytest.raises(openai.NotFoundError) as caught:
        await api.client.chat.completions.create(model="nope", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_a_full_queue_is_a_429_with_a_time(serve, redis_url, redis, api, until):
    server = await serve(redis_url=redis_url, max_queue=0)
    busy = asyncio.create_task(whole(api, n=100, max_tokens=50))
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:
        await until(lambda: redis.zcard("qs:{m}:queue"))
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=1)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 120
    assert 0 < int(caught.value.response.headers["retry-after-ms"]) <= 120_000
    busy.cancel()
    await asyncio.wait((busy,))


async def test_an_idempotency_key_gives_the_same_answer_without_a_second_run(api, redis):
    headers = {"Idempotency-Key": "k1"}
    first = await whole(api, max_tokens=20, extra_headers=headers)
    second = await whole(api, max_tokens=20, extra_headers=headers)
    assert second.id == first.id
    assert second.system_fingerprint == first.system_fingerprint
    assert second.choices[0].message.content == first.choices[0].message.content
    assert len(await redis.keys("qs:{m}:job:idem-*")) == 1


async def test_an_idempotency_key_attaches_a_retry_to_the_running_job(api, redis):
    options = {"max_tokens": 500, "extra_headers": {"Idempotency-Key": "k2"}}
    options |= {"stream": True, "stream_options": {"include_usage": True}}
    broken = await whole(api, **options)
    some = [await anext(broken) for _ in range(10)]
    await broken.close()
    (job,) = await redis.keys("qs:{m}:job:idem-*")
    assert await redis.hget(job, "state") == b"running"
    retried = [chunk async for chunk in await whole(api, **options)]
    assert {chunk.id for chunk in retried} == {some[0].id}
    assert retried[-1].usage.completion_tokens == 500
    assert text_of(retried).startswith(text_of(some))
    assert await redis.hget(job, "attempts") == b"1"


@pytest.mark.parametrize("change", [{"max_tokens": 6}, {"n": 2}])
async def test_another_body_under_the_same_idempotency_key_is_a_409(api, change):
    headers = {"Idempotency-Key": "k3"}
    await whole(api, max_tokens=5, extra_headers=headers)
    with pytest.raises(openai.ConflictError) as caught:
        await whole(api, **{"max_tokens": 5} | change, extra_headers=headers)
    assert caught.value.code == "idempotency_conflict"
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_a_tenant_does_not_see_another_ones_idempotency_keys(api):
    headers = {"Idempotency-Key": "k4"}
    first = await whole(api, max_tokens=5, user="a", extra_headers=headers)
    second = await whole(api, max_tokens=5, user="b", extra_headers=headers)
    assert first.id != second.id


async def test_no_worker_within_the_queue_timeout_is_a_503(serve, redis, redis_url):
    await redis.sadd("qs:pools", "away")
    await redis.hset(
        "qs:{away}:cards",
        "away",
        b'{"name":"away","pool":"away","context_length":9,"engine":"x","seen":9999999999}',
    )
    server = await serve(redis_url=redis_url, queue_timeout=0.2)
    body = {"model": "away", "messages": MESSAGES, "stream": True}
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] in ("no_worker", "queue_timeout")
    assert answer.headers["retry-after"] == "5"
