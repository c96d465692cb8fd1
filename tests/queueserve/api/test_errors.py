"""Every error is OpenAI's object with all four keys, whoever found it."""

from __future__ import annotations

import logging

import httpx
import openai
import pytest

from queueserve import errors

USER = {"role": "user", "content": "hi"}
CHAT = {"model": "m", "messages": [USER]}
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
TOOL = {"type": "function", "function": {"name": "f"}}

BAD_CHATS = [
    ({"model": None}, "model", "invalid_type"),
    ({"model": ""}, "model", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "boss", "content": "hi"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content", "invalid_type"),
    ({"messages": [{"role": "user"}]}, "messages[0]", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [AUDIO]}]},
        "messages[0].content[0]",
        "unsupported_value",
    ),
    ({"messages": [USER] * 2049}, "messages", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"temperature": "1"}, "temperature", "invalid_type"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"n": True}, "n", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens", "invalid_type"),
    ({"min_tokens": 9, "max_tokens": 5}, "min_tokens", "invalid_value"),
    ({"stop": ["x"] * 17}, "stop", "invalid_value"),
    ({"stop": [""]}, "stop[0]", "invalid_value"),
    ({"stop": 5}, "stop", "invalid_type"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"presence_penalty": -2.5}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": 3}, "frequency_penalty", "invalid_value"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
    ({"logit_bias": {"five": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"²": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"service_tier": "gold"}, "service_tier", "invalid_value"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_value"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs", "invalid_type"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "add_generation_prompt",
        "invalid_value",
    ),
    ({"tools": [TOOL]}, "tools", "invalid_value"),  # the model takes none
    ({"logprobs": 1}, "logprobs", "invalid_type"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_value"),
    ({"echo": True}, "echo", "unsupported_value"),
]

BAD_COMPLETIONS = [
    ({"prompt": None}, "prompt", "invalid_type"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt[0]", "invalid_value"),
    ({"prompt": [1, "a"]}, "prompt[0]", "invalid_type"),
    ({"prompt": ["a", 1]}, "prompt[1]", "invalid_type"),
    ({"prompt": [-1]}, "prompt[0]", "invalid_value"),
    ({"prompt": [[1], [2, -1]]}, "prompt[1][1]", "invalid_value"),
    ({"prompt": ["a"] * 1025}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 100, "n": 100}, "n", "invalid_value"),
    ({"echo": 1}, "echo", "invalid_type"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"logprobs": -1}, "logprobs", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"suffix": "end"}, "suffix", "unsupported_value"),
    ({"best_of": 0}, "best_of", "invalid_value"),
    ({"best_of": 2, "n": 3}, "best_of", "invalid_value"),
    ({"best_of": 2, "stream": True}, "best_of", "unsupported_value"),
    ({"prompt": ["a"] * 100, "best_of": 11}, "n", "invalid_value"),
]


def error_of(answer: httpx.Response, status: int, kind: str = "invalid_request_error") -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert error["type"] == kind
    return error


@pytest.mark.parametrize("change, param, code", BAD_CHATS)
async def test_bad_chats_are_400_and_name_the_field(http, hand, change, param, code):
    error = error_of(await http.post("/v1/chat/completions", json=CHAT | change), 400)
    assert error["param"] == param
    assert error["code"] == code
    assert hand.streams == []


@pytest.mark.parametrize("change, param, code", BAD_COMPLETIONS)
async def test_bad_completions_are_400_and_name_the_field(http, hand, change, param, code):
    body = {"model": "m", "prompt": "hi"} | change
    error = error_of(await http.post("/v1/completions", json=body), 400)
    assert error["param"] == param
    assert error["code"] == code
    assert hand.streams == []


@pytest.mark.parametrize(
    "content, kind, code",
    [
        (b"{", "application/json", "invalid_json"),
        (b'{"model": NaN}', "application/json", "invalid_json"),
        (b'{"model": "\xff"}', "application/json", "invalid_json"),
        (b"[" * 2000, "application/json", "invalid_json"),
        (b"[]", "application/json", "invalid_type"),
        (b"null", "application/json", "missing_body"),
        (b"", "application/json", "missing_body"),
        (b'{"model": "m"}', "text/plain", "unsupported_content_type"),
        (b"model=m", "application/x-www-form-urlencoded", "unsupported_content_type"),
        (b"{}", "application/json", "missing_required_parameter"),
    ],
)
async def test_bodies_that_are_no_request_are_400(http, content, kind, code):
    headers = {"content-type": kind}
    answer = await http.post("/v1/chat/completions", content=content, headers=headers)
    assert error_of(answer, 400)["code"] == code


@pytest.mark.parametrize(
    "query, param, code",
    [
        ("?stream=maybe", "stream", "invalid_type"),
        ("?stream=true&starting_after=x", "starting_after", "invalid_type"),
        ("?starting_after=-1", "starting_after", "invalid_value"),
        ("/input_items?limit=101", "limit", "invalid_value"),
        ("/input_items?limit=many&order=up", "limit", "invalid_type"),
        ("/input_items?order=up", "order", "invalid_value"),
    ],
)
async def test_a_wrong_parameter_of_the_query_is_named(http, query, param, code):
    error = error_of(await http.get(f"/v1/responses/resp_1{query}"), 400)
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"].startswith(f"{param}: ")


async def test_unknown_routes_and_methods(http):
    assert error_of(await http.get("/v1/nope"), 404)["code"] == "unknown_url"
    assert error_of(await http.get("/v1/models/"), 404)["code"] == "model_not_found"
    assert error_of(await http.post("/v1/chat/completions/", json={}), 404)["code"] == "unknown_url"
    answer = await http.get("/v1/chat/completions")
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


async def test_a_body_that_is_too_large_is_a_413_on_every_route_that_takes_one(http):
    paths = (await http.get("/openapi.json")).json()["paths"]
    routes = [path for path, route in paths.items() if "requestBody" in route.get("post", {})]
    assert {"/v1/chat/completions", "/v1/embeddings"} < set(routes)
    headers = {"content-type": "application/json"}
    for path in routes:
        declared = await http.post(path, content=b" " * 100_001, headers=headers)
        counted = await http.post(path, content=pieces(100_001), headers=headers)
        for answer in (declared, counted):
            assert answer.status_code == 413, path
            if not path.startswith("/v1/messages"):
                assert error_of(answer, 413)["code"] == "request_too_large"


async def pieces(size: int):
    for _ in range(0, size, 1000):
        yield b" " * 1000


DOMAIN = [
    (errors.ModelNotFoundError("x"), 404, "model_not_found"),
    (errors.InvalidRequestError("x", param="stop"), 400, "invalid_value"),
    (errors.ContextLengthExceededError("x"), 400, "context_length_exceeded"),
    (errors.IdempotencyConflictError("x"), 409, "idempotency_conflict"),
    (errors.CancelledJobError("x"), 409, "cancelled"),
    (errors.NoWorkerError("x"), 503, "no_worker"),
    (errors.QueueTimeoutError("x"), 503, "queue_timeout"),
    (errors.RedisUnavailableError("x"), 503, "redis_unavailable"),
    (errors.ServerExpiredError("x"), 503, "server_expired"),
    (errors.WorkerLostError("x"), 503, "worker_lost"),
    (errors.RequestTimeoutError("x"), 504, "request_timeout"),
    (errors.EngineError("x"), 500, "engine_error"),
    (errors.PoisonJobError("x"), 500, "worker_crashed"),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("error, status, code", DOMAIN)
async def test_domain_errors_before_the_answer_have_their_status(  # noqa: PLR0917 - the table's columns
    http, hand, error, status, code, stream
):
    hand.refusals = [error]
    answer = await http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    kind = "server_error" if status >= 500 else "invalid_request_error"
    assert error_of(answer, status, kind) == {
        "message": "x",
        "type": kind,
        "param": error.param,
        "code": code,
    }
    assert ("retry-after" in answer.headers) == (status == 503)
    final = status == 409 or code == "worker_crashed"
    assert answer.headers.get("x-should-retry") == ("false" if final else None)


@pytest.mark.parametrize(
    "after, seconds, milliseconds",
    [(0.25, "1", "250"), (7.2, "8", "7200"), (900.0, "120", "120000")],
)
async def test_a_full_queue_says_when_to_come_back(http, hand, after, seconds, milliseconds):
    hand.refusals = [errors.QueueFullError("full", retry_after=after)]
    answer = await http.post("/v1/chat/completions", json=CHAT)
    assert error_of(answer, 429, "rate_limit_error")["code"] == "rate_limit_exceeded"
    assert answer.headers["retry-after"] == seconds
    assert answer.headers["retry-after-ms"] == milliseconds


async def test_a_fault_of_our_own_is_a_500_that_says_nothing_and_is_logged(http, hand, caplog):
    hand.refusals = [ZeroDivisionError("a secret")]
    answer = await http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "r1"})
    assert error_of(answer, 500, "server_error")["message"] == "The server failed."
    assert answer.headers["x-request-id"] == "r1"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "r1" in record.getMessage()


async def test_a_failure_in_mid_stream_makes_the_client_raise(by_hand):
    hand = by_hand.hand
    stream = await started(by_hand)
    hand.say("Hello")
    assert [(await anext(stream)).choices[0].delta.content for _ in range(2)] == ["", "Hello"]
    hand.streams[0].fail(errors.WorkerLostError("The worker is gone."))
    with pytest.raises(openai.APIError) as caught:
        await anext(stream)
    assert not isinstance(caught.value, openai.APIStatusError)
    assert caught.value.message == "The worker is gone."
    assert (caught.value.code, caught.value.type) == ("worker_lost", "server_error")


async def test_what_came_before_a_failure_is_delivered_first(by_hand):
    hand = by_hand.hand
    stream = await started(by_hand)
    hand.say("one")
    hand.say("two")
    hand.streams[0].fail(errors.EngineError("broken"))
    texts = [(await anext(stream)).choices[0].delta.content for _ in range(3)]
    assert texts == ["", "one", "two"]
    with pytest.raises(openai.APIError, match="broken"):
        await anext(stream)


async def test_a_failed_stream_ends_after_the_error_without_done(by_hand):
    hand = by_hand.hand
    url = f"{by_hand.url}/v1/chat/completions"
    body = CHAT | {"stream": True}
    async with httpx.AsyncClient() as http, http.stream("POST", url, json=body) as answer:
        hand.streams[0].fail(errors.EngineError("broken"))
        lines = [line async for line in answer.aiter_lines() if line.startswith("data")]
    assert lines[-1] == (
        'data: {"error":{"message":"broken","type":"server_error","param":null,'
        '"code":"engine_error"}}'
    )
    assert "data: [DONE]" not in lines


@pytest.fixture
async def _starting(hand, monkeypatch):
    opened = hand.open

    async def open_and_start(job):
        stream = await opened(job)
        hand.start(hand.streams.index(stream))
        return stream

    monkeypatch.setattr(hand, "open", open_and_start)


async def started(by_hand):
    return await by_hand.client.chat.completions.create(**CHAT, stream=True)


pytestmark = pytest.mark.usefixtures("_starting")
