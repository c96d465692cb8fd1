"""Constraints as clients write them: what they become, what is refused, and what comes back."""

import json
import re
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from queueserve.api.constraints import constraint_of
from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.errors import InvalidRequestError
from queueserve.protocol import Constraint

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["a"],
    "additionalProperties": False,
}
NAMED = {"name": "n", "schema": SCHEMA, "strict": True}


def request(**fields):
    return ChatCompletionRequest.model_validate({"model": "m", "messages": HELLO} | fields)


@pytest.mark.parametrize(
    "fields, kind, value",
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        (
            {"response_format": {"type": "json_schema", "json_schema": NAMED}},
            "json_schema",
            json.dumps(SCHEMA, separators=(",", ":")),
        ),
        ({"guided_json": {"type": "null"}}, "json_schema", '{"type":"null"}'),
        ({"guided_json": '{"type": "null"}'}, "json_schema", '{"type": "null"}'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a", 'é"']}, "choice", '["a","é\\""]'),
        ({"guided_grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
        ({"structured_outputs": {"json": {}}}, "json_schema", "{}"),
        ({"structured_outputs": {"json_object": True}}, "json_object", ""),
        ({"structured_outputs": {"regex": "a+", "json_object": False}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice", '["a"]'),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "grammar", 'start: "a"'),
    ],
)
def test_every_way_to_write_a_constraint(fields, kind, value):
    (param,) = fields
    assert constraint_of(request(**fields)) == Constraint(kind, value, param)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None, "guided_json": None, "structured_outputs": None},
    ],
)
def test_what_does_not_constrain(fields):
    assert constraint_of(request(**fields)) is None


def test_an_output_has_one_constraint_at_most():
    with pytest.raises(InvalidRequestError) as caught:
        constraint_of(request(response_format={"type": "json_object"}, guided_choice=["a"]))
    assert caught.value.param == "guided_choice"


@pytest.mark.parametrize(
    "fields, param, code",
    [
        ({"response_format": {"type": "structural_tag"}}, "response_format", "unsupported_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
            None,
        ),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "invalid_value"),
        ({"guided_choice": []}, "guided_choice", None),
        ({"guided_regex": ""}, "guided_regex", None),
        ({"guided_json": {"type": "string"}, "guided_regex": "a"}, "guided_regex", "invalid_value"),
    ],
)
async def test_what_is_refused_before_it_is_queued(http, fields, param, code):
    answer = await http.post(
        "/v1/chat/completions", json={"model": "m", "messages": HELLO} | fields
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert code is None or error["code"] == code


@pytest.mark.parametrize(
    "fields, param",
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": NAMED | {"schema": {"type": "x"}},
                }
            },
            "response_format",
        ),
        ({"extra_body": {"guided_regex": "["}}, "guided_regex"),
        (
            {"extra_body": {"structured_outputs": {"grammar": "root ::= nowhere"}}},
            "structured_outputs",
        ),
        ({"extra_body": {"guided_json": '{"not": '}}, "guided_json"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_does_not_compile_is_a_400_that_names_the_field(
    api, worker, fields, param, stream
):
    await worker()
    with pytest.raises(openai.BadRequestError) as caught:
        await api.client.chat.completions.create(model="m", messages=HELLO, stream=stream, **fields)
    assert caught.value.param == param
    assert caught.value.code == "invalid_value"


class Book(BaseModel):
    title: str
    shelf: Literal["a", "b"]
    pages: list[int]


async def test_the_client_parses_what_a_schema_gives(api, worker):
    await worker()
    answer = await api.client.chat.completions.parse(
        model="m", messages=HELLO, response_format=Book, n=3, temperature=1
    )
    assert [type(choice.message.parsed) for choice in answer.choices] == [Book] * 3
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


async def test_a_stream_is_valid_as_a_whole(api, worker):
    await worker()
    async with api.client.chat.completions.stream(
        model="m", messages=HELLO, response_format=Book
    ) as stream:
        final = await stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Book)


async def test_completions_take_them_too_beside_free_ones(api, worker):
    await worker()
    regex = "[a-c]{3}-[0-9]+"
    bound = await api.client.completions.create(
        model="m", prompt=["x", "y"], n=2, max_tokens=60, extra_body={"guided_regex": regex}
    )
    free = await api.client.completions.create(model="m", prompt="x", max_tokens=20)
    assert all(re.fullmatch(regex, choice.text) for choice in bound.choices)
    assert not re.fullmatch(regex, free.choices[0].text)
