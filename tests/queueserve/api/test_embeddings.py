"""POST /v1/embeddings: every form of input, in order, and cut into jobs of a bounded size."""

from __future__ import annotations

import asyncio
import math

import httpx
import openai
import pytest

from queueserve.api.data import AT_ONCE, batched
from queueserve.protocol import Inputs, Job
from workers.engines.fake_vectors import DIMENSIONS

TEXTS = ["the queue runs", "the worker waits", "日本語"]


async def vectors(api, given, **options) -> list[list[float]]:
    answer = await api.client.embeddings.create(model="m", input=given, **options)
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return [one.embedding for one in answer.data]


async def test_the_client_gets_the_same_numbers_as_base64_and_as_floats(api, worker):
    await worker()
    packed = await vectors(api, TEXTS)  # the client asks for base64 by itself
    assert await vectors(api, TEXTS, encoding_format="float") == packed
    assert [len(one) for one in packed] == [DIMENSIONS] * 3
    assert [math.hypot(*one) for one in packed] == pytest.approx([1] * 3)


async def test_the_four_forms_of_input(api, worker):
    await worker()
    tokens = []
    async with httpx.AsyncClient(base_url=api.url) as http:
        for text in TEXTS:
            answer = await http.post("/tokenize", json={"model": "m", "prompt": text})
            tokens.append(answer.json()["tokens"])
    texts = await vectors(api, TEXTS)
    assert await vectors(api, tokens) == texts
    assert await vectors(api, TEXTS[0]) == texts[:1]
    assert await vectors(api, tokens[0]) == texts[:1]


async def test_usage_counts_the_tokens_of_all(api, worker):
    await worker()
    answer = await api.client.embeddings.create(model="m", input=[[1, 2, 3], [4]])
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (4, 4)
    assert (answer.object, answer.model) == ("list", "m")


async def test_dimensions(api, worker):
    await worker()
    [whole] = await vectors(api, "a")
    [short] = await vectors(api, "a", dimensions=4)
    length = math.hypot(*whole[:4])
    assert short == pytest.approx([number / length for number in whole[:4]], rel=1e-5)
    with pytest.raises(openai.BadRequestError) as error:
        await vectors(api, "a", dimensions=DIMENSIONS + 1)
    assert error.value.param == "dimensions"


async def test_thousands_of_texts_come_back_in_their_order(api, worker):
    await worker(tick=0)
    await worker(tick=0)
    texts = [f"text {n} {'word ' * (n % 7)}" for n in range(2000)]
    all_of_them = await vectors(api, texts)
    assert len(all_of_them) == 2000
    for n in (0, 63, 64, 1234, 1999):
        assert all_of_them[n : n + 1] == await vectors(api, texts[n])


async def test_no_more_than_a_few_jobs_are_there_at_once(api, worker, redis, until):
    await worker(tick=0.05, slots=2)
    asked = asyncio.create_task(vectors(api, ["text"] * 3000))
    await until(lambda: redis.zcard("qs:{m}:queue"))
    deepest = 0
    for _ in range(20):
        deepest = max(deepest, await redis.zcard("qs:{m}:queue"))
        await asyncio.sleep(0.01)
    assert 0 < deepest <= AT_ONCE
    asked.cancel()  # the client leaves: its jobs leave the queue and the worker
    await asyncio.wait((asked,))
    await until(lambda: _idle(redis))


async def _idle(redis) -> bool:
    leases = [key async for key in redis.scan_iter("qs:{m}:lease:*")]  # an empty hash is no key
    return not leases and not await redis.zcard("qs:{m}:queue")


async def test_what_is_too_long_is_named_or_cut(api, worker):
    await worker(context_length=8)
    with pytest.raises(openai.BadRequestError, match=r"input\[100\] has 10") as error:
        await vectors(api, ["a"] * 100 + ["b" * 9])
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "input")
    cut = await vectors(api, "b" * 9, extra_body={"truncate_prompt_tokens": -1})
    assert cut == await vectors(api, "b" * 7)


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [[1], [-1]]}, "input[1][0]"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ],
)
async def test_a_wrong_request_names_the_field(http, body, param):
    answer = await http.post("/v1/embeddings", json={"model": "m"} | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_a_model_that_only_generates_says_what_it_is_for(http):
    answer = await http.post("/v1/embeddings", json={"model": "m", "input": "a"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "model"
    assert "/v1/chat/completions" in error["message"]


async def test_a_retry_with_the_same_key_attaches(api, worker):
    await worker()
    headers = {"Idempotency-Key": "k"}
    first = await vectors(api, TEXTS, extra_headers=headers)
    assert await vectors(api, TEXTS, extra_headers=headers) == first
    with pytest.raises(openai.ConflictError):
        await vectors(api, TEXTS[:1], extra_headers=headers)


def test_batches_are_bounded_by_items_and_by_tokens():
    job = Job(id="j", pool="m", model="m", kind="embed")
    items = ("a" * 40_000, *(["short"] * 150), tuple(range(20_000)), "end")
    jobs = batched(job, Inputs(items=items))
    parts = [part.inputs for part in jobs]
    assert tuple(item for part in parts for item in part.items) == items
    assert [part.first for part in parts] == [0, 64, 128, 151, 152]
    assert [one.id for one in jobs] == [f"j-{n}" for n in range(5)]
    assert [one.cost for one in jobs] == [10_000 + 63, 64, 23, 20_000, 1]


def test_batches_of_pairs_keep_their_queries():
    job = Job(id="j", pool="m", model="m", kind="score")
    texts = tuple(map(str, range(100)))
    pairs = [part.inputs for part in batched(job, Inputs(items=texts, queries=texts))]
    assert all(part.queries == part.items for part in pairs)
    one = [part.inputs for part in batched(job, Inputs(items=texts, queries=("q",)))]
    assert [part.queries for part in one] == [("q",)] * 2
