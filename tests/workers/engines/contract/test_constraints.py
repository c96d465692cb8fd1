"""Outputs that are bound to a schema, an expression, choices or a grammar."""

import json
import re

import pytest
import pytest_asyncio
from books import BOOK, begins_a_book, is_book

from queueserve.errors import EngineError, InvalidRequestError
from queueserve.protocol import Constraint

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONSTRAINTS = {
    "json_schema": (json.dumps(BOOK), is_book),
    "regex": (r"\d{3}-[a-c]{2,4}", re.compile(r"[0-9]{3}-[a-c]{2,4}").fullmatch),
    "choice": ('["yes","no","perhaps, \\"é\\""]', {"yes", "no", 'perhaps, "é"'}.__contains__),
    "grammar": (
        'root ::= "é" smile smile? smile? "."\nsmile ::= "😀" [日本語] | "ab"',
        re.compile("é(😀[日本語]|ab){1,3}[.]").fullmatch,
    ),
}


@pytest_asyncio.fixture(loop_scope="session")
async def objects(run):
    """What ends in objects without spaces, and not in books: it costs half the tokens of a story.

    After a story the small models fill what a schema leaves to them, the space between its parts.
    """
    return await run.encode('[{"name":"Tom"},')


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_outputs_satisfy_their_constraints_beside_free_ones(run, story, objects, temperature):
    own = {"max_tokens": 240, "temperature": temperature}
    free = run.add(story, max_tokens=20, ignore_eos=True)
    running = [
        (kind, run.add(objects, constraint=Constraint(kind, value), seed=seed, **own))
        for kind, (value, _) in CONSTRAINTS.items()
        for seed in range(2)
    ]
    for kind, name in running:
        result = await run.end(name)
        text = run.text(result.tokens)
        assert result.error is None, kind
        # All but a book end long before: they have some 20 characters at most.
        long = kind == "json_schema" and result.finish == "length"
        valid = begins_a_book if long else CONSTRAINTS[kind][1]
        assert long or result.finish == "stop", (kind, text)
        assert valid(text), (kind, result.finish, text)
    assert len((await run.end(free)).tokens) == 20


async def test_any_json_object_is_one(run, story):
    constraint = Constraint("json_object")
    result = await run.generate(story, max_tokens=200, constraint=constraint, temperature=1.0)
    text = run.text(result.tokens)
    assert text.startswith("{")
    if result.finish == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("kind", CONSTRAINTS)
async def test_a_constrained_sequence_goes_on_inside_its_grammar(subject, run, objects, kind):
    if not subject.continues_constraints:
        pytest.skip("this engine ends it with an error")
    value, valid = CONSTRAINTS[kind]
    own = {"constraint": Constraint(kind, value), "max_tokens": 120, "logprobs": 2}
    whole = await run.generate(objects, **own)
    heads = {whole.tokens[:cut] for cut in (1, len(whole.tokens) // 2, len(whole.tokens) - 1)}
    running = [(head, run.add(objects, head, **own)) for head in heads]
    for head, name in running:
        rest = await run.end(name)
        text = run.text(head + rest.tokens)
        assert (rest.error, rest.finish) == (None, "stop"), text
        assert valid(text), text


async def test_what_was_generated_must_satisfy_the_constraint_too(run, story):
    constraint = Constraint("regex", "[0-9]+")
    result = await run.generate(story, story[:1], constraint=constraint, max_tokens=4)
    assert isinstance(result.error, EngineError)


async def test_penalties_biases_and_logprobs_go_with_a_constraint(run, objects):
    value, valid = CONSTRAINTS["json_schema"]
    (dot,) = await run.encode(".")
    result = await run.generate(
        objects,
        constraint=Constraint("json_schema", value),
        max_tokens=120,
        presence_penalty=0.5,
        logit_bias={dot: 50.0},
        logprobs=1,
    )
    text = run.text(result.tokens)
    assert valid(text), (result.finish, text)
    assert len(result.logprobs) == len(result.tokens)


async def test_the_end_of_a_grammar_is_an_end_even_if_ends_are_ignored(subject, run, story):
    constraint = Constraint("choice", '["yes","no"]')
    for own in ({"ignore_eos": True}, {"min_tokens": 50})[: 1 + subject.binds_length]:
        result = await run.generate(story, constraint=constraint, max_tokens=60, **own)
        assert run.text(result.tokens) in {"yes", "no"}
        assert result.finish == "stop"


async def test_a_grammar_that_could_end_goes_on_where_ends_are_ignored(subject, run, story):
    constraint = Constraint("regex", "[a-z ]+")
    ignoring = run.add(story, constraint=constraint, max_tokens=30, ignore_eos=True)
    early = await run.generate(story, constraint=constraint, max_tokens=40, min_tokens=25)
    ignored = await run.end(ignoring)
    assert (len(ignored.tokens), ignored.finish) == (30, "length")
    if subject.binds_length:
        assert len(early.tokens) >= 25
    else:
        assert isinstance(early.error, InvalidRequestError)
        assert early.error.param == "min_tokens"


@pytest.mark.parametrize(
    "kind, value",
    [
        ("json_schema", '{"type":"nonsense"}'),
        ("json_schema", "[1]"),
        ("json_schema", '{"$ref":"#/nowhere"}'),
        ("regex", "["),
        ("regex", "(?=a)b"),
        ("choice", "[]"),
        ("grammar", 'root ::= "a" nowhere'),
        ("grammar", "start: start"),
        ("grammar", 'root ::= "a" root'),
    ],
)
async def test_a_constraint_that_cannot_be_used_is_refused_and_others_go_on(
    run, story, kind, value
):
    other = run.add(story, max_tokens=5, ignore_eos=True)
    constraint = Constraint(kind, value, param="guided")
    result = await run.generate(story, max_tokens=5, constraint=constraint)
    assert isinstance(result.error, InvalidRequestError)
    assert result.error.param == "guided"
    assert "\n" not in result.error.message
    assert result.tokens == ()
    assert len((await run.end(other)).tokens) == 5


async def test_a_sequence_aborted_while_its_constraint_is_compiled_never_starts(run, story):
    name = run.add(story, max_tokens=5, constraint=Constraint("regex", "[a-z]{3}x?"))
    run.engine.abort(name)
    assert len((await run.generate(story, max_tokens=8, ignore_eos=True)).tokens) == 8
    assert run.outputs(name) == []
