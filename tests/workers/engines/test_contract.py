"""What every engine must do; an adapter is done when this passes for it."""

import asyncio
import dataclasses
import json
import math
import re
import time
from importlib.util import find_spec

import jsonschema
import pytest
import pytest_asyncio

from queueserve.errors import ContextLengthExceededError, EngineError, InvalidRequestError
from queueserve.protocol import Constraint
from workers.engines.fake import FakeEngine
from workers.engines.fake_faults import FaultyEngine

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Two tokens whose log-probabilities are this close may change places.
NEAR = 1e-3  # in float32
NEAR_IN_BFLOAT16 = 0.1
HEARTBEAT = 3.0  # seconds between two; a worker is dead after 15
MULTIBYTE = "naïve café, 日本語, 😀🎉!"
STORY = "Once upon a time there was a"


@dataclasses.dataclass
class Subject:
    """A started engine, and what the contract leaves to it."""

    run: object
    seeds: bool = True  # a draw repeats with its seed
    scores_first: bool = True  # log-probabilities are taken before biases
    truncates: bool = True  # top_k, top_p and min_p bear on the draw
    repeats_draws: bool = True  # a drawn sequence goes on exactly elsewhere, not a greedy one only
    continues_constraints: bool = True  # also in the middle of an output
    binds_length: bool = True  # takes min_tokens beside a constraint
    near: float = NEAR


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fake(make_run):
    engine = FakeEngine(slots=4, context_length=256, tick=0)
    yield Subject(await make_run(engine).start(), truncates=False)
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def faulty(make_run):
    engine = FaultyEngine(slots=4, context_length=256, tick=0)
    yield Subject(await make_run(engine).start(), truncates=False)
    await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def llama_cpp(make_run, smollm2_gguf):
    from workers.engines.llama_cpp import LlamaCppEngine  # noqa: PLC0415

    engine = LlamaCppEngine(str(smollm2_gguf), slots=4, context_length=256)
    yield Subject(await make_run(engine).start(), repeats_draws=False)
    await engine.close()


@pytest.fixture(scope="session")
def transformers(transformers_run):
    return Subject(transformers_run)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mlx(make_run, random_llama):
    """A small model: MLX's kernels for CPUs give SmolLM2 one token a second."""
    from workers.engines.mlx import MlxEngine  # noqa: PLC0415

    engine = MlxEngine(str(random_llama(24)), slots=4, context_length=256, dtype="float32")
    yield Subject(await make_run(engine).start())
    await engine.close()


@pytest.fixture(scope="session")
def vllm(vllm_run):
    return Subject(vllm_run, repeats_draws=False, continues_constraints=False, binds_length=False)


@pytest.fixture(scope="session")
def sglang(sglang_run, on_gpu):
    """Seeds need --enable-deterministic-inference, which SGLang does not know on CPUs."""
    return Subject(
        sglang_run,
        seeds=on_gpu,
        scores_first=False,
        repeats_draws=on_gpu,
        continues_constraints=False,
        binds_length=False,
        near=NEAR_IN_BFLOAT16 if on_gpu else NEAR,
    )


# Where they are installed: the first two by `make test-engines`.
_HEAVY = [
    engine
    for engine, module in (("mlx", "mlx_lm"), ("vllm", "vllm"), ("sglang", "sglang"))
    if find_spec(module)
]
ENGINES = ["fake", "faulty", "llama_cpp", "transformers", *_HEAVY]


@pytest.fixture(params=ENGINES)
def subject(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def run(subject):
    return subject.run


@pytest_asyncio.fixture(loop_scope="session")
async def story(run):
    return await run.encode(STORY)


async def eos_of(run):
    (eos,) = await run.encode(run.engine.tokenizer.special_tokens["eos_token"])
    return eos


async def test_a_started_engine_says_what_it_is(run):
    info = run.engine.info
    assert info.engine in ENGINES
    assert info.version
    assert info.fingerprint
    assert info.context_length in {256, 512}
    assert info.slots in {4, 8}


async def test_max_tokens_ends_with_length_and_the_end_comes_once_and_last(run, story):
    name = run.add(story, max_tokens=7, ignore_eos=True)
    result = await run.end(name)
    assert len(result.tokens) == 7
    assert result.finish == "length"
    outputs = run.outputs(name)
    assert [output.finish for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert len(outputs) > 3  # tokens come as they are made
    await asyncio.sleep(0.05)
    assert run.outputs(name) == outputs


async def test_sequences_that_run_together_come_in_the_same_calls(run, story):
    first = run.add(story, max_tokens=48, ignore_eos=True)
    second = run.add(story, max_tokens=48, ignore_eos=True)
    await run.end(first)
    await run.end(second)
    together = [call for call in run.calls if {first, second} <= {output.id for output in call}]
    assert len(together) >= 6


async def test_a_stop_token_ends_with_stop_and_is_left_out(run, story):
    plain = (await run.generate(story, max_tokens=10, ignore_eos=True)).tokens
    at = next(at for at in range(2, 10) if plain[at] not in plain[:at])
    stopped = await run.generate(story, max_tokens=10, ignore_eos=True, stop_token_ids=(plain[at],))
    assert stopped.tokens == plain[:at]
    assert stopped.finish == "stop"


async def test_the_end_of_sequence_token_ends_unless_it_is_ignored(run, story):
    eos = await eos_of(run)
    ended = await run.generate(story, max_tokens=5, logit_bias={eos: 100.0})
    assert ended.tokens == ()
    assert ended.finish == "stop"
    ignored = await run.generate(story, max_tokens=3, ignore_eos=True)
    assert len(ignored.tokens) == 3
    assert ignored.finish == "length"


async def test_min_tokens_keep_a_sequence_from_ending(run, story):
    eos = await eos_of(run)
    result = await run.generate(story, max_tokens=9, min_tokens=4, logit_bias={eos: 100.0})
    assert len(result.tokens) == 4
    assert eos not in result.tokens
    assert result.finish == "stop"


async def test_the_most_likely_tokens_are_the_same_every_time(subject, run, story):
    first = await run.generate(story, max_tokens=12, logprobs=2)
    again = await run.generate(story, max_tokens=12, logprobs=2)
    assert_same_up_to_near_ties(first, again, subject.near)


async def test_a_seed_repeats_a_draw_and_another_seed_does_not(subject, run, story):
    if not subject.seeds:
        pytest.skip("this engine, as it runs here, ignores seeds")

    def draw(seed):
        return run.generate(story, max_tokens=12, temperature=1.0, seed=seed, ignore_eos=True)

    first, again, *others = await asyncio.gather(draw(3), draw(3), draw(4), draw(5))
    assert first.tokens == again.tokens
    assert {other.tokens for other in others} != {first.tokens}


async def test_a_bias_of_100_forces_a_token(run, story):
    token = (await run.encode(" queue"))[0]
    for temperature in (0.0, 1.0):
        result = await run.generate(
            story, max_tokens=4, temperature=temperature, logit_bias={token: 100.0}
        )
        assert result.tokens == (token,) * 4


async def test_a_bias_of_minus_100_bans_a_token(run, story):
    plain = await run.generate(story, max_tokens=1, ignore_eos=True)
    banned = await run.generate(
        story, max_tokens=1, ignore_eos=True, logit_bias={plain.tokens[0]: -100.0}
    )
    assert banned.tokens != plain.tokens


async def test_penalties_break_repetition(run):
    prompt = await run.encode(" one two" * 8)
    penalties = (
        {},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0, "frequency_penalty": 1.0},
        {"repetition_penalty": 2.0},
    )
    plain, *penalised = await asyncio.gather(
        *(run.generate(prompt, max_tokens=24, ignore_eos=True, **own) for own in penalties)
    )
    assert plain.tokens not in {result.tokens for result in penalised}


async def test_cutting_the_choice_to_one_is_greedy(subject, run, story):
    if not subject.truncates:
        pytest.skip("this engine has no distribution to cut")
    greedy = await run.generate(story, max_tokens=8, logprobs=2)
    for cut in ({"top_k": 1}, {"top_p": 0.001}, {"min_p": 1.0}):
        result = await run.generate(story, max_tokens=8, temperature=1.0, seed=1, **cut)
        assert_same_up_to_near_ties(greedy, result, subject.near)


async def test_logprobs_are_of_the_token_and_of_the_most_likely(run, story):
    result = await run.generate(story, max_tokens=4, logprobs=3, ignore_eos=True)
    assert len(result.logprobs) == 4
    for token, own in zip(result.tokens, result.logprobs, strict=True):
        values = [value for _, value in own.top]
        assert len(own.top) == 3
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-4
        assert own.top[0][0] == token
        assert own.logprob == pytest.approx(own.top[0][1], abs=1e-4)


async def test_logprobs_of_the_token_alone_and_none_unless_asked_for(run, story):
    own = await run.generate(story, max_tokens=2, logprobs=0, ignore_eos=True)
    assert [one.top for one in own.logprobs] == [(), ()]
    assert all(one.logprob <= 0 for one in own.logprobs)
    name = run.add(story, max_tokens=2, ignore_eos=True)
    await run.end(name)
    assert [output.logprobs for output in run.outputs(name)] == [None] * len(run.outputs(name))


async def test_logprobs_are_taken_before_bias_and_temperature(subject, run, story):
    if not subject.scores_first:
        pytest.skip("this engine takes them after biases")
    plain = await run.generate(story, max_tokens=1, logprobs=1, ignore_eos=True)
    likely = plain.logprobs[0].top[0]
    token = (await run.encode(" queue"))[0]
    forced = await run.generate(
        story,
        max_tokens=1,
        logprobs=1,
        logit_bias={token: 100.0},
        temperature=0.5 if subject.truncates else 0.0,
    )
    assert forced.tokens == (token,)
    assert forced.logprobs[0].top[0][0] == likely[0]
    assert forced.logprobs[0].top[0][1] == pytest.approx(likely[1], abs=0.05)
    assert forced.logprobs[0].logprob < likely[1]


async def test_a_prompt_is_scored_as_its_tokens_would_be_if_they_were_drawn(run, story):
    if not run.engine.info.scores_prompts:
        pytest.skip("this engine scores no prompts")
    result = await run.generate(story, prompt_logprobs=2, max_tokens=3, logprobs=2, ignore_eos=True)
    assert len(result.tokens) == 3
    assert len(result.prompt_logprobs) == len(story) - 1
    for at, one in enumerate(result.prompt_logprobs, 1):
        drawn = await run.generate(story[:at], max_tokens=1, logprobs=2, ignore_eos=True)
        assert [token for token, _ in one.top] == [token for token, _ in drawn.logprobs[0].top]
        assert one.logprob <= one.top[0][1] + 1e-4
        assert one.top[0][1] == pytest.approx(drawn.logprobs[0].top[0][1], abs=0.05)
        if story[at] in dict(one.top):
            assert one.logprob == pytest.approx(dict(one.top)[story[at]], abs=1e-4)


async def test_a_prompt_can_be_scored_alone(run, story):
    if not run.engine.info.scores_prompts:
        pytest.skip("this engine scores no prompts")
    result = await run.generate(story, prompt_logprobs=0, max_tokens=0)
    assert (result.tokens, result.finish, result.error) == ((), "length", None)
    assert [one.top for one in result.prompt_logprobs] == [()] * (len(story) - 1)
    again = await run.generate(story, story[:1], prompt_logprobs=0, max_tokens=2, ignore_eos=True)
    assert again.prompt_logprobs is None  # the reader has them already


async def test_every_token_has_a_piece_and_special_ones_their_name(run):
    tokenizer = run.engine.tokenizer
    tokens = await run.encode(MULTIBYTE)
    assert b"".join(map(tokenizer.piece, tokens)).decode().strip() == MULTIBYTE
    assert tokenizer.piece(await eos_of(run)).decode() == tokenizer.special_tokens["eos_token"]


async def test_text_comes_back_whole_from_its_tokens(run):
    tokens = await run.encode(MULTIBYTE)
    detokenizer = run.engine.tokenizer.detokenizer()
    pieces = [detokenizer.feed(token) for token in tokens]
    assert "".join(pieces).strip() == MULTIBYTE
    assert detokenizer.flush() == ""
    assert len(tokens) > len(MULTIBYTE.split())
    assert not any("\ufffd" in piece for piece in pieces)


async def test_a_character_cut_short_is_held_back_and_shows_at_the_end(run):
    tokens = await run.encode("ok 🎉")
    detokenizer = run.engine.tokenizer.detokenizer()
    text = "".join(map(detokenizer.feed, tokens[:-1]))
    assert text.strip() == "ok"
    assert set(detokenizer.flush()) == {"\ufffd"}


async def test_a_primed_detokenizer_goes_on_where_the_other_stood(run):
    tokens = await run.encode(MULTIBYTE)
    for cut in range(len(tokens) + 1):
        first, second = (run.engine.tokenizer.detokenizer() for _ in range(2))
        for token in tokens[:cut]:
            first.feed(token)
            second.feed(token)
        rest = [
            detokenizer.feed(token) for token in tokens[cut:] for detokenizer in (first, second)
        ]
        assert rest[::2] == rest[1::2]


async def test_special_tokens_are_recognised_in_text_and_have_none_themselves(run):
    eos = await eos_of(run)
    tokens = await run.encode("hello" + run.engine.tokenizer.special_tokens["eos_token"])
    assert tokens[-1] == eos
    assert run.text(tokens).strip() == "hello"


async def test_an_aborted_sequence_gives_nothing_more_and_frees_its_slot(run, story):
    slots = run.engine.info.slots
    long = {"max_tokens": 200, "ignore_eos": True}
    running = [run.add(story, **long) for _ in range(slots)]
    await run.until(lambda: all(map(run.tokens, running)))
    waiting = run.add(story, max_tokens=3, ignore_eos=True)
    await run.until(lambda: all(len(run.tokens(name)) >= 4 for name in running))
    assert run.outputs(waiting) == []  # all slots are taken
    time.sleep(0.3)  # noqa: ASYNC251  # what comes meanwhile is on its way, and must not arrive
    run.engine.abort(running[0])
    given = run.outputs(running[0])
    assert len((await run.end(waiting)).tokens) == 3
    assert run.outputs(running[0]) == given
    for name in running:
        run.engine.abort(name)
    assert not any(map(run.ended, running))


async def test_an_aborted_waiting_sequence_never_starts(run, story):
    name = run.add(story, max_tokens=5)
    run.engine.abort(name)
    after = await run.generate(story, max_tokens=2, ignore_eos=True)
    assert len(after.tokens) == 2
    assert run.outputs(name) == []


async def test_aborting_what_is_not_there_does_nothing(run, story):
    run.engine.abort("never seen")
    name = run.add(story, max_tokens=2, ignore_eos=True)
    await run.end(name)
    run.engine.abort(name)
    assert len((await run.generate(story, max_tokens=2, ignore_eos=True)).tokens) == 2


async def test_the_name_of_an_aborted_sequence_can_be_used_again(run, story):
    first = run.add(story, max_tokens=100, ignore_eos=True)
    await run.until(lambda: run.tokens(first))
    run.engine.abort(first)
    before = len(run.tokens(first))
    run.add(story, max_tokens=3, ignore_eos=True, id=first)
    await run.end(first)
    assert len(run.tokens(first)) - before == 3


async def test_a_sequence_goes_on_from_the_tokens_it_is_given(subject, run, story):
    whole = await run.generate(story, max_tokens=12, logprobs=2, ignore_eos=True)
    for cut in (1, 6, 11):
        rest = await run.generate(story, whole.tokens[:cut], max_tokens=12, ignore_eos=True)
        # Other shapes of batch sum in another order: where two tokens tie they may change places.
        joined = dataclasses.replace(rest, tokens=whole.tokens[:cut] + rest.tokens)
        assert_same_up_to_near_ties(whole, joined, subject.near)
        assert len(rest.tokens) == 12 - cut
        assert rest.finish == "length"


async def test_a_drawn_sequence_goes_on_with_the_draws_it_would_have_had(subject, run, story):
    if not subject.repeats_draws:
        pytest.skip("this engine's sampler cannot start at an index")
    own = {"max_tokens": 12, "temperature": 1.0, "seed": 11, "ignore_eos": True}
    whole = await run.generate(story, **own)
    rest = await run.generate(story, whole.tokens[:5], **own)
    assert whole.tokens[:5] + rest.tokens == whole.tokens


async def test_given_tokens_count_for_penalties_min_tokens_and_max_tokens(run, story):
    eos = await eos_of(run)
    given = (await run.generate(story, max_tokens=5, ignore_eos=True)).tokens
    done = await run.generate(story, given, max_tokens=5)
    assert (done.tokens, done.finish) == ((), "length")
    ended = await run.generate(story, given, max_tokens=9, min_tokens=6, logit_bias={eos: 100.0})
    assert len(ended.tokens) == 1
    assert ended.finish == "stop"
    token = (await run.encode(" queue"))[0]
    bias = {"logit_bias": {token: 100.0}, "max_tokens": 9, "ignore_eos": True}
    plain = await run.generate(story, (token,) * 8, **bias)
    penalised = await run.generate(story, (token,) * 8, frequency_penalty=20.0, **bias)
    assert plain.tokens == (token,)
    assert penalised.tokens != (token,)


async def test_heartbeats_are_on_time_while_a_model_loads_and_while_a_long_prompt_is_read(run):
    assert run.gap_while_loading.is_short(HEARTBEAT), run.gap_while_loading
    words = await run.encode(" ".join(map(str, range(400))))  # nothing that a cache knows
    gap = await run.gap_while(words[: run.engine.info.context_length - 8])
    assert gap.is_short(HEARTBEAT), gap


async def test_too_long_a_prompt_is_refused_and_others_go_on(run, story):
    other = run.add(story, max_tokens=5, ignore_eos=True)
    result = await run.generate(story[:1] * run.engine.info.context_length, max_tokens=1)
    assert isinstance(result.error, ContextLengthExceededError)
    assert result.tokens == ()
    assert len((await run.end(other)).tokens) == 5


async def test_a_sequence_ends_where_its_context_does(run, story):
    prompt = story[:1] * (run.engine.info.context_length - 6)
    result = await run.generate(prompt, ignore_eos=True)
    assert result.finish == "length"
    assert 1 <= len(result.tokens) <= 6


async def test_a_token_that_the_model_does_not_know_is_refused_and_others_go_on(run, story):
    other = run.add(story, max_tokens=5, ignore_eos=True)
    result = await run.generate((*story, 10_000_000), max_tokens=1)
    assert isinstance(result.error, InvalidRequestError)
    assert len((await run.end(other)).tokens) == 5


BOOK = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 16},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["title", "year", "tags"],
    "additionalProperties": False,
}


def is_book(text):
    jsonschema.validate(json.loads(text), BOOK)
    return True


CONSTRAINTS = {
    "json_schema": (json.dumps(BOOK), is_book),
    "regex": (r"\d{3}-[a-c]{2,4}", re.compile(r"[0-9]{3}-[a-c]{2,4}").fullmatch),
    "choice": ('["yes","no","perhaps, \\"é\\""]', {"yes", "no", 'perhaps, "é"'}.__contains__),
    "grammar": (
        'root ::= "é" smile smile? smile? "."\nsmile ::= "😀" [日本語] | "ab"',
        re.compile("é(😀[日本語]|ab){1,3}[.]").fullmatch,
    ),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_outputs_satisfy_their_constraints_beside_free_ones(run, story, temperature):
    own = {"max_tokens": 120, "temperature": temperature}
    free = run.add(story, max_tokens=20, ignore_eos=True)
    running = [
        (kind, run.add(story, constraint=Constraint(kind, value), seed=seed, **own))
        for kind, (value, _) in CONSTRAINTS.items()
        for seed in range(2)
    ]
    for kind, name in running:
        result = await run.end(name)
        assert (result.error, result.finish) == (None, "stop"), kind
        assert CONSTRAINTS[kind][1](run.text(result.tokens)), kind
    assert len((await run.end(free)).tokens) == 20


async def test_any_json_object_is_one(run, story):
    constraint = Constraint("json_object")
    result = await run.generate(story, max_tokens=200, constraint=constraint, temperature=1.0)
    text = run.text(result.tokens)
    assert text.startswith("{")
    if result.finish == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("kind", CONSTRAINTS)
async def test_a_constrained_sequence_goes_on_inside_its_grammar(subject, run, story, kind):
    if not subject.continues_constraints:
        pytest.skip("this engine ends it with an error")
    value, valid = CONSTRAINTS[kind]
    own = {"constraint": Constraint(kind, value), "max_tokens": 120, "logprobs": 2}
    whole = await run.generate(story, **own)
    heads = {whole.tokens[:cut] for cut in (1, len(whole.tokens) // 2, len(whole.tokens) - 1)}
    running = [(head, run.add(story, head, **own)) for head in heads]
    for head, name in running:
        rest = await run.end(name)
        assert (rest.error, rest.finish) == (None, "stop")
        assert valid(run.text(head + rest.tokens))


async def test_what_was_generated_must_satisfy_the_constraint_too(run, story):
    constraint = Constraint("regex", "[0-9]+")
    result = await run.generate(story, story[:1], constraint=constraint, max_tokens=4)
    assert isinstance(result.error, EngineError)


async def test_penalties_biases_and_logprobs_go_with_a_constraint(run, story):
    value, valid = CONSTRAINTS["json_schema"]
    (dot,) = await run.encode(".")
    result = await run.generate(
        story,
        constraint=Constraint("json_schema", value),
        max_tokens=120,
        presence_penalty=0.5,
        logit_bias={dot: 50.0},
        logprobs=1,
    )
    assert valid(run.text(result.tokens))
    assert len(result.logprobs) == len(result.tokens)


async def test_the_end_of_a_grammar_is_an_end_even_if_ends_are_ignored(subject, run, story):
    constraint = Constraint("choice", '["yes","no"]')
    for own in ({"ignore_eos": True}, {"min_tokens": 50})[: 1 + subject.binds_length]:
        result = await run.generate(story, constraint=constraint, max_tokens=60, **own)
        assert run.text(result.tokens) in {"yes", "no"}
        assert result.finish == "stop"


async def test_a_grammar_that_could_end_goes_on_where_ends_are_ignored(subject, run, story):
    constraint = Constraint("regex", "[a-z ]+")
    ignored = await run.generate(story, constraint=constraint, max_tokens=30, ignore_eos=True)
    assert (len(ignored.tokens), ignored.finish) == (30, "length")
    early = await run.generate(story, constraint=constraint, max_tokens=40, min_tokens=25)
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


async def test_steps_grow_while_something_runs(run, story):
    before = run.engine.steps
    await run.generate(story, max_tokens=6, ignore_eos=True)
    assert run.engine.steps - before >= 6


def assert_same_up_to_near_ties(expected, result, near):
    """`expected` must have the log-probabilities of the two most likely tokens."""
    for at, (token, other) in enumerate(zip(expected.tokens, result.tokens, strict=False)):
        if token != other:
            (_, first), (runner_up, second) = expected.logprobs[at].top
            assert other == runner_up, f"token {at}"
            assert first - second < near, f"token {at}"
            return
    assert len(expected.tokens) == len(result.tokens)
