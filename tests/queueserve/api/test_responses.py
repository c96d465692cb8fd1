"""POST /v1/responses as the openai client sees it, on a real Redis and a fake engine."""

from __future__ import annotations

import re

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

EVENT = TypeAdapter(ResponseStreamEvent)
INPUT = "Tell me about queues"
GREEDY = {"model": "m", "temperature": 0, "extra_body": {"ignore_eos": True}}


def strict(response: Response) -> Response:
    """The same, if it is what the client's types say."""
    Response.model_validate_json(response.to_json(), strict=True)
    return response


async def chat_text(api, messages, **options):
    answer = await api.client.chat.completions.create(messages=messages, **(GREEDY | options))
    return answer.choices[0].message.content


@pytest.fixture
async def api(api, worker):
    await worker()
    return api


async def test_an_answer_in_one_piece(api):
    response = await api.client.responses.create(
        input=INPUT,
        instructions="Be brief.",
        max_output_tokens=5,
        metadata={"a": "b"},
        **GREEDY,
    )
    strict(response)
    assert re.fullmatch(r"resp_[0-9a-f]{32}", response.id)
    assert (response.status, response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete")
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": INPUT}]
    assert response.output_text == await chat_text(api, said, max_tokens=5)
    assert response.usage.output_tokens == 5
    assert response.usage.total_tokens == response.usage.input_tokens + 5
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    assert (response.temperature, response.max_output_tokens) == (0, 5)


async def test_an_answer_that_ends_by_itself_is_completed(api):
    response = strict(await api.client.responses.create(model="m", input=INPUT, temperature=0))
    assert response.status == response.output[0].status == "completed"
    assert response.completed_at >= response.created_at


async def test_a_stream_has_every_event_in_its_place(api):
    whole = await api.client.responses.create(input=INPUT, max_output_tokens=20, **GREEDY)
    stream = await api.client.responses.create(
        input=INPUT, max_output_tokens=20, stream=True, **GREEDY
    )
    events = [event async for event in stream]
    for event in events:
        EVENT.validate_json(event.to_json(), strict=True)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert deltas > 5
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        whole.output_text
    )
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.total_tokens == whole.usage.total_tokens
    assert events[0].response.status == "in_progress"


async def test_the_stream_helper_gives_the_final_response(api):
    async with api.client.responses.stream(model="m", input=INPUT, temperature=0) as stream:
        snapshots = [
            event.snapshot async for event in stream if event.type == "response.output_text.delta"
        ]
        response = await stream.get_final_response()
    assert response.status == "completed"
    assert snapshots[-1] == response.output_text


async def test_items_are_the_conversation(api):
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "b", "annotations": []},
                {"type": "output_text", "text": "c", "annotations": []},
            ],
        },
        {"type": "message", "role": "user", "content": "d"},
    ]
    response = await api.client.responses.create(input=items, max_output_tokens=20, **GREEDY)
    said = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bc"},
        {"role": "user", "content": "d"},
    ]
    assert response.output_text == await chat_text(api, said, max_tokens=20)


async def test_an_idempotency_key_gives_the_same_response(api, redis):
    options = {"max_output_tokens": 20, "extra_headers": {"Idempotency-Key": "k"}}
    options |= {"model": "m", "input": INPUT}
    first = await api.client.responses.create(**options)
    second = await api.client.responses.create(**options)
    assert (second.id, second.output) == (first.id, first.output)
    assert len(await redis.keys("qs:{m}:job:idem-*")) == 1
    with pytest.raises(openai.ConflictError):
        await api.client.responses.create(**options | {"input": "else"})


@pytest.mark.parametrize(
    "bad, param, code",
    [
        ({"input": [{"type": "web_search_call"}]}, "input[0]", "unsupported_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": 5}, "input", "invalid_type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "unsupported_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"truncation": "some"}, "truncation", "invalid_value"),
        ({"include": ["web_search_call.results"]}, "include", "unsupported_value"),
        (
            {"input": [{"type": "reasoning", "encrypted_content": "gAAA"}]},
            "input[0].encrypted_content",
            "invalid_value",
        ),
        ({"return_token_ids": True}, "return_token_ids", "unsupported_value"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_value"),
        ({"guided_regex": "["}, "guided_regex", "invalid_value"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "input[0].content[0]",
            "unsupported_value",
        ),
    ],
)
async def test_what_cannot_be_done_is_a_400_that_names_the_field(api, bad, param, code):
    with pytest.raises(openai.BadRequestError) as caught:
        await api.client.responses.create(model="m", input=INPUT, extra_body=bad)
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize(
    "bound",
    [
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"guided_json": {"enum": ["yes", "no"]}},
        {"guided_regex": "yes|no"},
        {"guided_choice": ["yes", "no"]},
        {"guided_grammar": 'root ::= "yes" | "no"'},
    ],
)
async def test_what_other_servers_have_binds_the_output(api, bound):
    response = await api.client.responses.create(model="m", input=INPUT, extra_body=bound)
    assert response.output_text.strip('"') in ("yes", "no")


async def test_to_include_nothing_or_to_want_what_is_the_case_changes_nothing(api):
    said = {"include": [], "return_token_ids": False, "response_format": None}
    response = await api.client.responses.create(model="m", input=INPUT, extra_body=said)
    assert response.status == "completed"


async def test_log_probabilities_are_told_where_they_are_included(api):
    include = ["message.output_text.logprobs"]
    asked = {"model": "m", "input": INPUT, "include": include, "temperature": 0}
    response = await api.client.responses.create(top_logprobs=2, **asked)
    assert response.top_logprobs == 2
    (text,) = response.output[0].content
    spelled = b"".join(bytes(one.bytes) for one in text.logprobs).decode()
    assert spelled == f" {text.text}"  # an answer's first space is the tokenizer's, not the text's
    assert {len(one.top_logprobs) for one in text.logprobs} == {2}
    bare = await api.client.responses.create(**asked)
    assert {len(one.top_logprobs) for one in bare.output[0].content[0].logprobs} == {0}
    events = [event async for event in await api.client.responses.create(stream=True, **asked)]
    told = [one for e in events if e.type == "response.output_text.delta" for one in e.logprobs]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    (final,) = events[-1].response.output[0].content
    assert [one.token for one in told] == [one.token for one in final.logprobs]
    assert len(done.logprobs) == len(told) > 1


@pytest.mark.parametrize("stream", [True, False])
async def test_too_long_a_prompt_is_a_400_before_any_byte_of_an_answer(api, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        await api.client.responses.create(model="m", input="word " * 5000, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


async def test_tokens_are_counted_as_the_response_will_count_them(api):
    options = {"model": "m", "input": INPUT, "instructions": "Be brief."}
    counted = await api.client.responses.input_tokens.count(**options)
    response = await api.client.responses.create(max_output_tokens=1, **options)
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == response.usage.input_tokens


async def test_what_is_too_long_loses_its_oldest_turns_if_that_is_allowed(api):
    turns = [{"role": "user", "content": f"{number} " + "word " * 300} for number in range(20)]
    options = {"model": "m", "instructions": "Be brief.", "max_output_tokens": 5}
    with pytest.raises(openai.BadRequestError, match="context length"):
        await api.client.responses.create(input=turns, **options)
    response = await api.client.responses.create(input=turns, truncation="auto", **options)
    assert response.truncation == "auto"
    kept = response.usage.input_tokens
    cards = (await api.client.models.list()).data
    limit = cards[0].to_dict()["max_model_len"]
    one_turn = (await api.client.responses.input_tokens.count(model="m", input=turns[:1])).to_dict()
    assert limit - one_turn["input_tokens"] <= kept + 5 <= limit
    page = await api.client.responses.input_items.list(response.id, limit=100)
    assert len(page.data) == 20


async def test_a_stream_may_tell_where_it_stands(api):
    asked = {"model": "m", "input": INPUT, "stream": True, "max_output_tokens": 2}
    extra = {"stream_options": {"include_queue_position": True}}
    events = [e async for e in await api.client.responses.create(**asked, extra_body=extra)]
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"
