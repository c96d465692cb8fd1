"""What every answer carries, and the routes that watch the process."""

from __future__ import annotations

import re

import httpx
import pytest

import queueserve
from queueserve.queue.replies import events_of
from queueserve.queue.skips import counts


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/version", "/v1/models", "/nope", "/v1/chat/completions"]
)
async def test_every_answer_has_an_id_and_a_time(http, path):
    first, second = await http.get(path), await http.get(path)
    assert re.fullmatch(r"req_[0-9a-f]{32}", first.headers["x-request-id"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert int(first.headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize("given", ["abc-123", "a" * 128, "trace/1:2_3.4+5="])
async def test_a_sane_id_of_the_client_is_taken_over(http, given):
    answer = await http.get("/health", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "a\tb", "a;b", 'a"b', "é"])
async def test_any_other_id_is_replaced(http, given):
    answer = await http.get("/health", headers=[(b"x-request-id", given.encode())])
    assert answer.headers["x-request-id"].startswith("req_")


async def test_health_is_200_whatever_else_fails(http, hand):
    hand.ready, hand.models = False, []
    answer = await http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_ready_is_200_when_redis_answers_and_a_worker_is_there(http, hand):
    assert (await http.get("/ready")).status_code == 200
    hand.models = []
    answer = await http.get("/ready")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
    hand.ready = False
    answer = await http.get("/ready")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "redis_unavailable")


async def test_probes_are_logged_when_they_find_something_else(http, hand, caplog):
    models = hand.models
    for there in (models, models, [], [], [], models, models, []):
        hand.models = there
        await http.get("/ready")
    hand.ready = False
    for _ in range(2):
        await http.get("/ready")
    assert [record.getMessage() for record in caplog.records] == [
        "not ready: No worker is registered.",
        "ready",
        "not ready: No worker is registered.",
        "not ready: This server's reply channel is not subscribed.",
    ]


async def test_what_lacks_before_it_was_ready_once_is_no_warning(http, hand, caplog):
    caplog.set_level("INFO", "queueserve")
    models, hand.models = hand.models, []
    await http.get("/ready")
    hand.models = models
    await http.get("/ready")
    hand.models = []
    await http.get("/ready")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "not ready: No worker is registered."),
        ("INFO", "ready"),
        ("WARNING", "not ready: No worker is registered."),
    ]


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_a_load_balancer_may_ask_for_the_head_alone(by_hand, path):
    async with httpx.AsyncClient(base_url=by_hand.url) as client:
        whole, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]
        by_hand.hand.models = []
        assert (await client.head("/ready")).status_code == 503


async def test_ready_on_a_real_redis(api, worker):
    async with httpx.AsyncClient(base_url=api.url) as client:
        answer = await client.get("/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
        await worker()
        counts.clear()
        assert (await client.get("/ready")).json() == {"status": "ready"}
        events_of(b"not ours")
        events_of(b"nor this")
        seen = (await client.get("/ready")).json()
        assert seen == {"status": "ready", "skipped": {"message": 2}}


async def test_without_redis_health_lives_and_all_else_is_a_503_with_a_time(serve):
    server = await serve(redis_url="redis://127.0.0.1:1/0")
    async with httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/health")).status_code == 200
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        for answer in (
            await client.get("/ready"),
            await client.get("/v1/models"),
            await client.post("/v1/chat/completions", json=body),
        ):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "redis_unavailable"
            assert answer.headers["retry-after"] == "1"


async def test_the_version_is_told(http):
    assert (await http.get("/version")).json() == {"version": queueserve.__version__}


async def test_the_openapi_document_names_the_routes_and_their_bodies(http):
    document = (await http.get("/openapi.json")).json()
    known = {"/v1/chat/completions", "/v1/models/{model}", "/health", "/ready", "/version"}
    assert known <= set(document["paths"])
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    assert body["application/json"]["schema"]["$ref"].endswith("/ChatCompletionRequest")
