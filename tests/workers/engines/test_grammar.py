"""Grammars for constraints: whatever the matcher lets through is valid, whoever draws."""

import json
import random

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queueserve.errors import EngineError, InvalidRequestError
from queueserve.protocol import Constraint
from workers.engines import grammar
from workers.engines.fake_constrained import Walk
from workers.engines.fake_tokens import EOS, VOCABULARY
from workers.engines.grammar import Grammars, to_lark


@pytest.fixture(scope="module")
def grammars():
    return Grammars(lambda: VOCABULARY, frozenset({EOS}))


def encode(text):
    return list(text.encode())


def walk(matcher, key, limit=4000):
    """The text of a whole output, None if it does not end within the limit."""
    draw = Walk(matcher, key)
    data = b""
    for index in range(limit):
        token = draw.draw(index, but=())
        if token == EOS:
            return data.decode()
        data += VOCABULARY[token]
    return None


names = st.text(st.sampled_from('abc_é"\\ 日'), min_size=1, max_size=6)
numbers = st.integers(-50, 50)
scalars = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda top: {"type": "string", "maxLength": top}, st.integers(0, 8)),
    st.builds(
        lambda low, by: {"type": "integer", "minimum": low, "maximum": low + by},
        numbers,
        st.integers(0, 90),
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(names, numbers, st.none()), min_size=1, max_size=4),
    ),
    st.builds(lambda value: {"const": value}, st.one_of(names, st.booleans())),
    st.just({"type": "string", "pattern": "^[a-f]{2,4}$"}),
    st.just({"type": "string", "format": "date"}),
)


def compound(inner):
    fields = st.dictionaries(names, inner, max_size=4)
    return st.one_of(
        st.builds(
            lambda items, most: {"type": "array", "items": items, "maxItems": most},
            inner,
            st.integers(0, 3),
        ),
        st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner),
        fields.flatmap(
            lambda own: st.builds(
                lambda required: {
                    "type": "object",
                    "properties": own,
                    "required": required,
                    "additionalProperties": False,
                },
                st.lists(st.sampled_from(sorted(own)), unique=True) if own else st.just([]),
            )
        ),
    )


schemas = st.recursive(scalars, compound, max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(schema=schemas, key=st.binary(min_size=1, max_size=8))
def test_every_walk_through_a_schema_is_valid_json_for_it(grammars, schema, key):
    constraint = Constraint("json_schema", json.dumps(schema))
    text = walk(grammars.matcher(constraint), key)
    assert text is not None
    jsonschema.validate(json.loads(text), schema)


@settings(max_examples=30, deadline=None)
@given(choices=st.lists(st.text(max_size=8), min_size=1, max_size=5), key=st.binary(max_size=8))
def test_every_walk_through_choices_is_one_of_them(grammars, choices, key):
    choices = [one for one in choices if one] or ["only"]
    text = walk(grammars.matcher(Constraint("choice", json.dumps(choices))), key)
    assert text in choices


@given(cut=st.integers(0, 40), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_matcher_that_is_given_the_tokens_so_far_stands_where_the_other_does(grammars, cut, seed):
    constraint = Constraint("json_object")
    first = grammars.matcher(constraint)
    draw = random.Random(seed)
    tokens = []
    for _ in range(cut):
        allowed = [token for token, free in enumerate(first.allowed()) if free and token != EOS]
        if not allowed:
            break
        tokens.append(draw.choice(allowed))
        assert first.accept(tokens[-1])
    second = grammars.matcher(constraint, tokens)
    assert second.allowed() == first.allowed()
    assert second.complete == first.complete


def test_a_token_that_the_grammar_forbids_changes_nothing(grammars):
    matcher = grammars.matcher(Constraint("regex", "ab+"))
    before = matcher.allowed()
    assert not matcher.accept(ord("b"))
    assert not matcher.accept(EOS)
    assert matcher.allowed() == before
    assert all(map(matcher.accept, b"ab"))
    assert matcher.complete


def test_tokens_to_avoid_come_only_where_nothing_else_is_left(grammars):
    matcher = grammars.matcher(Constraint("regex", "ab+"))
    assert matcher.allowed(but=[ord("a")])[ord("a")]
    assert all(map(matcher.accept, b"ab"))
    allowed = matcher.allowed(but=[EOS])
    assert (allowed[ord("b")], allowed[EOS]) == (matcher.allowed()[ord("b")], 0)


def test_white_space_in_json_is_bounded(grammars):
    spaced = grammars.matcher(Constraint("json_object"), encode('{"a": 1,\n                "b"'))
    assert spaced.accept(ord(":"))
    loop = grammars.matcher(Constraint("json_object"), encode('{"a":1,\n                '))
    assert not loop.accept(ord(" "))
    assert not loop.accept(ord("\n"))


def test_an_integer_is_bounded_whatever_its_property_is_called(grammars):
    schema = {"type": "object", "properties": {"default": {"type": "integer"}}}
    constraint = Constraint("json_schema", json.dumps(schema))
    matcher = grammars.matcher(constraint, encode('{"default":' + "9" * 15))
    assert not matcher.accept(ord("9"))


def test_integers_are_bounded_where_the_schema_does_not_say(grammars):
    schema = {
        "type": "object",
        "properties": {
            "type": {"type": "integer"},
            "own": {"type": "integer", "minimum": 0},
            "fixed": {"const": {"type": "integer"}},
        },
        "required": ["type", "own", "fixed"],
    }
    constraint = Constraint("json_schema", json.dumps(schema))
    digits = "9" * 15
    assert not grammars.matcher(constraint, encode(f'{{"type":{digits}')).accept(ord("9"))
    free = grammars.matcher(constraint, encode(f'{{"type":-{digits},"own":{digits}'))
    assert free.accept(ord("9"))
    whole = encode('{"type":1,"own":2,"fixed":{"type":"integer"}}')
    assert grammars.matcher(constraint, whole).complete


def test_a_digit_is_an_ascii_digit(grammars):
    matcher = grammars.matcher(Constraint("regex", r"\d+"))
    allowed = [token for token, free in enumerate(matcher.allowed()) if free]
    assert allowed == encode("0123456789")


def test_anchors_around_a_regex_change_nothing(grammars):
    assert grammars.matcher(Constraint("regex", "^a/b$"), encode("a/b")).complete


def test_grammars_may_be_gbnf_or_lark(grammars):
    for text in ('root ::= "a" [0-9]+', 'start: "a" /[0-9]+/'):
        assert grammars.matcher(Constraint("grammar", text), encode("a7")).complete


def test_one_grammar_is_compiled_once_and_the_last_ones_are_kept(monkeypatch):
    monkeypatch.setattr(grammar, "_CACHED", 2)
    own = Grammars(lambda: VOCABULARY, frozenset({EOS}))
    compiled = []
    compile_ = own._compile
    monkeypatch.setattr(own, "_compile", lambda one: (compiled.append(one.value), compile_(one))[1])
    for value in ("a", "b", "a", "c", "a", "b"):
        own.matcher(Constraint("regex", value))
    assert compiled == ["a", "b", "c", "b"]


def test_two_outputs_of_one_grammar_do_not_disturb_each_other(grammars):
    one, other = (grammars.matcher(Constraint("choice", '["ab","cd"]')) for _ in range(2))
    assert one.accept(ord("a"))
    assert other.accept(ord("c"))
    assert one.accept(ord("b"))


def test_a_model_without_an_end_cannot_be_constrained():
    with pytest.raises(EngineError, match="ends the output"):
        Grammars(lambda: VOCABULARY, frozenset()).matcher(Constraint("json_object"))


@pytest.mark.parametrize(
    "kind, value, reason",
    [
        ("json_schema", "{", "cannot be read"),
        ("json_schema", "3", "a schema is an object"),
        ("json_schema", '{"not":{}}', 'Unimplemented keys: \\["not"\\]'),
        ("json_schema", '{"type":"string","pattern":"["}', "unclosed character class"),
        ("choice", '["a",3]', "a list of texts"),
        ("grammar", "root ::= (((", "Expected"),
        ("grammar", "", "root"),
        ("grammar", "start: start", "nothing satisfies it"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(grammars, kind, value, reason):
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        grammars.matcher(Constraint(kind, value, param="guided"))
    assert caught.value.param == "guided"
    assert len(caught.value.message) < 300


def test_a_grammar_that_turns_out_too_complex_is_the_requests_fault(grammars):
    wide = {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(2500)}}
    constraint = Constraint("json_schema", json.dumps(wide), param="guided_json")
    with pytest.raises(InvalidRequestError, match="max is 2000") as caught:
        walk(grammars.matcher(constraint), b"key")
    assert caught.value.param == "guided_json"
    assert len(caught.value.message) < 300


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(EngineError, match="pip install llguidance"):
        to_lark(Constraint("regex", "a"))
