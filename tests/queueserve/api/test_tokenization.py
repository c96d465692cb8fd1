"""/tokenize, /detokenize and FastChat's token_check; and what /v1/models tells."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from queueserve.protocol import ModelCard
from workers.engines.fake_tokens import BOS

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def post(api):
    async with httpx.AsyncClient(base_url=api.url) as client:

        async def ask(path: str, **body):
            answer = await client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        yield ask


async def test_tokens_and_back(post, worker):
    await worker()
    answer = await post("/tokenize", model="m", prompt="the queue runs 日本語")
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 4096)
    assert answer["tokens"][0] == BOS
    bare = await post(
        "/tokenize", model="m", prompt="the queue runs 日本語", add_special_tokens=False
    )
    assert bare["tokens"] == answer["tokens"][1:]
    back = await post("/detokenize", model="m", tokens=bare["tokens"])
    assert back == {"prompt": "the queue runs 日本語"}


async def test_the_tokens_of_messages_are_those_that_a_chat_counts(post, worker, api):
    await worker()
    answer = await post("/tokenize", model="m", messages=MESSAGES)
    chat = await api.client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=1)
    assert answer["count"] == chat.usage.prompt_tokens
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    answer = await post("/tokenize", model="m", messages=MESSAGES, tools=[tool])
    chat = await api.client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=1, tools=[tool]
    )
    assert answer["count"] == chat.usage.prompt_tokens


async def test_counting_does_not_wait_for_a_slot(post, worker, api):
    await worker(slots=1, tick=0.02)
    stream = await api.client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        stream=True,
        max_tokens=4000,
        extra_body={"ignore_eos": True},
    )
    await anext(aiter(stream))
    async with asyncio.timeout(60):  # the answer takes 80 seconds
        counts = await asyncio.gather(
            *(post("/tokenize", model="m", prompt="a" * n) for n in range(40))
        )
    assert [one["count"] for one in counts] == [n + 1 for n in range(40)]
    await stream.close()


async def test_fastchats_token_check(post, worker):
    await worker(context_length=16)
    await worker(pool="other", context_length=8)
    prompts = [
        {"model": "m", "prompt": "a" * 7, "max_tokens": 8},
        {"model": "other", "prompt": "a" * 7, "max_tokens": 0},
        {"model": "m", "prompt": "a" * 7, "max_tokens": 9},
    ]
    assert await post("/api/v1/token_check", prompts=prompts) == {
        "prompts": [
            {"fits": True, "tokenCount": 8, "contextLength": 16},
            {"fits": True, "tokenCount": 8, "contextLength": 8},
            {"fits": False, "tokenCount": 8, "contextLength": 16},
        ]
    }


@pytest.mark.parametrize(
    "body, message",
    [
        ({}, "Either prompt or messages"),
        ({"prompt": "a", "messages": MESSAGES}, "Either prompt or messages"),
        ({"messages": MESSAGES, "add_special_tokens": True}, "chat template brings its own"),
        (
            {
                "messages": MESSAGES,
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "cannot be true",
        ),
        ({"prompt": "a", "return_token_strs": True}, "not supported"),
    ],
)
async def test_a_wrong_request_is_refused(http, body, message):
    answer = await http.post("/tokenize", json={"model": "m"} | body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


async def test_an_unknown_model_is_404(http):
    asked = {"prompts": [{"model": "x", "prompt": "a"}]}
    for path, body in (
        ("/tokenize", {"model": "x", "prompt": "a"}),
        ("/detokenize", {"model": "x", "tokens": [1]}),
        ("/api/v1/token_check", asked),
        ("/v1/embeddings", {"model": "x", "input": "a"}),
    ):
        answer = await http.post(path, json=body)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"


async def test_what_a_model_is_and_what_an_alias_stands_for(http, hand):
    card = ModelCard(name="m", pool="m", context_length=100, engine="hand", created=7)
    alias = ModelCard(
        name="nick", pool="m", context_length=100, engine="hand", tasks=("embed", "score")
    )
    hand.models = [card, alias]
    listed = (await http.get("/v1/models")).json()["data"]
    assert listed[0] == {
        "id": "m",
        "object": "model",
        "created": 7,
        "owned_by": "queueserve",
        "root": "m",
        "parent": None,
        "max_model_len": 100,
        "capabilities": ["chat", "completion"],
        "engine": "hand",
    }
    one = (await http.get("/v1/models/nick")).json()
    assert (one["root"], one["parent"], one["capabilities"]) == ("m", "m", ["embed", "score"])
    assert one == listed[1]


async def test_a_model_for_vectors_does_not_chat(http, hand):
    hand.models = [
        ModelCard(name="m", pool="m", context_length=9, engine="hand", tasks=("embed", "score"))
    ]
    for path, body in (
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 1}),
        ("/tokenize", {"messages": MESSAGES}),
    ):
        answer = await http.post(path, json={"model": "m"} | body)
        assert answer.status_code == 400, path
        message = answer.json()["error"]["message"]
        assert "it answers /v1/embeddings, /v1/rerank and /v1/score" in message
