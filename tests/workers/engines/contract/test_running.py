"""A sequence from its start to its end: what an engine says of itself, gives, and refuses."""

import asyncio

import pytest

from queueserve.errors import ContextLengthExceededError, InvalidRequestError
from workers.adapters import ADAPTERS

pytestmark = pytest.mark.asyncio(loop_scope="session")


HEARTBEAT = 3.0  # seconds between two; a worker is dead after 15


async def test_a_started_engine_says_what_it_is(run):
    info = run.engine.info
    assert info.engine in ADAPTERS
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


async def test_the_end_of_sequence_token_ends_unless_it_is_ignored(run, story, eos):
    ended = await run.generate(story, max_tokens=5, logit_bias={eos: 100.0})
    assert ended.tokens == ()
    assert ended.finish == "stop"
    ignored = await run.generate(story, max_tokens=3, ignore_eos=True)
    assert len(ignored.tokens) == 3
    assert ignored.finish == "length"


async def test_min_tokens_keep_a_sequence_from_ending(run, story, eos):
    result = await run.generate(story, max_tokens=9, min_tokens=4, logit_bias={eos: 100.0})
    assert len(result.tokens) == 4
    assert eos not in result.tokens
    assert result.finish == "stop"


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


async def test_steps_grow_while_something_runs(run, story):
    before = run.engine.steps
    await run.generate(story, max_tokens=6, ignore_eos=True)
    assert run.engine.steps - before >= 6


async def test_what_the_cache_had_of_a_prompt_is_told_truly(run):
    """Engines that keep blocks of a prompt tell of whole ones: vLLM's have 128 tokens on a CPU."""
    length = 3 * run.engine.info.context_length // 4
    prompt = (await run.encode("Nothing begins like this. ") * length)[:length]
    first = await run.generate(prompt, max_tokens=2, ignore_eos=True)
    await asyncio.sleep(0.2)  # a slot may be given back a moment after the last output
    again = await run.generate(prompt, max_tokens=2, ignore_eos=True)
    other = await run.generate(prompt[1:], max_tokens=2, ignore_eos=True)
    if again.cached_tokens is None:
        pytest.skip("this engine keeps nothing of a prompt")
    assert first.cached_tokens < length // 4
    assert length // 4 < again.cached_tokens < length
    assert other.cached_tokens < length // 4  # it begins otherwise
