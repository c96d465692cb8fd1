"""Answers with more than text: log-probabilities, token ids, echo, the best of several."""

import math

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queueserve.api.logprobs import chat_logprobs, prompt_logprobs, text_logprobs
from queueserve.encoding import decode_events, encode_events
from queueserve.protocol import Delta, Prompt, Started, TokenLogprob

HELLO = [{"role": "user", "content": "hello"}]
PROMPT = " the queue is é!"
OPEN = {"ignore_eos": True}  # the fake model would end when it likes


async def chat(api, **fields):
    given = {"model": "m", "messages": HELLO, "max_tokens": 12} | fields
    return await api.client.chat.completions.create(extra_body=OPEN, **given)


async def complete(api, **fields):
    extra = OPEN | fields.pop("extra_body", {})
    given = {"model": "m", "prompt": PROMPT, "max_tokens": 12} | fields
    return await api.client.completions.create(extra_body=extra, **given)


# Chat


async def test_chat_tells_every_token_and_its_alternatives(api, worker):
    await worker()
    answer = await chat(api, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    entries = choice.logprobs.content
    assert choice.logprobs.refusal is None
    assert len(entries) == answer.usage.completion_tokens == 12
    said = b"".join(bytes(entry.bytes) for entry in entries)
    assert said.decode(errors="replace").removeprefix(" ") == choice.message.content
    for entry in entries:
        assert entry.token == bytes(entry.bytes).decode(errors="replace")
        assert [len(entry.top_logprobs), entry.logprob <= 0] == [3, True]
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)


async def test_a_chat_stream_tells_the_same(api, worker):
    await worker()
    own = {"logprobs": True, "top_logprobs": 2, "temperature": 0, "n": 2}
    whole = await chat(api, **own)
    entries, texts = [[], []], ["", ""]
    async for chunk in await chat(api, stream=True, **own):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            entries[choice.index] += (choice.logprobs and choice.logprobs.content) or []
    assert entries == [choice.logprobs.content for choice in whole.choices]
    assert texts == [choice.message.content for choice in whole.choices]


async def test_logprobs_without_alternatives_and_none_at_all(api, worker):
    await worker()
    bare = (await chat(api, logprobs=True)).choices[0].logprobs.content
    assert {len(entry.top_logprobs) for entry in bare} == {0}
    assert (await chat(api, logprobs=False)).choices[0].logprobs is None


@pytest.mark.parametrize("stream", [False, True])
async def test_token_ids_of_chats(api, worker, stream):
    await worker()
    own = {"stream": stream, "temperature": 0, "logprobs": True}
    given = {"model": "m", "messages": HELLO, "max_tokens": 5} | own
    answer = await api.client.chat.completions.create(
        extra_body=OPEN | {"return_token_ids": True}, **given
    )
    if stream:
        chunks = [chunk async for chunk in answer]
        prompt = chunks[0].prompt_token_ids
        ids = [one for chunk in chunks for one in getattr(chunk.choices[0], "token_ids", [])]
    else:
        prompt, ids = answer.prompt_token_ids, answer.choices[0].token_ids
        assert len(prompt) == answer.usage.prompt_tokens
    assert len(ids) == 5
    assert len(prompt) > 5


# Completions


async def test_completions_tell_logprobs_in_the_older_form(api, worker):
    await worker()
    answer = await complete(api, logprobs=2, temperature=0)
    choice, own = answer.choices[0], answer.choices[0].logprobs
    assert len(own.tokens) == len(own.token_logprobs) == len(own.text_offset) == 12
    assert own.text_offset[0] == 0
    for name, value, top, at in zip(
        own.tokens, own.token_logprobs, own.top_logprobs, own.text_offset, strict=True
    ):
        assert top[name] == value
        assert len(top) in {2, 3}
        if not name.startswith("bytes:"):
            assert choice.text.startswith(name, at)


async def test_a_stream_of_completions_tells_the_same(api, worker):
    await worker()
    whole = (await complete(api, logprobs=1, temperature=0, echo=True)).choices[0]
    text, tokens, offsets = "", [], []
    async for chunk in await complete(api, logprobs=1, temperature=0, echo=True, stream=True):
        choice = chunk.choices[0]
        text += choice.text
        if choice.logprobs:
            tokens += choice.logprobs.tokens
            offsets += choice.logprobs.text_offset
    assert (text, tokens) == (whole.text, whole.logprobs.tokens)
    assert offsets == whole.logprobs.text_offset


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_puts_the_prompt_in_front(api, worker, stream):
    await worker()
    ids = list(PROMPT.encode())
    for prompt in (PROMPT, ids, [PROMPT, PROMPT], [ids, ids]):
        plain = await complete(api, prompt=prompt, temperature=0)
        answer = await complete(api, prompt=prompt, temperature=0, echo=True, stream=stream)
        texts = ["", ""]
        if stream:
            async for chunk in answer:
                texts[chunk.choices[0].index] += chunk.choices[0].text
        else:
            for choice in answer.choices:
                texts[choice.index] = choice.text
        for choice in plain.choices:
            assert texts[choice.index] == PROMPT + choice.text


async def test_a_prompt_can_be_scored_without_an_answer(api, worker):
    await worker()
    answer = await complete(api, echo=True, logprobs=1, max_tokens=0)
    choice, own = answer.choices[0], answer.choices[0].logprobs
    assert (choice.text, choice.finish_reason) == (PROMPT, "length")
    assert answer.usage.completion_tokens == 0
    assert len(own.tokens) == answer.usage.prompt_tokens
    assert own.token_logprobs[0] is None
    assert own.top_logprobs[0] is None
    assert all(value < 0 for value in own.token_logprobs[1:])
    assert own.tokens[:2] == ["<|bos|>", " the"]
    assert own.text_offset[:3] == [0, 0, 4]
    bare = await complete(api, echo=True, max_tokens=0)
    assert (bare.choices[0].text, bare.choices[0].logprobs) == (PROMPT, None)


async def test_the_best_of_several_have_the_highest_mean_logprob(api, worker):
    await worker()
    own = {"prompt": ["x", "y"], "seed": 3, "temperature": 1, "logprobs": 0}
    every = await complete(api, n=6, **own)
    best = await complete(api, n=2, best_of=6, **own)

    def mean(choice):
        return math.fsum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    expected = []
    for prompt in (every.choices[:6], every.choices[6:]):
        expected += [choice.text for choice in sorted(prompt, key=mean, reverse=True)[:2]]
    assert [choice.text for choice in best.choices] == expected
    assert [choice.index for choice in best.choices] == [0, 1, 2, 3]
    assert best.usage.completion_tokens == every.usage.completion_tokens == 144
    assert best.usage.prompt_tokens == every.usage.prompt_tokens == 4
    plain = await complete(api, n=1, best_of=3, prompt="x")
    assert plain.choices[0].logprobs is None


async def test_token_ids_of_completions(api, worker):
    await worker()
    answer = await complete(api, n=2, extra_body={"return_token_ids": True})
    for choice in answer.choices:
        assert len(choice.token_ids) == 12
        assert len(choice.prompt_token_ids) == answer.usage.prompt_tokens


async def test_min_tokens_biases_and_ignored_ends(api, worker):
    await worker()
    given = {"model": "m", "prompt": PROMPT, "max_tokens": 200, "temperature": 0}
    forced = await api.client.completions.create(
        **given, logit_bias={"258": 100}, extra_body={"min_tokens": 3}
    )
    assert forced.usage.completion_tokens == 3
    assert forced.choices[0].finish_reason == "stop"
    endless = await api.client.completions.create(**given, extra_body=OPEN)
    assert endless.usage.completion_tokens == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_and_token_ids_go_with_tools(api, worker, stream):
    await worker()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    answer = await api.client.chat.completions.create(
        model="m",
        messages=HELLO,
        tools=[tool],
        max_tokens=6,
        logprobs=True,
        stream=stream,
        extra_body=OPEN | {"return_token_ids": True},
    )
    chunks = [chunk async for chunk in answer] if stream else [answer]
    told = [choice for chunk in chunks for choice in chunk.choices]
    entries = [
        one for choice in told for one in (choice.logprobs and choice.logprobs.content) or ()
    ]
    ids = [one for choice in told for one in getattr(choice, "token_ids", [])]
    assert (len(entries), len(ids)) == (6, 6)
    assert any(getattr(chunk, "prompt_token_ids", None) for chunk in chunks)


async def test_what_does_not_go_together_is_refused(api, worker):
    await worker()
    for fields in ({"suffix": "end"}, {"best_of": 2, "stream": True}, {"max_tokens": 0}):
        with pytest.raises(openai.BadRequestError) as caught:
            await complete(api, **fields)
        assert caught.value.param == next(iter(fields))


# What crosses the process, and the forms

pieces = st.binary(max_size=4)
values = st.floats(-50, 0)


@st.composite
def logprobs(draw):
    top = draw(st.lists(st.tuples(st.integers(0, 9), values), max_size=3))
    own = draw(st.lists(pieces, min_size=len(top) + 1, max_size=len(top) + 1))
    return TokenLogprob(draw(values), tuple(top), tuple(own))


@settings(deadline=None)
@given(st.lists(logprobs(), min_size=1, max_size=3), st.booleans())
def test_logprobs_and_prompts_cross_the_process_whole(told, scored):
    tokens = tuple(range(len(told)))
    prompt = Prompt(tokens, tuple(b"\xff" for _ in told), (None, *told[1:]) if scored else None)
    events = [
        Started("j", 1, 0, 3, 0, "hash", "fp", "w", prompt),
        Started("j", 1, 0, 3, 0, "hash", "fp", "w"),
        Delta("j", 1, 0, 0, "x", tokens, tuple(told)),
    ]
    assert decode_events(encode_events(events)) == events


def test_events_of_an_older_worker_are_read():
    old = (
        b'[["started","j",1,0,3,0,"hash","fp","w"],["delta","j",1,0,0,"x",[5],[[-0.5,[[5,-0.5]]]]]]'
    )
    started, delta = decode_events(old)
    assert started.prompt is None
    assert delta.logprobs == (TokenLogprob(-0.5, ((5, -0.5),)),)


def test_a_token_that_is_part_of_a_character():
    half = TokenLogprob(-1.0, ((7, -math.inf),), (b"\xc3", b"\xa9"))
    rest = TokenLogprob(-0.5, (), (b"\xa9",))
    content = chat_logprobs([half])["content"][0]
    assert content["token"] == "\ufffd"
    assert content["bytes"] == [0xC3]
    assert content["top_logprobs"][0]["logprob"] == -9999.0
    delta = Delta("j", 1, 0, 4, "é", (1, 2), (half, rest))
    assert text_logprobs(delta, base=10) == {
        "tokens": ["bytes:\\xc3", "bytes:\\xa9"],
        "token_logprobs": [-1.0, -0.5],
        "top_logprobs": [
            {"bytes:\\xa9": -9999.0, "bytes:\\xc3": -1.0},
            {"bytes:\\xa9": -0.5},
        ],
        "text_offset": [14, 14],
    }


def test_special_tokens_take_no_room_in_a_prompt():
    prompt = Prompt((1, 2, 3, 4), (b"<s>", b" Hi", b" \xc3", b"\xa9"), (None,) * 4)
    assert prompt_logprobs(prompt, "Hi é")["text_offset"] == [0, 0, 2, 3]
