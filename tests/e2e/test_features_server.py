"""What stands around the models, with the official client: one test for each feature."""

from __future__ import annotations

import httpx
import openai
import pytest

import queueserve

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def ask(client, up):
    def ask(**fields):
        asked = {"model": up.chat, "messages": HELLO, "max_completion_tokens": 4} | fields
        return client.chat.completions.with_raw_response.create(**asked)

    return ask


@pytest.fixture
def root(client, up):
    """The client, for paths that are not below /v1."""
    return client.with_options(base_url=up.url)


def test_models_are_listed_and_retrieved(client, up):
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {up.chat, up.embeddings}
    chat, vectors = models[up.chat], client.models.retrieve(up.embeddings)
    assert (chat.object, chat.owned_by, chat.max_model_len) == ("model", "queueserve", 4096)
    assert {"chat", "completion"} <= set(chat.capabilities)
    assert {"embed", "score"} <= set(vectors.capabilities)
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("nobody")
    assert error.value.code == "model_not_found"


def test_tokens_and_back(root, up):
    def post(path: str, **body):
        return root.post(path, body={"model": up.chat} | body, cast_to=object)

    told = post("/tokenize", prompt="A lighthouse")
    assert told["count"] == len(told["tokens"])
    assert post("/detokenize", tokens=told["tokens"])["prompt"] == "A lighthouse"
    assert post("/tokenize", messages=HELLO)["count"] > post("/tokenize", prompt="Hello")["count"]


def test_fastchats_token_check(root, up):
    prompts = [{"model": up.chat, "prompt": "Hello", "max_tokens": most} for most in (10, 9999)]
    fits, not_ = root.post("/api/v1/token_check", body={"prompts": prompts}, cast_to=object)[
        "prompts"
    ]
    assert (fits["fits"], not_["fits"]) == (True, False)
    assert fits["contextLength"] == 4096


def test_health_readiness_and_version(root):
    assert root.get("/health", cast_to=object) == {"status": "ok"}
    assert root.get("/ready", cast_to=object)["status"] == "ready"
    assert root.get("/version", cast_to=object) == {"version": queueserve.__version__}


def test_the_document_has_every_endpoint(root):
    paths = root.get("/openapi.json", cast_to=object)["paths"]
    generates = {"chat/completions", "completions", "responses", "messages", "embeddings"}
    assert {f"/v1/{path}" for path in generates} <= set(paths)


def test_every_answer_has_an_id_and_its_time(ask):
    answer = ask(extra_headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == answer.request_id == "mine-1"
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert ask().headers["x-request-id"].startswith("req_")


def test_a_retry_with_the_same_key_is_not_run_again(ask, up):
    fields = {"temperature": 1, "extra_headers": {"Idempotency-Key": f"features {up.url}"}}
    first, again = ask(**fields), ask(**fields)
    assert first.parse().id == again.parse().id
    assert first.parse().choices == again.parse().choices
    with pytest.raises(openai.ConflictError) as error:
        ask(**fields | {"temperature": 0.5})
    assert error.value.code == "idempotency_conflict"


@pytest.mark.parametrize(
    "bad, param",
    [
        ({"n": 1000}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"messages": HELLO * 2049}, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 4_000_001}]}, "messages"),
        ({"stop": ["a"] * 100}, "stop"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
    ids=["n", "temperature", "messages", "characters", "stop", "modalities"],
)
def test_what_is_out_of_bounds_is_named(ask, bad, param):
    with pytest.raises(openai.BadRequestError) as error:
        ask(**bad)
    assert error.value.param == param
    assert set(error.value.body) == {"message", "type", "param", "code"}


def test_a_prompt_that_is_too_long_is_refused_also_for_a_stream(ask):
    long = [{"role": "user", "content": "word " * 5000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            ask(messages=long, stream=stream)
        assert error.value.code == "context_length_exceeded"


def test_a_model_that_nobody_serves_is_not_found(ask):
    with pytest.raises(openai.NotFoundError) as error:
        ask(model="nobody")
    assert (error.value.param, error.value.code) == ("model", "model_not_found")


def test_by_default_no_other_origin_may_read(up):
    answer = httpx.get(f"{up.url}/v1/models", headers={"Origin": "https://page.example"})
    assert "access-control-allow-origin" not in answer.headers
