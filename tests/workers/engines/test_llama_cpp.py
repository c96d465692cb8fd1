"""The llama_cpp engine on a real model; what all engines do is in contract/."""

import asyncio
import importlib.util
import random

import httpx
import pytest
import pytest_asyncio

from queueserve.errors import (
    ContextLengthExceededError,
    EngineError,
    InvalidRequestError,
)
from queueserve.protocol import Sampling
from workers.engines import llama_cpp_requests as requests
from workers.engines.base import Sequence
from workers.engines.llama_cpp import LlamaCppEngine
from workers.engines.llama_cpp_generation import Generation
from workers.engines.llama_cpp_server import LlamaServer

if importlib.util.find_spec("xllamacpp") is None:  # importing it here would fix OpenMP's settings
    pytest.skip("xllamacpp is not installed", allow_module_level=True)
pytestmark = pytest.mark.asyncio(loop_scope="session")

STORY = "Once upon a time there was a"
CHARACTERS = {
    "emoji": "😀🎉🥀🇩🇪👩‍🚀",
    "chinese": "你好世界这是中文",
    "arabic": "مرحبا بالعالم",
    "georgian": " გამარჯობა",
}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def run(make_run, smollm2_gguf):
    engine = LlamaCppEngine(smollm2_gguf, slots=2, context_length=2048)
    yield await make_run(engine).start()
    await engine.close()


@pytest_asyncio.fixture(loop_scope="session")
async def story(run):
    return await run.encode(STORY)


@pytest.fixture
def asked(monkeypatch):
    """What the cache of a slot was asked for, and its answers."""
    seen = []
    confirmed = Generation._confirmed

    def noted(self, tokens, last):
        seen.append((tokens, confirmed(self, tokens, last)))
        return seen[-1][1]

    monkeypatch.setattr(Generation, "_confirmed", noted)
    return seen


def true_tokens(run, prompt, **sampling):
    """The tokens of one request that is not streamed: llama.cpp gives all their ids."""
    own = Sampling(**({"temperature": 0.0} | sampling))
    sequence = Sequence(id="truth", prompt=tuple(prompt), sampling=own)
    request = requests.draw(
        sequence,
        [],
        slot=0,
        count=own.max_tokens,
        banned=run.engine._loaded.server.ends if own.ignore_eos else (),
        stream=False,
    )
    return run.engine._loaded.server.answer(request).tokens


def assert_same_up_to_a_near_tie(run, prompt, tokens, truth, bias):
    """Other shapes of batch round otherwise: where two tokens nearly tie they may change places."""
    at = next(
        (at for at, pair in enumerate(zip(tokens, truth, strict=True)) if len(set(pair)) > 1), None
    )
    if at is not None:
        server, vocabulary = run.engine._loaded.server, run.engine._loaded.vocabulary
        request = requests.look(
            [*prompt, *tokens[:at]], slot=0, forced=vocabulary.plain_token(), alternatives=1000
        )
        scores = dict(server.answer(request).logprobs[0].top)
        one, other = (scores[token] + bias.get(token, 0) for token in (tokens[at], truth[at]))
        assert one == pytest.approx(other, abs=0.3), f"token {at}"


async def idle(run):
    """Wait until all slots are free."""
    async with asyncio.timeout(60):
        while len(run.engine._idle) < run.engine.info.slots:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


# Token ids


@pytest.mark.parametrize("script", CHARACTERS)
async def test_all_tokens_of_characters_are_told(run, script):
    text = CHARACTERS[script]
    prompt = await run.encode(f"{text}\n{text}\n")
    wanted = await run.encode(text)
    # The model repeats the text; the bias makes it sure of that.
    bias = dict.fromkeys(wanted, 8.0)
    sampling = {"max_tokens": 16, "ignore_eos": True, "logit_bias": bias}
    result = await run.generate(prompt, **sampling)
    truth = await asyncio.to_thread(true_tokens, run, prompt, **sampling)
    assert_same_up_to_a_near_tie(run, prompt, result.tokens, truth, bias)
    assert len(result.tokens) == 16
    # Of a text that is longer than the tokens it may begin elsewhere than at its first character.
    told = run.text(result.tokens)
    assert any(text.strip()[at : at + 2] in told for at in range(len(text.strip()) - 1))


async def test_an_emoji_that_can_be_written_in_two_ways_is_told_as_it_was_written(run, asked):
    vocabulary = run.engine._loaded.vocabulary
    (last,) = (token for token, piece in enumerate(vocabulary.pieces) if piece == b"\x80")
    ways = vocabulary.held_back("🥀".encode()[:3], 2)
    assert len(ways) == 2
    for way in ways:
        # The model repeats what it sees, in the way that it is written there.
        prompt = (*way, last) * 6
        bias = dict.fromkeys((*way, last), 8.0)
        result = await run.generate(prompt, max_tokens=9, logit_bias=bias)
        assert result.tokens == prompt[:9]
        assert run.text(result.tokens) == "🥀🥀🥀"
    # Where the first way is wrong the rest is drawn token by token, and nothing need be asked.
    assert asked == [(ways[0], True)] * 3 + [(ways[0], False)]


async def test_logprobs_of_tokens_that_llama_cpp_does_not_tell(run):
    prompt = await run.encode("🎉🎉🎉🎉🎉🎉")
    result = await run.generate(prompt, max_tokens=6, logprobs=3, ignore_eos=True)
    assert run.text(result.tokens) == "🎉🎉"
    assert len(result.logprobs) == 6
    for token, own in zip(result.tokens, result.logprobs, strict=True):
        assert len(own.top) == 3
        assert own.top[0] == (token, own.logprob)
        assert own.logprob > -1.5


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
async def test_a_limit_inside_a_character_gives_the_tokens_up_to_it(run, limit):
    prompt = await run.encode("🎉🎉🎉🎉🎉🎉")
    result = await run.generate(prompt, max_tokens=limit, ignore_eos=True)
    assert result.tokens == prompt[:limit]
    assert result.finish == "length"


async def test_a_sequence_goes_on_from_inside_a_character(run):
    prompt = await run.encode("🎉🎉🎉🎉🎉🎉")
    for cut in range(1, 7):
        rest = await run.generate(prompt, prompt[:cut], max_tokens=7, ignore_eos=True)
        assert prompt[:cut] + rest.tokens == prompt[:7]


async def test_a_stop_token_inside_a_character_stops_there(run):
    prompt = await run.encode("🎉🎉🎉🎉🎉🎉")
    assert len(prompt) == 18
    result = await run.generate(prompt, max_tokens=9, stop_token_ids=(prompt[1],))
    assert result.tokens == prompt[:1]
    assert result.finish == "stop"


# Sampling


async def test_the_defaults_cut_nothing_off(run, story):
    # At such a temperature all tokens are about equally likely. llama.cpp's own defaults leave 40.
    for sampling in ({}, {"top_p": 0.9}, {"presence_penalty": 0.01}):
        result = await run.generate(
            story,
            max_tokens=8,
            temperature=1000.0,
            seed=2,
            logprobs=40,
            ignore_eos=True,
            **sampling,
        )
        likely = [{token for token, _ in own.top} for own in result.logprobs]
        assert not any(map(set.__contains__, likely, result.tokens))


async def test_penalties_count_what_was_generated_and_not_the_prompt(run):
    prompt = await run.encode(" one two three four" * 6)
    plain = await run.generate(prompt, max_tokens=8)
    assert plain.tokens == prompt[:8]
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        # What the prompt has many times is not punished before it is generated.
        result = await run.generate(prompt, max_tokens=4, **penalty)
        assert result.tokens == prompt[:4]
    strong = await run.generate(prompt, max_tokens=12, presence_penalty=100.0)
    assert len(set(strong.tokens)) == 12
    assert strong.tokens[:4] == prompt[:4]
    both = await run.generate(prompt, max_tokens=1, repetition_penalty=100.0)
    assert both.tokens[0] not in prompt


async def test_min_tokens_bans_stop_tokens_too(run, story):
    plain = (await run.generate(story, max_tokens=6, ignore_eos=True)).tokens
    result = await run.generate(
        story, max_tokens=20, min_tokens=3, stop_token_ids=plain, ignore_eos=True
    )
    assert len(result.tokens) >= 3
    assert not set(result.tokens) & set(plain)


async def test_a_stop_token_may_be_an_end_token_that_is_ignored_otherwise(run, story):
    (end,) = await run.encode("<|im_end|>")
    result = await run.generate(
        story, max_tokens=4, ignore_eos=True, stop_token_ids=(end,), logit_bias={end: 100.0}
    )
    assert (result.tokens, result.finish) == ((), "stop")


@pytest.mark.parametrize(
    "sampling, param",
    [
        ({"logit_bias": {49152: 1.0}}, "logit_bias"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids"),
    ],
)
async def test_tokens_that_the_model_does_not_have_are_refused(run, story, sampling, param):
    result = await run.generate(story, max_tokens=1, **sampling)
    assert isinstance(result.error, InvalidRequestError)
    assert result.error.param == param


async def test_an_empty_prompt_is_refused(run):
    result = await run.generate((), max_tokens=1)
    assert isinstance(result.error, InvalidRequestError)
    assert result.error.param == "prompt"


# The cache


async def test_a_known_prompt_is_not_computed_again(run):
    words = await run.encode("The quick brown fox jumps over the lazy dog. " * 8)
    first = await run.generate((*words, 100), max_tokens=2, ignore_eos=True)
    other = await run.generate(words[40:] + words[:40], max_tokens=2, ignore_eos=True)
    await idle(run)  # a slot is free a little after its sequence has ended
    again = await run.generate((*words, 200), max_tokens=2, ignore_eos=True)
    assert first.cached_tokens == 0
    assert other.cached_tokens < 10
    assert again.cached_tokens == len(words)
    await idle(run)
    stepping = await run.generate((*words, 300), max_tokens=2, presence_penalty=1.0)
    assert stepping.cached_tokens == len(words)


async def test_cached_tokens_are_of_the_prompt_and_told_once(run, story):
    whole = await run.generate(story, max_tokens=6, ignore_eos=True)
    await idle(run)
    name = run.add(story, whole.tokens[:4], max_tokens=6, ignore_eos=True)
    await run.end(name)
    first, *others = run.outputs(name)
    assert first.cached_tokens == len(story)
    assert [output.cached_tokens for output in others] == [None]


# Waiting and stopping


async def test_more_sequences_than_slots_wait_for_their_turn(run, story):
    names = [run.add(story, max_tokens=3 + index, ignore_eos=True) for index in range(7)]
    results = [await run.end(name) for name in names]
    assert [len(result.tokens) for result in results] == [3, 4, 5, 6, 7, 8, 9]
    await idle(run)


async def test_an_abort_within_a_long_prompt_frees_the_slot_after_a_step(run):
    if run.engine._loaded.server.on_gpu:
        pytest.skip("a GPU has read the prompt before anybody can stop it")
    await idle(run)
    chance = random.Random(7)
    prompt = tuple(chance.randrange(1000, 40000) for _ in range(1000))
    before = run.engine.steps
    name = run.add(prompt, max_tokens=5)
    async with asyncio.timeout(60):
        while run.engine.steps < before + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    run.engine.abort(name)
    at = run.engine.steps
    await idle(run)
    assert run.engine.steps - at <= 2  # of eight
    assert run.outputs(name) == []


async def test_aborts_at_any_time_lose_no_slot_and_let_nothing_through(run, story):
    chance = random.Random(3)
    for _ in range(6):
        names = [run.add(story, max_tokens=30, ignore_eos=True) for _ in range(4)]
        await asyncio.sleep(chance.random() * 0.1)
        chance.shuffle(names)
        given = {}
        for name in names:
            run.engine.abort(name)
            given[name] = len(run.outputs(name))
            await asyncio.sleep(chance.random() * 0.01)
        assert {name: len(run.outputs(name)) for name in names} == given
    await idle(run)
    assert run.engine._runs == {}
    assert len((await run.generate(story, max_tokens=3, ignore_eos=True)).tokens) == 3


async def test_the_event_loop_is_free_while_sequences_run(run, story):
    turns = 0

    async def count():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    calls = len(run.calls)
    await run.generate(story * 10, max_tokens=10, ignore_eos=True)
    counting.cancel()
    assert turns > 20 * (len(run.calls) - calls)


async def test_a_failure_inside_is_an_error_of_the_sequence_and_frees_its_slot(
    run, story, monkeypatch
):
    def broken(self, request, on_message):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(LlamaServer, "complete", broken)
    result = await run.generate(story, max_tokens=3)
    assert isinstance(result.error, EngineError)
    assert "boom" in result.error.message
    monkeypatch.undo()
    await idle(run)
    assert (await run.generate(story, max_tokens=3, ignore_eos=True)).finish == "length"


@pytest.mark.parametrize(
    "answer, error",
    [
        ({"surprise": 1}, EngineError("llama.cpp sent a message that is not known")),
        ({"error": {"type": "server_error", "message": "full"}}, EngineError("llama.cpp: full")),
        (
            {"error": {"type": "invalid_request_error", "message": "no"}},
            InvalidRequestError("no"),
        ),
        (
            {"error": {"type": "exceed_context_size_error", "message": "too long"}},
            ContextLengthExceededError("too long"),
        ),
        (None, EngineError("llama.cpp ended a sequence without a reason")),
    ],
)
async def test_what_llama_cpp_answers_instead_of_tokens_ends_the_sequence(
    run, story, monkeypatch, answer, error
):
    class Server:
        def handle_completions(self, request, callback):
            if answer:
                callback(answer)

    monkeypatch.setattr(run.engine._loaded.server, "_server", Server())
    result = await run.generate(story, max_tokens=3)
    assert type(result.error) is type(error)
    assert result.error.message.startswith(error.message)


# The tokenizer


async def test_encoding_is_llama_cpps_own(run):
    tokens = await run.encode("hello <|im_start|> 😀")
    assert tokens == (28120, 216, 1, 40303, 218)
    assert await run.engine.tokenizer.encode("", add_special=True) == ()
    assert run.engine.tokenizer.special_tokens["eos_token"] == "<|im_end|>"
    assert run.engine.tokenizer.chat_template.startswith("{% for message in messages %}")


async def test_every_token_has_the_bytes_that_llama_cpp_gives_it(run):
    vocabulary = run.engine._loaded.vocabulary
    request = requests.look([1], slot=0, forced=vocabulary.plain_token(), alternatives=100_000)
    answers = []
    server = run.engine._loaded.server._server
    await asyncio.to_thread(server.handle_completions, request, answers.append)
    (content,) = answers[0]["choices"][0]["logprobs"]["content"]
    table = {one["id"]: bytes(one["bytes"]) for one in content["top_logprobs"]}
    assert [table[token] for token in range(49152)] == list(vocabulary.pieces)


async def test_text_that_is_no_unicode_is_refused(run):
    with pytest.raises(InvalidRequestError, match="surrogates"):
        await run.encode("\ud800")


async def test_a_server_that_is_gone_cannot_tokenize(smollm2_gguf):
    engine = LlamaCppEngine(smollm2_gguf, slots=1, context_length=256)
    await engine.start(lambda outputs: None)
    await engine.close()
    with pytest.raises(EngineError, match="does not tokenize"):
        await engine.tokenizer.encode("hello", add_special=False)


async def test_the_port_that_llama_cpp_opens_is_locked_and_local(run):
    address = run.engine._loaded.server.address
    assert address.startswith("http://127.0.0.1:")
    async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
        for path in ("/tokenize", "/completion", "/v1/chat/completions"):
            assert (await client.post(path, json={"content": "x"})).status_code == 401
