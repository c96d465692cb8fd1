"""Which token comes next: draws, biases and penalties, and the log-probabilities that are told."""

import asyncio
import math

import pytest

from queueserve.errors import InvalidRequestError

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_most_likely_tokens_are_the_same_every_time(subject, run, own_story):
    first = await run.generate(own_story, max_tokens=12, logprobs=5)
    again = await run.generate(own_story, max_tokens=12, logprobs=5)
    subject.assert_same(first, again)


async def test_a_seed_repeats_a_draw_and_another_seed_does_not(subject, run, own_story):
    if not subject.seeds:
        pytest.skip("this engine, as it runs here, ignores seeds")

    def draw(seed):
        return run.generate(own_story, max_tokens=12, temperature=1.0, seed=seed, ignore_eos=True)

    if subject.draws_alike_beside_others:
        first, again, *others = await asyncio.gather(draw(3), draw(3), draw(4), draw(5))
    else:
        await draw(3)  # from here on one slot has the prompt in its cache
        first, again, *others = [await draw(seed) for seed in (3, 3, 4, 5)]
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


async def test_penalties_break_repetition(subject, run):
    prompt = await run.encode(" one two" * 8)
    own = {"max_tokens": 24, "ignore_eos": True}
    if not subject.repeats_itself:
        own["logit_bias"] = {prompt[0]: 16.0}
    penalties = (
        {},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0, "frequency_penalty": 1.0},
        {"repetition_penalty": 2.0},
    )
    plain, *penalised = await asyncio.gather(
        *(run.generate(prompt, **own, **penalty) for penalty in penalties)
    )
    assert plain.tokens not in {result.tokens for result in penalised}


async def test_cutting_the_choice_to_one_is_greedy(subject, run, own_story):
    if not subject.truncates:
        pytest.skip("this engine has no distribution to cut")
    greedy = await run.generate(own_story, max_tokens=8, logprobs=5)
    for cut in ({"top_k": 1}, {"top_p": 0.001}, {"min_p": 1.0}):
        result = await run.generate(own_story, max_tokens=8, temperature=1.0, seed=1, **cut)
        if "min_p" in cut and not subject.cuts_by_min_p:
            assert isinstance(result.error, InvalidRequestError)
        else:
            subject.assert_same(greedy, result)


async def test_logprobs_are_of_the_token_and_of_the_most_likely(run, story):
    result = await run.generate(story, max_tokens=4, logprobs=3, ignore_eos=True)
    assert len(result.logprobs) == 4
    for token, own in zip(result.tokens, result.logprobs, strict=True):
        values = [value for _, value in own.top]
        assert len(own.top) == 3
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-4
        assert (token, own.logprob) in own.top  # of two that tie, either may be named first
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
        drawn = await run.generate(story[:at], max_tokens=1, logprobs=4, ignore_eos=True)
        likely = dict(drawn.logprobs[0].top)  # more of them: of two that tie either may be second
        assert len(one.top) == 2
        assert one.top == tuple(sorted(one.top, key=lambda each: -each[1]))
        for token, logprob in one.top:
            assert logprob == pytest.approx(likely[token], abs=0.05)
        assert one.top[0][1] == pytest.approx(max(likely.values()), abs=0.05)
        assert one.logprob <= one.top[0][1] + 1e-4
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
