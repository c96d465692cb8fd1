"""What each dialect means, whole and in pieces."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from queueserve.api.parsers import (
    REASONING,
    TOOLS,
    Arguments,
    Call,
    Content,
    Reasoning,
    joined,
    make_parser,
)
from queueserve.api.render_messages import Message
from queueserve.api.response import Answer
from queueserve.protocol import Finished

NAMES = ("get_weather", "add")


def parse(*parts: str, tools=None, reasoning=None, names=NAMES) -> list:
    parser = make_parser(tools=tools, names=names, reasoning=reasoning)
    pieces = [piece for part in parts for piece in parser.feed(part)]
    return joined([*pieces, *parser.end()])


def calls(*pairs):
    return [piece for name, text in pairs for piece in (Call(name), Arguments(text))]


PARIS = '{"city": "Paris {\\"x\\"}", "days": [1, {"a": "}"}]}'
WEATHER = ("get_weather", PARIS)
ADD = ("add", '{"a":1,"b":-2.50}')
AS_JSON = {name: f'{{"name": "{name}", "arguments": {text}}}' for name, text in (WEATHER, ADD)}
CASES = {
    "hermes": [
        ("Hi  there \n", [Content("Hi  there \n")]),
        (f"<tool_call>\n{AS_JSON['add']}\n</tool_call>", calls(ADD)),
        (
            f"See:\n<tool_call>{AS_JSON['get_weather']}</tool_call>\n<tool_call>{AS_JSON['add']}\n",
            [Content("See:"), *calls(WEATHER, ADD)],
        ),
        (f"<tool_call>{AS_JSON['add']}", calls(ADD)),
        (f"<tool_call>{AS_JSON['add']}</tool_call>\nDone.", [*calls(ADD), Content("Done.")]),
        # The arguments may stand before the name, be a string, or be left out.
        (
            '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>',
            calls(("add", '{"a": 1}')),
        ),
        (
            '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
            calls(("add", '{"a": 1}')),
        ),
        ('<tool_call>{"name": "add"}</tool_call>', calls(("add", "{}"))),
        ('<tool_call>{"name": "add", "arguments": null}</tool_call>', calls(("add", "{}"))),
        ('<tool_call>{"name": "a\\u0064d", "arguments": {}}</tool_call>', calls(("add", "{}"))),
        # What breaks off in the arguments has those that were there.
        (
            '<tool_call>{"name": "add", "arguments": {"a": "x',
            [Call("add"), Arguments('{"a": "x')],
        ),
        # What is no call is content, to the letter.
        *(
            (text, [Content(text)])
            for text in (
                "a < b <tool",
                "see  <tool_call>oops</tool_call> ok",
                '<tool_call>{"city": "Paris"}</tool_call>',
                '<tool_call>{"name": "", "arguments": {}}',
                '<tool_call>{"name": "add", "arguments": [1]}',
                '<tool_call>{"name": "add", "arguments": "no"}',
                '<tool_call>{"name": "\\ud83d", "arguments": {}}',
                '<tool_call>{"name": 3}',
                "<tool_call>" + '{"name": "add", "arguments": "' + "[" * 5000 + '"}',
                " <tool_call> ",
            )
        ),
        (
            f"<tool_call><tool_call>{AS_JSON['add']}</tool_call>",
            [Content("<tool_call>"), *calls(ADD)],
        ),
        (
            '<tool_call>{"name": "add", "arguments": {} oops</tool_call>',
            [*calls(("add", "{}")), Content("oops</tool_call>")],
        ),
        (
            '<tool_call>{"name": "add", "arguments": {}, "more": [1, "}"]}</tool_call>',
            calls(("add", "{}")),
        ),
    ],
    "llama3": [
        ('{"name": "add", "parameters": {"a": 1}}', calls(("add", '{"a": 1}'))),
        (
            '{"type": "function", "name": "add", "parameters": {"a": 1}}',
            calls(("add", '{"a": 1}')),
        ),
        (
            f"<|python_tag|>{AS_JSON['add']}; {AS_JSON['get_weather']}",
            calls(ADD, WEATHER),
        ),
        (f"Sure. <|python_tag|>{AS_JSON['add']}", [Content("Sure."), *calls(ADD)]),
        ("It is 3.", [Content("It is 3.")]),
        ('{"name": "Alice", "age": 5}', [Content('{"name": "Alice", "age": 5}')]),
        (
            '<|python_tag|>{"name": "unheard_of", "parameters": {}}',
            calls(("unheard_of", "{}")),
        ),
        (
            '<|python_tag|>brave_search.call(query="x")',
            [Content('<|python_tag|>brave_search.call(query="x")')],
        ),
    ],
    "mistral": [
        (f"[TOOL_CALLS] [{AS_JSON['add']}, {AS_JSON['get_weather']}]", calls(ADD, WEATHER)),
        (
            '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}, "id": "abcdefghi"}]',
            calls(("add", '{"a": 1}')),
        ),
        (
            f"[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]add[ARGS]{{}}",
            calls(WEATHER, ("add", "{}")),
        ),
        ('[TOOL_CALLS]add{"a": 1}', calls(("add", '{"a": 1}'))),
        ('[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": 1}', calls(("add", '{"a": 1}'))),
        ("Wait. [TOOL_CALLS] [{]", [Content("Wait. [TOOL_CALLS] [{]")]),
        ("[TOOL_CALLS]oops", [Content("[TOOL_CALLS]oops")]),
        ("[TOOL_CALLS] []", [Content("[TOOL_CALLS] []")]),
        (
            f"[TOOL_CALLS] [{AS_JSON['add']}, oops]",
            [*calls(ADD), Content(", oops]")],
        ),
        ("[1] is a list", [Content("[1] is a list")]),
    ],
    "json": [
        (AS_JSON["add"], calls(ADD)),
        (f"[{AS_JSON['add']}, {AS_JSON['get_weather']}]", calls(ADD, WEATHER)),
        (f"{AS_JSON['add']}\n{AS_JSON['get_weather']}\n", calls(ADD, WEATHER)),
        (f"```json\n{AS_JSON['add']}\n```", calls(ADD)),
        (f"```\n[{AS_JSON['add']}]\n```\nDone.", [*calls(ADD), Content("Done.")]),
        ("```python\nprint()\n```", [Content("```python\nprint()\n```")]),
        ('{"name": "Alice"}', [Content('{"name": "Alice"}')]),
        ("[1, 2]", [Content("[1, 2]")]),
        (f"I call {AS_JSON['add']}", [Content(f"I call {AS_JSON['add']}")]),
        (f"{AS_JSON['add']}\n{{}}", [*calls(ADD), Content("\n{}")]),
        (" 3", [Content(" 3")]),
    ],
    "calls": [
        (f"[{AS_JSON['add']}, {AS_JSON['get_weather']}]", calls(ADD, WEATHER)),
        ('[{"name": "ad', []),
        (f'[{AS_JSON["add"]}, {{"name"', calls(ADD)),
        ('{"name": "add", "arguments": {"a": "x', [Call("add"), Arguments('{"a": "x')]),
        # What is no call although the output was bound is not lost.
        ("I cannot", [Content("I cannot")]),
        (f"[{AS_JSON['add']}, oops]", [*calls(ADD), Content(", oops]")]),
    ],
}
FLAT = [(tools, *case) for tools, cases in CASES.items() for case in cases]


@pytest.mark.parametrize("tools,text,expected", FLAT)
def test_a_dialect_whole_by_character_and_in_every_two_parts(tools, text, expected):
    assert parse(text, tools=tools) == expected
    assert parse(*text, tools=tools) == expected
    for at in range(min(len(text), 300)):
        assert parse(text[:at], text[at:], tools=tools) == expected


def test_output_that_is_bound_to_be_calls_has_no_content_wherever_it_is_cut():
    text = f"[{AS_JSON['add']}, {AS_JSON['get_weather']}]"
    cuts = [parse(text[:at], tools="calls") for at in range(len(text))]
    assert {type(piece) for pieces in cuts for piece in pieces} == {Call, Arguments}


@pytest.mark.parametrize("reasoning", REASONING)
def test_reasoning_stands_before_the_answer(reasoning):
    tags = REASONING[reasoning]
    text = f"{tags.opening}\nWell, 1 < 2.\n{tags.closing}\n\nYes."
    expected = [Reasoning("Well, 1 < 2."), Content("Yes.")]
    assert parse(text, reasoning=reasoning) == parse(*text, reasoning=reasoning) == expected
    cut = f"{tags.opening}Well"
    assert parse(cut, reasoning=reasoning) == [Reasoning("Well")]
    none = f"Yes. {tags.opening}"
    assert parse(*none, reasoning=reasoning) == [Content(none)]


def test_reasoning_and_calls():
    text = f"<think>\nHm <tool_call>\n</think>\n\n<tool_call>{AS_JSON['add']}</tool_call>"
    expected = [Reasoning("Hm <tool_call>"), *calls(ADD)]
    assert parse(*text, tools="hermes", reasoning="think") == expected


def test_the_end_of_the_reasoning_is_known_by_its_place():
    parser = make_parser(tools=None, names=(), reasoning="think")
    parser.feed("<think>Well</thi")
    assert parser.thought is None
    parser.feed("nk> Yes")
    assert parser.thought == len("<think>Well</think>")


def test_arguments_are_given_out_as_they_grow():
    parser = make_parser(tools="hermes", names=NAMES, reasoning=None)
    assert parser.feed('<tool_call>{"name": "add", "argu') == []
    assert parser.feed('ments": {"a"') == [Call("add"), Arguments('{"a"')]
    assert parser.feed(": 1") == [Arguments(": 1")]
    assert parser.feed("}}</tool_call>") == [Arguments("}")]


# Fuzz

FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "<|python_tag|>", "[TOOL_CALLS]"),
    *("[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "```", "json", "<tool", "[TOOL", "</th", "<|"),
    *("{", "}", "[", "]", '"', "\\", ",", ":", ";", " ", "\n", "null", "1", '"name"', '"add"'),
    *('"arguments"', '"parameters"', '"name": "add"', '"arguments": {"a": 1}', '{"name": "add", '),
    *(AS_JSON["add"], AS_JSON["get_weather"], "add", "é", "🙂", "\ud83d"),
]
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)
dialects = st.sampled_from([*TOOLS, None])
reasonings = st.sampled_from([*REASONING, None])


@settings(max_examples=600, deadline=None)
@given(texts, dialects, reasonings, st.lists(st.integers(0, 200), max_size=8))
@example('<tool_call>{"name": "add", "arguments": {}, \\', "hermes", None, [])
def test_every_split_gives_the_same(text, tools, reasoning, cuts):
    whole = parse(text, tools=tools, reasoning=reasoning)
    assert parse(*text, tools=tools, reasoning=reasoning) == whole
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[start:end] for start, end in pairwise(at)]
    assert parse(*parts, tools=tools, reasoning=reasoning) == whole


def in_order(parts, text) -> bool:
    """Whether the parts stand in the text one after the other."""
    at = 0
    for part in parts:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


@settings(max_examples=600, deadline=None)
@given(texts, dialects, reasonings)
def test_nothing_is_lost(text, tools, reasoning):
    pieces = parse(text, tools=tools, reasoning=reasoning)
    kinds = {type(piece) for piece in pieces}
    thinks = reasoning and text.lstrip().startswith(REASONING[reasoning].opening)
    if kinds <= {Content} and not thinks:
        assert "".join(piece.text for piece in pieces) == text
    said = [piece.text for piece in pieces if isinstance(piece, Content | Reasoning)]
    assert all(in_order(part.split(), text) for part in said)


objects = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=6,
    ),
)
FORMS = {
    "hermes": lambda name, text: (
        f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>'
    ),
    "llama3": lambda name, text: f'{{"name": "{name}", "parameters": {text}}}\n',
    "mistral": lambda name, text: f"[TOOL_CALLS]{name}[ARGS]{text}",
    "json": lambda name, text: f'{{"name": "{name}", "arguments": {text}}}\n',
}


@settings(deadline=None)
@given(
    st.sampled_from([*FORMS]),
    st.lists(st.tuples(st.sampled_from(NAMES), objects), min_size=1, max_size=3),
    st.booleans(),
)
def test_the_arguments_are_exactly_those_that_were_written(tools, made, ascii_only):
    pairs = [(name, json.dumps(value, ensure_ascii=ascii_only)) for name, value in made]
    text = "".join(FORMS[tools](name, arguments) for name, arguments in pairs)
    assert parse(*text, tools=tools) == calls(*pairs)


WHOLE_CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


@pytest.mark.parametrize("reasoning", [None, "think"])
@pytest.mark.parametrize("said,cut", [(WHOLE_CALL, False), (WHOLE_CALL[:-16], True), ("Hi", False)])
def test_a_call_that_broke_off_is_whole_in_no_dialect(said, cut, reasoning):
    def parser():
        return make_parser(tools="hermes", names=["f"], reasoning=reasoning)

    end = Finished("j", 1, 3, 0, said, "stop")
    message, answer = Message("msg_a", "m", parser()), Answer({"id": "resp_a"}, parser())
    message.take(end)
    answer.take(end)
    called = said != "Hi" and not cut
    assert message.stopped()["stop_reason"] == ("tool_use" if called else "end_turn")
    (item,) = answer.response()["output"]
    assert item["status"] == ("incomplete" if cut else "completed")
