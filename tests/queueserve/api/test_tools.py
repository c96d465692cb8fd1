"""Tools and reasoning as the openai client sees them; the model's text is said by the test."""

from __future__ import annotations

import asyncio
import json
import re

import openai
import pytest
from msgspec.structs import replace

from queueserve.api.jobs import Identity, chat_jobs
from queueserve.api.parsers import CALLS
from queueserve.api.schemas.chat import ChatCompletionRequest
from queueserve.api.tools import MAX_BOUND_CALLS, parsing_of
from queueserve.protocol import ModelCard
from queueserve.settings import ApiSettings

USER = {"role": "user", "content": "How is Paris?"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str, **fields) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS} | fields}


WEATHER, ADD = tool("get_weather", description="Now"), tool("add", parameters=None)
TOOLS = [WEATHER, ADD]
CARD = ModelCard(
    name="m",
    pool="m",
    context_length=100,
    engine="hand",
    tool_parser="hermes",
    reasoning_parser="think",
)


def named(name: str) -> dict:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def call(name: str = "get_weather", arguments: str = '{"city": "Paris"}') -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


# What is asked, and what answers


@pytest.fixture(autouse=True)
def _a_model_with_tools(hand):
    hand.models = [CARD]


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


# What the job holds


def request(**fields) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [USER], "tools": TOOLS} | fields
    return ChatCompletionRequest.model_validate(body)


def job(card=CARD, **fields):
    (made,) = chat_jobs(request(**fields), Identity.fresh("x-"), card, ApiSettings())
    return made


def schema(**fields) -> dict:
    constraint = job(**fields).constraint
    assert (constraint.kind, constraint.param) == ("json_schema", "tool_choice")
    return json.loads(constraint.value)


def test_tools_reach_the_template_as_they_were_sent():
    assert job().tools == (WEATHER, {"type": "function", "function": {"name": "add"}})
    assert job().constraint is None
    assert job(tools=[tool("f", strict=True)]).tools == (tool("f"),)


def test_none_hides_the_tools():
    assert job(tool_choice="none").tools == ()
    parsing = parsing_of(request(tool_choice="none"), CARD, None)
    assert (parsing.tools, parsing.reasoning) == (None, "think")


CALL_WEATHER = {
    "type": "object",
    "properties": {"name": {"const": "get_weather"}, "arguments": PARAMETERS},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
CALL_ADD = CALL_WEATHER | {
    "properties": {
        "name": {"const": "add"},
        "arguments": {"type": "object", "properties": {}, "additionalProperties": False},
    }
}


def test_required_binds_the_output_to_a_list_of_calls():
    assert schema(tool_choice="required") == {
        "type": "array",
        "items": {"anyOf": [CALL_WEATHER, CALL_ADD]},
        "minItems": 1,
        "maxItems": MAX_BOUND_CALLS,
    }


def test_a_model_without_a_dialect_must_call_once_unless_more_are_asked_for():
    plain = replace(CARD, tool_parser="json")
    once, more = (
        json.loads(job(plain, tool_choice="required", parallel_tool_calls=asked).constraint.value)
        for asked in (None, True)
    )
    assert once == {"anyOf": [CALL_WEATHER, CALL_ADD]}
    assert more["type"] == "array"


def test_a_bound_output_is_json_whatever_the_model_speaks():
    wanted = request(tool_choice="required")
    parsing = parsing_of(wanted, CARD, job(tool_choice="required").constraint)
    assert (parsing.tools, parsing.reasoning) == (CALLS, None)
    assert parsing.names == ("get_weather", "add")


@pytest.mark.parametrize(
    "fields,expected,shown",
    [
        ({"tool_choice": named("add")}, CALL_ADD, ["add"]),
        ({"tool_choice": "required", "parallel_tool_calls": False, "tools": [ADD]}, CALL_ADD, None),
        ({"tools": None, "functions": [WEATHER["function"]]}, None, None),
        (
            {"tools": None, "functions": [ADD["function"]], "function_call": {"name": "add"}},
            CALL_ADD,
            None,
        ),
        ({"tool_choice": allowed("auto", "add")}, None, ["add"]),
    ],
)
def test_what_is_chosen(fields, expected, shown):
    made = job(**fields)
    assert (made.constraint and json.loads(made.constraint.value)) == expected
    names = [one["function"]["name"] for one in made.tools]
    assert names == (shown or names)


def test_allowed_tools_may_be_required():
    items = schema(tool_choice=allowed("required", "add"))["items"]
    assert items == CALL_ADD


def test_references_inside_the_parameters_are_moved_with_them():
    point = {"type": "object", "properties": {"next": {"$ref": "#"}, "at": {"$ref": "#/$defs/P"}}}
    wanted = tool("go", parameters=point | {"$defs": {"P": {"type": "integer"}}})
    made = schema(tools=[wanted], tool_choice="required", parallel_tool_calls=False)
    assert made["properties"]["arguments"] == {"$ref": "#/$defs/go"}
    moved = made["$defs"]["go"]
    assert moved["properties"]["next"] == {"$ref": "#/$defs/go"}
    assert moved["properties"]["at"] == {"$ref": "#/$defs/go/$defs/P"}
    assert moved["$defs"] == {"P": {"type": "integer"}}


def test_a_bound_call_has_the_parameters_that_are_named_and_no_others():
    inner = {"type": "object", "properties": {"x": {"enum": [{"type": "object"}]}}}
    properties = {"type": {"type": "string"}, "at": inner, "any": {"type": "object"}}
    wanted = tool("go", parameters={"properties": properties})
    made = schema(tools=[wanted], tool_choice=named("go"))["properties"]["arguments"]
    no_more = {"additionalProperties": False}
    assert made == {
        "type": "object",
        "properties": properties | {"at": inner | no_more},
        **no_more,
    }


@pytest.mark.parametrize("name", ["const", "default", "enum", "examples", "properties"])
def test_what_a_property_is_called_means_nothing(name):
    inner = {"type": "object", "properties": {"a": {"$ref": "#/$defs/P"}}}
    wanted = tool("go", parameters={"properties": {name: inner}, "$defs": {"P": {}}})
    made = schema(tools=[wanted], tool_choice=named("go"))["$defs"]["go"]
    assert made["properties"][name] == {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/go/$defs/P"}},
        "additionalProperties": False,
    }


@pytest.mark.parametrize("keyword", ["const", "default", "enum", "examples"])
def test_values_are_no_schemas(keyword):
    value = {"$ref": "#/a", "type": "object", "properties": {}}
    asked = {"p": {"$ref": "#"}, "q": {keyword: [value]}}
    wanted = tool("go", parameters={"properties": asked})
    made = schema(tools=[wanted], tool_choice=named("go"))["$defs"]["go"]
    assert made["properties"] == {"p": {"$ref": "#/$defs/go"}, "q": {keyword: [value]}}


@pytest.mark.parametrize("others", [{"additionalProperties": True}, {"anyOf": [{}]}])
def test_unless_the_schema_speaks_of_others(others):
    parameters = {"type": "object", "properties": {}} | others
    made = schema(tools=[tool("go", parameters=parameters)], tool_choice=named("go"))
    assert made["properties"]["arguments"] == parameters


CALLED = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1}'},
}


def test_calls_and_results_in_the_history():
    history = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALLED], "reasoning_content": "Hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "2"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    parts = [{"type": "text", "text": "No."}]
    assert job(messages=history).messages == (
        USER,
        {"role": "assistant", "tool_calls": [CALLED], "reasoning_content": "Hm"},
        history[2],
        {"role": "assistant", "content": parts},
    )


def test_older_calls_and_results_become_todays():
    history = [
        {"role": "assistant", "content": None, "function_call": CALLED["function"]},
        {"role": "function", "name": "add", "content": "2"},
    ]
    assert job(messages=history).messages == (
        {"role": "assistant", "tool_calls": [CALLED | {"id": "call_0"}]},
        {"role": "tool", "name": "add", "content": "2", "tool_call_id": "call_0"},
    )


# What is refused

POINT = {"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": {}}}


def wants(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    "wanted,answer",
    [
        (wants(PARAMETERS), PARAMETERS),
        (wants(POINT), {"$ref": "#/$defs/:answer"}),
        ({"type": "json_object"}, {"type": "object"}),
    ],
)
def test_an_answer_in_json_or_a_call(wanted, answer):
    fields = {"response_format": wanted, "tools": [ADD], "parallel_tool_calls": False}
    constraint = job(**fields).constraint
    bound = json.loads(constraint.value)
    assert (constraint.kind, constraint.param) == ("json_schema", "response_format")
    assert bound["anyOf"] == [CALL_ADD, answer]
    parsing = parsing_of(request(**fields), CARD, constraint)
    assert (parsing.tools, parsing.reasoning) == ("json", None)


def test_an_answer_in_json_has_the_properties_that_are_named_and_no_others():
    open_schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    constraint = job(tools=None, response_format=wants(open_schema)).constraint
    assert json.loads(constraint.value) == open_schema | {"additionalProperties": False}


@pytest.mark.parametrize("choice", ["required", named("add"), allowed("required", "add")])
@pytest.mark.parametrize("wanted", [{"type": "json_object"}, wants(PARAMETERS)])
def test_beside_a_call_that_must_come_an_answers_form_has_nothing_to_bind(choice, wanted):
    fields = {"tool_choice": choice}
    constraint = job(response_format=wanted, **fields).constraint
    assert constraint == job(**fields).constraint
    assert parsing_of(request(response_format=wanted, **fields), CARD, constraint).tools == CALLS


@pytest.mark.parametrize("fields", [{"guided_regex": "a+"}, {"guided_choice": ["a", "b"]}])
def test_other_constraints_leave_no_room_for_calls(fields):
    constraint = job(**fields).constraint
    assert constraint.kind in ("regex", "choice")
    assert not parsing_of(request(**fields), CARD, constraint)


@pytest.mark.parametrize(
    "fields,bound",
    [
        ({"tool_choice": "required"}, True),
        ({"tool_choice": named("add")}, True),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "json_object"}, "tools": None}, False),
        ({"guided_regex": "a+"}, False),
        ({}, False),
    ],
)
def test_no_stop_cuts_a_call_that_the_output_is_bound_to(fields, bound):
    sampling = job(stop=["Paris"], stop_token_ids=[7], **fields).sampling
    assert (sampling.stop, sampling.stop_token_ids) == (((), ()) if bound else (("Paris",), (7,)))


DEEP = json.loads('{"a": ' * 200 + "1" + "}" * 200)
BAD = [
    ({"tools": [tool("f", parameters=DEEP)]}, "tools[0].function.parameters", "invalid_value"),
    ({"response_format": wants(DEEP)}, "response_format.json_schema.schema", "invalid_value"),
    ({"guided_json": json.dumps(DEEP)}, "guided_json", "invalid_value"),
    ({"guided_json": "[" * 300 + "]" * 300}, "guided_json", "invalid_value"),
    *(
        ({"tool_choice": choice} | wanted, next(iter(wanted)), "invalid_value")
        for choice in ("required", named("add"), allowed("required", "add"))
        for wanted in (
            {"guided_regex": "a+"},
            {"guided_choice": ["a"]},
            {"guided_grammar": "start: /a/"},
            {"guided_json": {}},
            {"structured_outputs": {"json_object": True}},
        )
    ),
    ({"chat_template_kwargs": DEEP}, "chat_template_kwargs", "invalid_value"),
    ({"tools": [ADD, ADD]}, "tools", "invalid_value"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0]", "unsupported_value"),
    ({"tools": [tool("a b")]}, "tools[0].function.name", "invalid_value"),
    ({"functions": [{"name": "f"}]}, "functions", "invalid_value"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tool_choice": allowed("auto", "f")}, "tool_choice", "invalid_value"),
    ({"tool_choice": {"type": "custom"}}, "tool_choice", "unsupported_value"),
    ({"tool_choice": "some"}, "tool_choice", "invalid_value"),
    ({"function_call": {"name": "f"}}, "function_call", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "2"}]}, "messages[0]", "invalid_value"),
    ({"messages": [{"role": "function", "content": "2"}]}, "messages[0]", "invalid_value"),
    ({"messages": [USER | {"tool_calls": [CALLED]}]}, "messages[0]", "invalid_value"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALLED | {"id": ""}]}]},
        "messages[0].tool_calls[0].id",
        "invalid_value",
    ),
]


@pytest.mark.parametrize("change,param,code", BAD)
async def test_bad_requests_are_400_and_name_the_field(http, hand, change, param, code):
    body = {"model": "m", "messages": [USER], "tools": TOOLS} | change
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert hand.streams == []


async def test_a_model_that_takes_no_tools_says_so(http, hand):
    hand.models = [replace(CARD, tool_parser=None)]
    body = {"model": "m", "messages": [USER], "tools": TOOLS}
    error = (await http.post("/v1/chat/completions", json=body)).json()["error"]
    assert (error["message"], error["param"]) == ("The model 'm' takes no tools.", "tools")
