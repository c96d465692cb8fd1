"""Whatever a client sends gets an answer below 500, and the server goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json as text
from typing import get_args

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from queueserve.encoding import encode
from queueserve.protocol import Answered, JobKind

QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
WHOLE = {
    "/v1/chat/completions": {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": False,
        "max_tokens": 3,
        "temperature": 0.5,
        "stop": ["x"],
        "logit_bias": {"1": 2},
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    "/v1/completions": {"model": "m", "prompt": "hello", "n": 2, "echo": False, "logprobs": 1},
    "/v1/embeddings": {"model": "m", "input": ["a"], "encoding_format": "float"},
    "/v1/responses": {"model": "m", "input": "hello", "store": False},
    "/v1/responses/input_tokens": {"model": "m", "input": "hello"},
    "/tokenize": {"model": "m", "prompt": "hello", "add_special_tokens": True},
    "/detokenize": {"model": "m", "tokens": [1, 2]},
    "/api/v1/token_check": {"prompts": [{"model": "m", "prompt": "a", "max_tokens": 1}]},
    "/v1/rerank": {"model": "m", "query": "a", "documents": ["b"], "top_n": 1},
    "/v1/score": {"model": "m", "text_1": "a", "text_2": ["b"]},
    "/v1/messages/count_tokens": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    "/v1/messages": {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
}
ROWS = {"embed": "AAAAAA==", "score": 0.5, "tokenize": [1, 2], "detokenize": "a"}
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


def nested(levels):
    """An object in an object in an object."""
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


values = st.sampled_from([nested(90), nested(300)]) | st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6
)


@pytest.fixture
async def answered(http, hand):
    """The application; every job is answered at once."""
    opened = hand.open
    hand.models = [replace(card, tasks=get_args(JobKind)) for card in hand.models]

    async def open_and_answer(job):
        encode(job)  # as the queue does
        stream = await opened(job)
        if job.kind in ROWS:
            items = 1 if job.messages else len(job.inputs.items)
            stream.placed("running", 1, "w")
            stream.accept(Answered(job.id, 1, (ROWS[job.kind],) * items, 5))
            return stream
        hand.start(len(hand.streams) - 1)
        hand.say("hi", len(hand.streams) - 1)
        hand.finish(len(hand.streams) - 1)
        return stream

    hand.open = open_and_answer
    return http


async def fine(client, path: str, body: bytes, kind: str = "application/json") -> None:
    async with asyncio.timeout(10):
        reply = await client.post(path, content=body, headers={"content-type": kind})
    assert reply.status_code < 500, (path, body, reply.text)


async def test_the_whole_body_is_answered(answered):
    for path, whole in WHOLE.items():
        body = {name: value for name, value in whole.items() if name != "tools"}
        assert (await answered.post(path, json=body)).status_code == 200, path


CALL = {"type": "tool_use", "id": "a", "name": "f", "input": None}
CALLED = {"messages": [{"role": "assistant", "content": [CALL]}]}
SAID = {"messages": [{"role": "user", "content": "x"}]}


def filled(value, deep):
    """The value with `deep` where it has None."""
    if isinstance(value, dict):
        return {name: filled(part, deep) for name, part in value.items()}
    if isinstance(value, list):
        return [filled(part, deep) for part in value]
    return deep if value is None else value


@pytest.mark.parametrize(
    "path, fields",
    [
        *((path, {name: None}) for path in WHOLE for name in WHOLE[path]),
        *((path, {"chat_template_kwargs": None}) for path in WHOLE),
        (
            "/tokenize",
            {"prompt": ..., "add_special_tokens": ..., "chat_template_kwargs": None} | SAID,
        ),
        ("/v1/messages", CALLED),
        ("/v1/messages/count_tokens", CALLED),
    ],
)
async def test_what_is_nested_deeply_is_refused_or_answered(answered, path, fields):
    body = WHOLE[path] | filled(fields, nested(300))
    body = {name: value for name, value in body.items() if value is not ...}
    await fine(answered, path, text.dumps(body).encode())


@pytest.mark.parametrize("path", WHOLE)
@given(data=st.data())
@QUICK
async def test_a_body_with_an_odd_field_is_answered_or_refused(answered, path, data):
    name = data.draw(st.sampled_from([*WHOLE[path], "n", "stream_options", "seed", "other"]))
    body = WHOLE[path] | {name: data.draw(values)}
    await fine(answered, path, text.dumps(body).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("path", WHOLE)
@given(body=st.binary(max_size=200) | values.map(lambda v: text.dumps(v).encode()))
@QUICK
async def test_a_body_of_anything_is_refused(answered, path, body):
    await fine(answered, path, body)
    await fine(answered, path, body, kind="text/plain; charset=nonsense")


LINES = st.sampled_from(
    [
        b"POST /v1/chat/completions HTTP/1.1\r\n",
        b"GET /v1/models HTTP/1.0\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Type: application/json\r\n",
        b"\r\n",
        b"ffffffffffffffff\r\n",
    ]
)


@given(parts=st.lists(LINES | st.binary(max_size=40), min_size=1, max_size=8))
@settings(QUICK, max_examples=100)
async def test_raw_bytes_never_end_the_server(by_hand, parts):
    reader, writer = await asyncio.open_connection("127.0.0.1", by_hand.port)
    writer.write(b"".join(parts))
    writer.write_eof()
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            answer = await reader.read(65536)
            assert not answer.startswith((b"HTTP/1.1 5", b"HTTP/1.0 5")), (parts, answer)
    writer.close()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{by_hand.url}/health")).is_success
