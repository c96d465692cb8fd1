"""Tools and reasoning as the openai client sees them; the model's text is said by the test."""

from __future__ import annotations

import asyncio
import re

import openai
import pytest
from msgspec.structs import replace
from tool_requests import CARD, TOOLS, USER, WEATHER


def call(name: str = "get_weather", arguments: str = '{"city": "Paris"}') -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


async def ask(by_hand, *says: str, reason="stop", card=CARD, choices=1, **fields):
    """The answer to a request, while the model says this, piece by piece."""
    by_hand.hand.models = [card]
    asked = {"model": "m", "messages": [USER], "tools": TOOLS} | fields

    async def whole_answer():
        answer = await by_hand.client.chat.completions.create(**asked)
        return [chunk async for chunk in answer] if asked.get("stream") else answer

    answer = asyncio.create_task(whole_answer())
    await by_hand.hand.opened(choices)
    for index in range(choices):
        by_hand.hand.start(index)
        for text in says:
            by_hand.hand.say(text, index)
        by_hand.hand.finish(index, reason=reason)
    return await answer


async def test_a_call_in_one_piece(by_hand):
    answer = await ask(by_hand, "<think>Hm", ".</think>", "\n\n", call())
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.reasoning_content == "Hm."
    (made,) = choice.message.tool_calls
    assert re.fullmatch("call_[0-9a-f]{24}", made.id)
    assert (made.type, made.function.name) == ("function", "get_weather")
    assert made.function.arguments == '{"city": "Paris"}'
    assert answer.usage.completion_tokens == 4
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    "said,reason",
    [
        (call()[:-20], "stop"),
        (call() + call()[:-20], "stop"),
        (call().removesuffix("</tool_call>"), "tool_calls"),
        (call(), "tool_calls"),
    ],
)
async def test_only_whole_calls_end_as_calls(by_hand, said, reason, parallel, stream):
    got = await ask(by_hand, said, stream=stream, parallel_tool_calls=parallel)
    choice = (got[-1] if stream else got).choices[0]
    first_counts = not parallel and said.startswith(call())
    assert choice.finish_reason == ("tool_calls" if first_counts else reason)


async def test_a_call_in_a_stream_comes_in_openais_order(by_hand):
    text = call()
    got = await ask(by_hand, *text, stream=True)
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in got]
    assert deltas[0] == {"role": "assistant", "content": None, "refusal": None}
    (head,) = deltas[1]["tool_calls"]
    assert re.fullmatch("call_[0-9a-f]{24}", head.pop("id"))
    function = {"name": "get_weather", "arguments": ""}
    assert head == {"index": 0, "type": "function", "function": function}
    grown = [delta["tool_calls"][0] for delta in deltas[2:-1]]
    assert all(part.keys() == {"index", "function"} and part["index"] == 0 for part in grown)
    assert all(part["function"].keys() == {"arguments"} for part in grown)
    assert "".join(part["function"]["arguments"] for part in grown) == '{"city": "Paris"}'
    assert len(grown) == len('{"city": "Paris"}')  # as they grow
    assert deltas[-1] == {}
    assert [chunk.choices[0].finish_reason for chunk in got[-2:]] == [None, "tool_calls"]


async def test_the_openai_client_puts_a_stream_together(by_hand):
    by_hand.hand.models = [CARD]
    says = ["<think>Two.</think>", "See:", call(), call("add", "{}")]

    async def talk():
        await by_hand.hand.opened()
        by_hand.hand.start()
        for text in says:
            by_hand.hand.say(text)
        by_hand.hand.finish()

    talking = asyncio.create_task(talk())
    options = {"include_usage": True}
    async with by_hand.client.chat.completions.stream(
        model="m", messages=[USER], tools=TOOLS, stream_options=options
    ) as stream:
        answer = await stream.get_final_completion()
    await talking
    message = answer.choices[0].message
    assert message.content == "See:"
    calls = [(made.function.name, made.function.arguments) for made in message.tool_calls]
    assert calls == [("get_weather", '{"city": "Paris"}'), ("add", "{}")]
    assert len({made.id for made in message.tool_calls}) == 2
    assert answer.usage.completion_tokens_details.reasoning_tokens == 1


async def test_text_stays_text(by_hand):
    answer = await ask(by_hand, "It is ", "fine.")
    assert answer.choices[0].message.content == "It is fine."
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert "tool_calls" not in answer.choices[0].message.model_fields_set


async def test_a_call_that_breaks_off_at_the_limit_says_so(by_hand):
    answer = await ask(by_hand, call()[:-15], reason="length")
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls[0].function.arguments.startswith('{"city": "Par')


BOUND = '[{"name": "get_weather", "arguments": {"city": "Paris"}}'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "said,names",
    [
        ("[", []),
        ('[{"na', []),
        ('[{"name": "get_w', []),
        ('[{"name": "get_weather", "argum', []),
        (BOUND, ["get_weather"]),
        (BOUND + ", ", ["get_weather"]),
        (BOUND + ', {"name": "ad', ["get_weather"]),
    ],
)
async def test_the_beginning_of_a_call_that_must_come_is_no_content(by_hand, said, names, stream):
    fields = {"tool_choice": "required", "parallel_tool_calls": True, "stream": stream}
    got = await ask(by_hand, *said, reason="length", **fields)
    choices = [part.choices[0] for part in (got if stream else [got])]
    parts = [choice.delta if stream else choice.message for choice in choices]
    assert not any(part.content for part in parts)
    calls = [made.function.name for part in parts for made in part.tool_calls or ()]
    assert [name for name in calls if name] == names
    assert choices[-1].finish_reason == "length"


async def test_the_beginning_of_a_call_that_may_be_an_answer_stays_content(by_hand):
    answer = await ask(by_hand, '{"na', reason="length", response_format={"type": "json_object"})
    assert answer.choices[0].message.content == '{"na'


async def test_without_parallel_calls_only_the_first_one_counts(by_hand):
    answer = await ask(by_hand, call(), call("add", "{}"), parallel_tool_calls=False)
    assert [made.function.name for made in answer.choices[0].message.tool_calls] == ["get_weather"]


@pytest.mark.parametrize("stream", [True, False])
async def test_every_choice_has_calls_of_its_own(by_hand, stream):
    answer = await ask(by_hand, call(), choices=2, n=2, stream=stream)
    made = {}
    for part in answer if stream else [answer]:
        for choice in part.choices:
            said = choice.delta if stream else choice.message
            for one in said.tool_calls or ():
                made.setdefault(choice.index, []).append(one.id)
    first, second = ([one for one in ids if one] for ids in (made[0], made[1]))
    assert len(first) == len(second) == 1
    assert first != second


async def test_ids_are_the_same_for_a_retry(by_hand):
    headers = {"Idempotency-Key": "k"}
    first = await ask(by_hand, call(), extra_headers=headers)
    by_hand.hand.streams.clear()
    second = await ask(by_hand, call(), extra_headers=headers)
    ids = [answer.choices[0].message.tool_calls[0].id for answer in (first, second)]
    assert ids[0] == ids[1]


async def test_reasoning_streams_apart_and_is_counted(by_hand):
    says = ("<think>", "So", " so", "</think>", "Yes", ".")
    options = {"stream": True, "tools": openai.NOT_GIVEN}
    options["stream_options"] = {"include_usage": True}
    got = await ask(by_hand, *says, **options)
    deltas = [chunk.choices[0].delta for chunk in got if chunk.choices]
    reasoning = [delta.reasoning_content for delta in deltas if hasattr(delta, "reasoning_content")]
    assert reasoning == ["So", " so"]
    assert [delta.content for delta in deltas] == [None, None, None, "Yes", ".", None]
    assert got[-1].usage.completion_tokens_details.reasoning_tokens == 4
    assert got[-1].usage.completion_tokens == 6


async def test_reasoning_that_never_ends_is_all_reasoning(by_hand):
    answer = await ask(by_hand, "<think>", "So", reason="length", tools=openai.NOT_GIVEN)
    assert answer.choices[0].message.reasoning_content == "So"
    assert answer.choices[0].message.content == ""
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2


async def test_the_older_functions(by_hand):
    functions = [WEATHER["function"]]
    fields = {"tools": openai.NOT_GIVEN, "functions": functions}
    answer = await ask(by_hand, call(), **fields)
    assert answer.choices[0].finish_reason == "function_call"
    assert answer.choices[0].message.function_call.name == "get_weather"
    assert answer.choices[0].message.function_call.arguments == '{"city": "Paris"}'
    assert answer.choices[0].message.tool_calls is None
    by_hand.hand.streams.clear()
    got = await ask(by_hand, call(), stream=True, **fields)
    calls = [chunk.choices[0].delta.function_call for chunk in got]
    calls = [made for made in calls if made]
    assert (calls[0].name, calls[0].arguments) == ("get_weather", "")
    assert "".join(made.arguments for made in calls) == '{"city": "Paris"}'
    assert got[-1].choices[0].finish_reason == "function_call"


async def test_plain_text_takes_the_plain_way(by_hand):
    plain = replace(CARD, reasoning_parser=None)
    got = await ask(by_hand, call(), card=plain, tools=openai.NOT_GIVEN, stream=True)
    assert got[0].choices[0].delta.content == ""
    assert got[1].choices[0].delta.content == call()
