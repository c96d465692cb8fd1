"""A constraint that goes too deep is refused: llguidance would end the whole process."""

import json
import subprocess
import sys
import threading

import pytest

from queueserve.errors import InvalidRequestError
from queueserve.protocol import Constraint
from workers.engines.fake_tokens import EOS, VOCABULARY
from workers.engines.grammar import Grammars, to_lark
from workers.engines.grammar_limits import MAX_LEVELS, with_large_stack

WRAPPED = {
    "refs": lambda ref: ref,
    "items": lambda ref: {"type": "array", "items": ref, "minItems": 1},
    "members": lambda ref: {"type": "object", "properties": {"x": ref}, "required": ["x"]},
    "any": lambda ref: {"anyOf": [ref, {"type": "integer"}]},
    "all": lambda ref: {"allOf": [ref, {"minLength": 1}]},
    "both": lambda ref: {
        "allOf": [
            {"type": "object", "properties": {"x": ref}},
            {"properties": {"x": {"minLength": 1}}},
        ]
    },
    "nested": lambda ref: {"items": {"items": {"items": {"items": {"items": ref}}}}},
}
RULES = {
    "rules": ("start: r0\n", 'r%d: "b" r%d | "c"\n', 'r%d: "a"\n'),
    "terminals": ("start: T0\n", 'T%d: ("b" T%d)* "c"\n', 'T%d: "a"\n'),
    "gbnf": ("root ::= r0\n", "r%d ::= r%d\n", 'r%d ::= "a"\n'),
}
# On a thread of 8 MiB, as threads of engines have
COMPILE = """
import sys, threading
from queueserve.protocol import Constraint
from workers.engines import grammar
from workers.engines.fake_tokens import EOS, VOCABULARY

grammar.with_large_stack = lambda function: function()
def masks():
    matcher = grammar.Grammars(lambda: VOCABULARY, frozenset({EOS})).matcher(
        Constraint(sys.argv[1], sys.stdin.read())
    )
    for _ in range(50):
        allowed = matcher.allowed()
        token = next((at for at, may in enumerate(allowed) if may and at != EOS), None)
        if token is None or not matcher.accept(token):
            break
    print("compiled")
threading.stack_size(8 * 2**20)
thread = threading.Thread(target=masks)
thread.start()
thread.join()
"""


def chained_schema(links, wrap):
    chain = {f"a{at}": wrap({"$ref": f"#/$defs/a{at + 1}"}) for at in range(links)}
    return {"$defs": chain | {f"a{links}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def chained_rules(links, head, rule, last):
    return head + "".join(rule % (at, at + 1) for at in range(links)) + last % links


def largest(make, kind):
    """The longest chain that is let through."""
    low, high = 1, 5_000
    while high - low > 1:
        middle = (low + high) // 2
        try:
            to_lark(Constraint(kind, make(middle)))
            low = middle
        except InvalidRequestError:
            high = middle
    return make(low)


def of_schemas(wrapped):
    return lambda links: json.dumps(chained_schema(links, WRAPPED[wrapped]))


def of_rules(name):
    return lambda links: chained_rules(links, *RULES[name])


ALL = [("json_schema", of_schemas(name)) for name in WRAPPED]
ALL += [("grammar", of_rules(name)) for name in RULES]
ALL += [("grammar", lambda links: "start: %json " + of_schemas("items")(links))]
IDS = [*WRAPPED, *RULES, "inline"]


@pytest.mark.parametrize("kind, make", ALL, ids=IDS)
def test_a_chain_that_would_end_the_process_is_refused(kind, make):
    grammars = Grammars(lambda: VOCABULARY, frozenset({EOS}))
    with pytest.raises(InvalidRequestError, match="are the most") as caught:
        grammars.matcher(Constraint(kind, make(3_500), param="guided"))
    assert caught.value.param == "guided"


@pytest.mark.parametrize("kind, make", ALL, ids=IDS)
def test_what_is_let_through_needs_no_large_stack(kind, make):
    ended = subprocess.run(
        [sys.executable, "-c", COMPILE, kind],
        input=largest(make, kind),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "compiled"), ended.stderr[-500:]


def test_definitions_that_refer_to_each_other_are_counted_once():
    tree = {
        "type": "object",
        "properties": {"next": {"$ref": "#/$defs/tree"}, "other": {"$ref": "#/$defs/tree"}},
    }
    schema = {"$defs": {"tree": tree}, "$ref": "#/$defs/tree"}
    assert to_lark(Constraint("json_schema", json.dumps(schema)))


def test_a_hundred_definitions_of_some_levels_are_let_through():
    schema = chained_schema(100, WRAPPED["both"])
    assert to_lark(Constraint("json_schema", json.dumps(schema)))


def test_references_from_another_base_count_for_the_whole_schema():
    schema = chained_schema(MAX_LEVELS // 6, WRAPPED["refs"])
    assert to_lark(Constraint("json_schema", json.dumps(schema)))
    schema["$defs"]["other"] = {"$id": "http://x/y", "items": {"items": {"items": {"items": {}}}}}
    with pytest.raises(InvalidRequestError, match="references followed"):
        to_lark(Constraint("json_schema", json.dumps(schema)))


def test_a_large_stack_gives_results_and_errors_and_leaves_the_size():
    before = threading.stack_size()
    assert with_large_stack(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        with_large_stack(lambda: 1 // 0)
    assert threading.stack_size() == before


LARGE = [
    {"type": "array", "minItems": 1_000_000_000},
    {"properties": {"a": {"items": {"type": "array", "minItems": 1e9}}}},
    {"type": "array", "items": {"type": "null"}, "maxItems": 2**31 - 1},
    {"type": "integer", "multipleOf": 1_000_003},
    {"type": "integer", "multipleOf": 1_000_003_000},
    {"type": "number", "multipleOf": 0.1000003},
    {"type": "integer", "allOf": [{"multipleOf": 10_007}, {"multipleOf": 10_009}]},
]


@pytest.mark.parametrize("schema", LARGE)
def test_a_schema_that_takes_too_many_states_is_refused(schema):
    text = json.dumps(schema)
    escaped = text.replace("multipleOf", "\\u006dultipleOf").replace("minItems", "min\\u0049tems")
    for kind, value in (
        ("json_schema", text),
        ("grammar", f'start: "a" %json {text}'),
        ("grammar", f"start: %json{escaped}"),
    ):
        with pytest.raises(
            InvalidRequestError, match=r"minItems is|maxItems is|multipleOf comes to"
        ):
            to_lark(Constraint(kind, value))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 100_000, "maxItems": 100_000},
        {"type": "integer", "multipleOf": 99_991},
        {"type": "integer", "multipleOf": 1_000_000_000},
        {"type": "number", "multipleOf": 0.01},
        {"properties": {"a": {"multipleOf": 60}, "b": {"multipleOf": 7}, "minItems": {}}},
        {"properties": {"multipleOf": {"type": "integer"}}, "required": ["multipleOf"]},
    ],
)
def test_a_schema_with_such_numbers_compiles(schema):
    grammars = Grammars(lambda: VOCABULARY, frozenset({EOS}))
    assert grammars.matcher(Constraint("json_schema", json.dumps(schema))).allowed()
