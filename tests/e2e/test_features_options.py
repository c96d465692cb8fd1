"""What `queueserve up` does with options of its own: a second one, on the fake engine."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from up_process import Up

KEYS = ("key-one", "key-two")
PAGE = "https://page.example"
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"extra_body": {"ignore_eos": True}, "max_tokens": 4000}
THINKS = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<think>\n"


@pytest.fixture(scope="module")
def strict(tmp_path_factory, until):
    """A server with keys and bounds whose models, `busy` and `thinker`, have a slot each."""
    home = tmp_path_factory.mktemp("strict")
    template = home / "thinks.jinja"
    template.write_text(THINKS)
    up = Up(
        home,
        *("--engine", "fake", "--port", "0", "--redis-port", "0"),
        *("--model-path", "busy", "--model-path", "thinker"),
        *("--api-keys", ",".join(KEYS), "--allowed-origins", PAGE),
        *("--max-body-bytes", "10000", "--request-timeout", "12"),
        *("--", "--limit-worker-concurrency", "1", "--chat-template", str(template)),
    )
    until(lambda: up.line("Stop") and len(list(open_client(up).models.list())) == 2, "both models")
    yield up
    up.close()
    print(up.said)


def open_client(up: Up, key: str = KEYS[0]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{up.url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture
def client(strict):
    with open_client(strict) as client:
        yield client


def test_every_key_opens_and_no_other_does(strict):
    for key in KEYS:
        with open_client(strict, key) as client:
            assert {model.id for model in client.models.list()} == {"busy", "thinker"}
    with (
        open_client(strict, "key-three") as client,
        pytest.raises(openai.AuthenticationError) as no,
    ):
        client.models.list()
    assert no.value.code == "invalid_api_key"
    assert httpx.get(f"{strict.url}/health").is_success
    assert "key-one" not in strict.said


def test_a_page_of_an_allowed_origin_may_ask(strict):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    url = f"{strict.url}/v1/chat/completions"
    answer = httpx.options(url, headers={"Origin": PAGE} | asked)
    assert answer.headers["access-control-allow-origin"] == PAGE
    other = httpx.options(url, headers={"Origin": "https://other.example"} | asked)
    assert "access-control-allow-origin" not in other.headers


def test_a_body_that_is_too_large(client):
    with pytest.raises(openai.APIStatusError) as error:
        client.completions.create(model="busy", prompt="a" * 10_000)
    assert (error.value.status_code, error.value.code) == (413, "request_too_large")


def test_reasoning_is_told_apart_from_the_answer(client):
    options = {"model": "thinker", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    answer = client.chat.completions.create(**options)
    message = answer.choices[0].message
    assert message.reasoning_content
    assert not message.content  # it thinks to the end
    assert answer.usage.completion_tokens_details.reasoning_tokens == 12
    with client.chat.completions.create(stream=True, **options) as stream:
        deltas = [chunk.choices[0].delta for chunk in stream]
    told = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert told == message.reasoning_content


def test_reasoning_is_kept_by_the_client_and_sent_back(client):
    include = ["reasoning.encrypted_content"]
    options = {"model": "thinker", "store": False, "include": include, "max_output_tokens": 8}
    first = client.responses.create(input="Hello", **options)
    (reasoning,) = first.output
    assert reasoning.encrypted_content
    kept = reasoning.to_dict() | {"content": None}
    turns = [{"role": "user", "content": "Hello"}, kept, {"role": "assistant", "content": "Hi"}]
    more = {"role": "user", "content": "Again"}
    assert client.responses.create(input=[*turns, more], **options).output
    kept["encrypted_content"] = "gAAAAA"
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(input=[*turns, more], **options)
    assert error.value.param == "input[1].encrypted_content"


def test_a_request_that_waits_is_told_its_place_and_priority_goes_first(client, strict, until):
    ask = client.completions
    told = {"include_queue_position": True}
    with (
        ask.create(model="busy", prompt="a", stream=True, **ENDLESS) as running,
        ThreadPoolExecutor() as pool,
    ):
        next(running)
        request = {"model": "busy", "prompt": "b", "max_tokens": 1, "stream": True}
        with ask.with_streaming_response.create(stream_options=told, **request) as waiting:
            assert waiting.headers["x-queueserve-queue-position"] == "1"
            lines = waiting.iter_lines()
            assert re.fullmatch(r": queued position=1( eta=\d+\.\ds)?", next(lines))
            first = pool.submit(
                ask.with_raw_response.create,
                **request | {"stream": False},
                extra_body={"service_tier": "priority"},
            )
            with strict.redis() as redis:
                until(lambda: redis.zcard("qs:{busy}:queue") == 2, "both requests in the queue")
            running.close()
            assert first.result().headers["x-queueserve-queue-position"] == "1"
            assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_stream_that_fails_late_says_so(client):
    with (
        client.completions.create(model="thinker", prompt="a", stream=True, **ENDLESS) as stream,
        pytest.raises(openai.APIError, match="time") as error,
    ):
        list(stream)
    assert error.value.code == "request_timeout"
