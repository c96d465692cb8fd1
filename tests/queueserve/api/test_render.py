"""Events become OpenAI's objects, byte for byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from queueserve.api.render import CHAT, COMPLETION, Chunks, Reply, Whole
from queueserve.protocol import Delta, Finished, Started


def reply(shape=CHAT, **fields) -> Reply:
    given = {"id": "x", "created": 5, "model": "m", "jobs": 1, "choices": 1} | fields
    return Reply(shape=shape, **given)


def started(prompt_tokens=3, cached_tokens=0):
    return Started("j", 1, 0, prompt_tokens, cached_tokens, "hash", "fp", "w")


def delta(text):
    return Delta("j", 1, 0, 0, text, (1,))


def finished(text="", tokens=2, reason="stop"):
    return Finished("j", 1, tokens, 0, text, reason)


HEAD = b'"created":5,"model":"m","system_fingerprint":"fp"'


def test_a_chat_stream_byte_for_byte():
    head = b'data: {"id":"x","object":"chat.completion.chunk",' + HEAD + b',"choices":[{"index":0,'
    chunks = Chunks(reply())
    assert chunks.render([(0, [started()])]) == head + (
        b'"delta":{"role":"assistant","content":"","refusal":null},'
        b'"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert chunks.render([(0, [delta('a"\n\u2028é')])]) == head + (
        '"delta":{"content":"a\\"\\n\u2028é"},"logprobs":null,"finish_reason":null}]}\n\n'.encode()
    )
    assert chunks.render([(0, [finished()])]) == head + (
        b'"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    )
    assert chunks.end() == b"data: [DONE]\n\n"


def test_a_completion_stream_byte_for_byte():
    head = b'data: {"id":"x","object":"text_completion",' + HEAD + b',"choices":[{"index":0,'
    chunks = Chunks(reply(COMPLETION))
    assert chunks.render([(0, [started()])]) == b""
    assert chunks.render([(0, [delta("a")])]) == head + (
        b'"text":"a","logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert chunks.render([(0, [finished(reason="length")])]) == head + (
        b'"text":"","logprobs":null,"finish_reason":"length"}]}\n\n'
    )


def data(frames: bytes) -> list[dict]:
    *events, rest = frames.decode().split("\n\n")
    assert rest == ""
    return [json.loads(event.removeprefix("data: ")) for event in events if "[DONE]" not in event]


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("shape", [CHAT, COMPLETION])
def test_text_that_was_held_back_comes_before_the_end(shape, usage):
    chunks = Chunks(reply(shape, include_usage=usage))
    events = [started(), delta("a"), delta(""), finished("b")]
    got = data(chunks.render([(0, events)]))
    choices = [chunk["choices"][0] for chunk in got]
    texts = [choice.get("text") or choice.get("delta", {}).get("content", "") for choice in choices]
    assert [text for text in texts if text] == ["a", "b"]
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "stop"]
    assert {chunk.get("usage", "absent") for chunk in got} == {None if usage else "absent"}


def test_the_usage_chunk_counts_a_prompt_once_and_all_outputs():
    chunks = Chunks(reply(jobs=4, choices=2, include_usage=True))
    for index, prompt_tokens in enumerate([3, 3, 5, 5]):
        chunks.render([(index, [started(prompt_tokens, index), finished(tokens=10 + index)])])
    frames = chunks.end()
    assert frames.endswith(b"data: [DONE]\n\n")
    (last,) = data(frames)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 8,
        "completion_tokens": 46,
        "total_tokens": 54,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_an_answer_in_one_piece():
    whole = Whole(reply(jobs=2, choices=2, service_tier="auto"))
    whole.add([(1, [started(4, 1), delta("x")]), (0, [started(4, 1), delta("a")])])
    whole.add([(0, [delta("b"), finished("c")]), (1, [finished(reason="length")])])
    assert json.loads(whole.body()) == {
        "id": "x",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "system_fingerprint": "fp",
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "abc", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "x", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            },
        ],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 4,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
    ChatCompletion.model_validate_json(whole.body(), strict=True)


def test_a_completion_in_one_piece():
    whole = Whole(reply(COMPLETION))
    whole.add([(0, [started(), delta("a"), finished()])])
    answer = Completion.model_validate_json(whole.body(), strict=True)
    assert (answer.object, answer.choices[0].text) == ("text_completion", "a")


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]))))
def test_every_text_survives_its_way_through_a_stream(texts):
    chunks = Chunks(reply(include_usage=True))
    frames = chunks.render([(0, [started(), *map(delta, texts), finished()])]) + chunks.end()
    assert b"\r" not in frames
    parsed = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in data(frames)]
    contents = [choice.delta.content or "" for chunk in parsed for choice in chunk.choices]
    assert "".join(contents) == "".join(texts)
    assert len([text for text in contents if text]) == len([text for text in texts if text])
