import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from queueserve.errors import ContextLengthExceededError, InvalidRequestError
from queueserve.protocol import Sampling
from workers.engines.base import Sequence
from workers.engines.fake import FakeEngine
from workers.engines.fake_tokens import EOS, VOCABULARY, WORDS, FakeTokenizer

PROMPT = (257, 97, 98, 99)
LONG = Sampling(max_tokens=100, ignore_eos=True)


class Run:
    """An engine and everything that it gave."""

    def __init__(self, **options):
        self.engine = FakeEngine(**{"tick": 0} | options)
        self.steps = []  # outputs of each sink call
        self.after = {}  # number of steps → what to do then
        self._ended = {}

    async def start(self):
        await self.engine.start(self._sink)
        return self

    def _sink(self, outputs):
        self.steps.append(outputs)
        for output in outputs:
            if output.finish or output.error:
                self._end(output.id).set()
        self.after.get(len(self.steps), lambda: None)()

    def _end(self, name):
        return self._ended.setdefault(name, asyncio.Event())

    def add(self, name="a", sampling=LONG, prompt=PROMPT, generated=()):
        self.engine.add(
            Sequence(id=name, prompt=prompt, generated=tuple(generated), sampling=sampling)
        )

    async def end(self, *names):
        for name in names or "a":
            await self._end(name).wait()

    def outputs(self, name="a"):
        return [output for step in self.steps for output in step if output.id == name]

    def tokens(self, name="a"):
        return [token for output in self.outputs(name) for token in output.tokens]


async def generate(sampling=LONG, prompt=PROMPT, generated=(), **options):
    """One sequence, alone: its tokens and its outputs."""
    run = await Run(**options).start()
    run.add("a", sampling, prompt, generated)
    await run.end()
    await run.engine.close()
    return run.tokens(), run.outputs()


def text(tokens):
    detokenizer = FakeTokenizer().detokenizer()
    return "".join(map(detokenizer.feed, tokens)) + detokenizer.flush()


def logprobs(outputs):
    return [output.logprobs for output in outputs if output.tokens]


async def test_the_same_prompt_gives_the_same_tokens_and_another_prompt_others():
    first, _ = await generate()
    again, _ = await generate()
    other, _ = await generate(prompt=(257, 97, 98, 100))
    assert first == again
    assert len(first) == 100
    assert first != other


async def test_the_seed_matters_above_temperature_zero_only():
    async def seeded(temperature, seed):
        return (await generate(replace(LONG, temperature=temperature, seed=seed)))[0]

    assert await seeded(1.0, 1) == await seeded(1.0, 1)
    assert await seeded(1.0, 1) != await seeded(1.0, 2)
    assert await seeded(0.0, 1) == await seeded(0.0, 2)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=60, seed=5),
        Sampling(max_tokens=60, temperature=0, ignore_eos=True),
        Sampling(max_tokens=60, ignore_eos=True, frequency_penalty=2.0, presence_penalty=1.0),
        Sampling(max_tokens=60, ignore_eos=True, repetition_penalty=1.5, logprobs=3, seed=9),
        Sampling(max_tokens=60, min_tokens=40, logit_bias={EOS: 100.0}),
    ],
)
async def test_a_continued_sequence_goes_on_with_the_same_tokens(sampling):
    whole, outputs = await generate(sampling)
    for done in (1, 7, len(whole) - 1, len(whole)):
        rest, rest_outputs = await generate(sampling, generated=whole[:done])
        assert whole[:done] + rest == whole
        assert rest_outputs[-1].finish == outputs[-1].finish
        assert logprobs(outputs)[done:] == logprobs(rest_outputs)


async def test_an_answer_ends_by_itself_and_the_end_token_is_left_out():
    lengths = set()
    for at in range(40):
        tokens, outputs = await generate(Sampling(), prompt=(at,))
        assert outputs[-1].finish == "stop"
        assert outputs[-1].tokens == ()
        assert EOS not in tokens
        assert "\ufffd" not in text(tokens)  # it does not end inside a character
        lengths.add(len(tokens))
    assert lengths == {16, 24, 32, 40, 48, 56, 64}


async def test_ignore_eos_goes_on_to_the_end_of_the_context():
    tokens, outputs = await generate(Sampling(ignore_eos=True), context_length=200)
    assert len(tokens) == 196
    assert outputs[-1].finish == "length"


async def test_min_tokens_holds_off_the_end_and_stop_tokens():
    tokens, outputs = await generate(Sampling(min_tokens=90, max_tokens=100))
    assert len(tokens) == 90
    assert outputs[-1].finish == "stop"
    first, _ = await generate()
    sampling = Sampling(max_tokens=100, min_tokens=5, stop_token_ids=(first[0], first[6]))
    tokens, outputs = await generate(sampling)
    assert first[0] not in tokens
    assert tokens[1:5] == first[1:5]
    assert len(tokens) >= 5


async def test_max_tokens_counts_what_was_generated_before():
    tokens, outputs = await generate(Sampling(max_tokens=3))
    assert len(tokens) == 3
    assert [output.finish for output in outputs] == [None, None, "length"]
    rest, outputs = await generate(Sampling(max_tokens=3), generated=tokens)
    assert rest == []
    assert [output.finish for output in outputs] == ["length"]


async def test_a_stop_token_ends_the_answer_and_is_left_out():
    whole, _ = await generate()
    at = 9
    tokens, outputs = await generate(replace(LONG, stop_token_ids=(whole[at],)))
    assert tokens == whole[: whole.index(whole[at])]
    assert outputs[-1].finish == "stop"


async def test_logit_bias_forces_and_bans_tokens():
    forced, _ = await generate(Sampling(max_tokens=4, logit_bias={65: 100.0}))
    assert forced == [65, 65, 65, 65]
    whole, _ = await generate()
    banned, _ = await generate(replace(LONG, logit_bias={whole[0]: -100.0}))
    assert whole[0] not in banned
    assert banned[1] == whole[1]
    most = dict.fromkeys([*WORDS[:-1], *range(256)], -100.0)
    left, _ = await generate(replace(LONG, logit_bias=most))
    assert not set(left) & set(most)
    none, outputs = await generate(Sampling(logit_bias={EOS: 100.0}))
    assert none == []
    assert outputs[-1].finish == "stop"


async def test_penalties_make_repetition_rarer():
    plain, _ = await generate()
    for sampling in (
        replace(LONG, frequency_penalty=2.0),
        replace(LONG, presence_penalty=2.5),
        replace(LONG, repetition_penalty=1.5),
    ):
        tokens, _ = await generate(sampling)
        assert len(set(tokens)) > len(set(plain))


async def test_logprobs_are_consistent_with_the_tokens():
    greedy = replace(LONG, temperature=0)
    plain, outputs = await generate(greedy)
    assert all(output.logprobs is None for output in outputs)
    tokens, outputs = await generate(replace(greedy, logprobs=5))
    assert tokens == plain
    ones = [one for output in outputs for one in output.logprobs]
    assert len(ones) == 100
    for token, one in zip(tokens, ones, strict=True):
        assert one.top[0] == (token, one.logprob)
        assert [value for _, value in one.top] == sorted((v for _, v in one.top), reverse=True)
        assert len({other for other, _ in one.top}) == 5
        assert one.logprob < 0
    drawn, others = await generate(replace(LONG, logprobs=5))
    assert drawn != tokens
    assert [one.top for (one,) in logprobs(others)] == [one.top for one in ones]
    _, outputs = await generate(replace(LONG, logprobs=0, logit_bias={65: 100.0}))
    assert outputs[0].logprobs[0].top == ()
    assert outputs[0].logprobs[0].logprob < ones[0].top[4][1]  # unlikely, though forced


async def test_all_sequences_move_together_with_one_call_a_step():
    run = await Run(slots=3).start()
    for name in "abc":
        run.add(name, Sampling(max_tokens=5, ignore_eos=True, seed=ord(name)))
    await run.end(*"abc")
    assert [[output.id for output in step] for step in run.steps] == [["a", "b", "c"]] * 5
    assert run.engine.steps == 5
    assert run.tokens("a") != run.tokens("b")


async def test_a_sequence_joins_and_leaves_a_running_batch():
    run = await Run().start()
    run.add("a", Sampling(max_tokens=6, ignore_eos=True))
    run.after[2] = lambda: run.add("b", Sampling(max_tokens=2, ignore_eos=True))
    await run.end(*"ab")
    assert [[output.id for output in step] for step in run.steps] == [
        *[["a"]] * 2,
        *[["a", "b"]] * 2,
        *[["a"]] * 2,
    ]


async def test_no_more_than_its_slots_run_at_once():
    run = await Run(slots=2).start()
    for name in "abc":
        run.add(name, Sampling(max_tokens=3, ignore_eos=True))
    await run.end(*"abc")
    assert [[output.id for output in step] for step in run.steps] == [
        *[["a", "b"]] * 3,
        *[["c"]] * 3,
    ]


async def test_nothing_follows_an_abort_and_unknown_ids_are_ignored():
    run = await Run().start()
    for name in "ab":
        run.add(name)
    run.after[3] = lambda: run.engine.abort("a")
    run.after[4] = lambda: run.engine.abort("nobody")
    await run.end("b")
    assert len(run.tokens("a")) == 3
    assert len(run.tokens("b")) == 100


async def test_an_idle_engine_has_no_timer():
    run = await Run(tick=0.001).start()
    assert run.engine._handle is None
    run.add("a", Sampling(max_tokens=2))
    assert run.engine._handle is not None
    await run.end()
    assert run.engine._handle is None
    run.add("a")
    run.engine.abort("a")
    assert run.engine._handle is None
    run.add("a")
    await run.engine.close()
    await run.engine.close()
    assert run.engine._handle is None
    assert len(run.steps) == 2


async def test_the_clock_does_not_drift_but_does_not_catch_up_either():
    run = await Run(tick=1.0).start()
    loop = _Loop()
    run.engine._loop = loop
    run.add("a")
    for late in (0.0, 0.3, 0.9, 0.0, 2.5, 0.0):
        loop.now = loop.due[-1] + late
        run.engine._step()
    assert loop.due == [1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 8.5]


class _Loop:
    """The two methods of an event loop that the clock uses, at a time that stands still."""

    def __init__(self):
        self.now = 0.0
        self.due = []

    def time(self):
        return self.now

    def call_at(self, when, callback):
        self.due.append(when)


async def test_a_long_prompt_takes_steps_before_its_first_token():
    run = await Run(prefill=100).start()
    run.add("short", Sampling(max_tokens=2))
    run.add("long", Sampling(max_tokens=2), prompt=tuple(range(250)))
    await run.end("short", "long")
    assert [[output.id for output in step] for step in run.steps] == [
        ["short"],
        ["short"],
        ["long"],
        ["long"],
    ]


async def test_a_step_that_moves_nothing_is_not_reported():
    run = await Run(prefill=10).start()
    run.add("a", Sampling(max_tokens=1), prompt=tuple(range(35)))
    await run.end()
    assert len(run.steps) == 1
    assert run.engine.steps == 4


async def test_cached_prompt_tokens_are_reported_once():
    run = await Run().start()
    prompt = tuple(range(40))
    for name, tokens in (("a", prompt), ("b", prompt), ("c", (*prompt[:20], 1, 2, 3))):
        run.add(name, Sampling(max_tokens=2), prompt=tokens)
        await run.end(name)
    reports = {
        name: [output.cached_tokens for output in run.outputs(name)] for name in ("a", "b", "c")
    }
    assert reports == {"a": [0, None], "b": [32, None], "c": [16, None]}


async def test_the_cache_forgets_its_oldest_prompts(monkeypatch):
    monkeypatch.setattr("workers.engines.fake._CACHE_BLOCKS", 2)
    run = await Run().start()
    first, second = tuple(range(20)), tuple(range(100, 140))
    for name, prompt in (("a", first), ("b", second), ("c", second), ("d", first)):
        run.add(name, Sampling(max_tokens=1), prompt=prompt)
        await run.end(name)
    assert [run.outputs(name)[0].cached_tokens for name in "abcd"] == [0, 0, 32, 0]


@pytest.mark.parametrize(
    "sampling,prompt,kind,param",
    [
        (LONG, tuple(range(64)), ContextLengthExceededError, "messages"),
        (LONG, (1, 99_999), InvalidRequestError, "prompt"),
        (Sampling(logit_bias={99_999: 1.0}), PROMPT, InvalidRequestError, "logit_bias"),
        (Sampling(stop_token_ids=(-1,)), PROMPT, InvalidRequestError, "stop_token_ids"),
    ],
)
async def test_what_cannot_run_ends_in_an_error(sampling, prompt, kind, param):
    tokens, outputs = await generate(sampling, prompt, context_length=64)
    assert tokens == []
    assert [type(output.error) for output in outputs] == [kind]
    assert outputs[0].error.param == param
    assert outputs[0].finish is None


async def test_info_and_the_time_to_load():
    engine = FakeEngine(slots=3, context_length=128, start_delay=0.01, fingerprint="other")
    starting = asyncio.create_task(engine.start(print))
    await asyncio.sleep(0)
    assert not starting.done()
    await starting
    assert (engine.info.engine, engine.info.slots) == ("fake", 3)
    assert (engine.info.context_length, engine.info.fingerprint) == (128, "other")


async def test_the_text_has_characters_of_every_length_over_several_tokens():
    tokens, _ = await generate(Sampling(max_tokens=3000, ignore_eos=True))
    written = text(tokens)
    assert "\ufffd" not in written.rstrip("\ufffd")
    for character in ("é", "ü", "日", "本", "語", "🙂", "🚀", " the", "\n"):
        assert character in written
    detokenizer = FakeTokenizer().detokenizer()
    held = sum(detokenizer.feed(token) == "" for token in tokens)
    assert held > 300


async def test_a_cut_inside_a_character_shows_as_one_replacement_character():
    emoji = tuple("🙂".encode())
    assert text(emoji) == "🙂"
    assert text(emoji[:3]) == "\ufffd"
    assert text((*emoji[:2], WORDS[0])) == "\ufffd" + VOCABULARY[WORDS[0]].decode()
    detokenizer = FakeTokenizer().detokenizer()
    assert [detokenizer.feed(token) for token in emoji] == ["", "", "", "🙂"]
    assert detokenizer.flush() == ""


@given(st.text())
async def test_every_text_survives_encoding(given_text):
    tokens = await FakeTokenizer().encode(given_text, add_special=False)
    if not any(special in given_text for special in ("<|im_start|>", "<|im_end|>", "<|bos|>")):
        assert text(tokens) == given_text
    assert all(token in range(len(VOCABULARY)) for token in tokens)


async def test_words_and_special_tokens_are_recognised():
    tokenizer = FakeTokenizer()
    assert await tokenizer.encode("<|im_start|>x the<|im_end|>", add_special=True) == (
        256,
        257,
        ord("x"),
        next(word for word in WORDS if VOCABULARY[word] == b" the"),
        258,
    )
    assert tokenizer.special_tokens == {"bos_token": "<|bos|>", "eos_token": "<|im_end|>"}
    assert "<|im_start|>" in tokenizer.chat_template
    long = "the queue\n" * 20_000
    assert text(await tokenizer.encode(long, add_special=False)) == long
