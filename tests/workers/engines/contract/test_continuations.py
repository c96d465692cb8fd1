"""A sequence that another worker has begun goes on as it would have."""

import dataclasses

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_sequence_goes_on_from_the_tokens_it_is_given(subject, run, own_story):
    whole = await run.generate(own_story, max_tokens=12, logprobs=5, ignore_eos=True)
    for cut in (1, 6, 11):
        rest = await run.generate(own_story, whole.tokens[:cut], max_tokens=12, ignore_eos=True)
        # Other shapes of batch sum in another order: where two tokens tie they may change places.
        joined = dataclasses.replace(rest, tokens=whole.tokens[:cut] + rest.tokens)
        subject.assert_same(whole, joined)
        assert len(rest.tokens) == 12 - cut
        assert rest.finish == "length"


async def test_a_drawn_sequence_goes_on_with_the_draws_it_would_have_had(subject, run, story):
    if not subject.repeats_draws:
        pytest.skip("this engine's sampler cannot start at an index")
    own = {"max_tokens": 12, "temperature": 1.0, "seed": 11, "ignore_eos": True}
    whole = await run.generate(story, **own)
    rest = await run.generate(story, whole.tokens[:5], **own)
    assert whole.tokens[:5] + rest.tokens == whole.tokens


async def test_given_tokens_count_for_penalties_min_tokens_and_max_tokens(run, story, eos):
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
