"""Batching by the transformers engine: the model's own tokens, who comes and goes, failures."""

import asyncio
import logging
import threading
import time
import weakref

import pytest
import pytest_asyncio
from transformers_engines import assert_same_up_to_near_ties, engine_on, generate_alone

from queueserve.errors import EngineError
from workers.engines.base import EngineDiedError

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.asyncio(loop_scope="session")


PROMPT = tuple(b"once upon a time")


@pytest_asyncio.fixture(loop_scope="session")
async def tiny(make_run, tiny_llama):
    run = await make_run(engine_on(tiny_llama)).start()
    yield run
    await run.engine.close()


def cache_of(run):
    return run.engine._batcher._manager.batch_processor.cache


async def idle(run):
    """Wait until the manager has nothing left to do."""
    scheduler = run.engine._batcher._manager.batch_processor.scheduler
    async with asyncio.timeout(20):
        while scheduler.has_pending_requests() or scheduler._requests_to_cancel:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# The tokens are those of the model.


async def test_a_batch_that_sequences_join_late_gives_what_generate_gives_one_by_one(
    transformers_run,
):
    run = transformers_run
    texts = (
        "Hello",
        "The three primary colours are",
        "def fibonacci(n):\n    ",
        "Water boils at",
        "In the year 1969, the first people walked on the surface of the",
        "Roses are red, violets are",
        "To make tea, first boil the water. " * 4 + "Then",
        "A, B, C, D,",
    )
    prompts = [await run.encode(text) for text in texts]
    own = {"max_tokens": 12, "ignore_eos": True, "logprobs": 2}
    early = [run.add(prompt, **own) for prompt in prompts[:4]]
    await run.until(lambda: len(run.tokens(early[0])) >= 3)
    late = [run.add(prompt, **own) for prompt in prompts[4:]]
    results = [await run.end(name) for name in early + late]
    together = max(len({output.id for output in call}) for call in run.calls)
    assert together == 8
    for prompt, result in zip(prompts, results, strict=True):
        expected = await asyncio.to_thread(generate_alone, run, prompt)
        assert_same_up_to_near_ties(result, expected)


async def test_logprobs_are_the_models_own(tiny):
    result = await tiny.generate(
        PROMPT, max_tokens=3, logprobs=2, temperature=1.0, seed=1, ignore_eos=True
    )
    ids = torch.tensor([PROMPT + result.tokens])
    with torch.no_grad():
        expected = tiny.engine._batcher._model(ids).logits[0].log_softmax(-1)
    for at, (token, own) in enumerate(zip(result.tokens, result.logprobs, strict=True)):
        row = expected[len(PROMPT) - 1 + at]
        assert own.logprob == pytest.approx(row[token].item(), abs=1e-3)
        assert [id_ for id_, _ in own.top] == row.topk(2).indices.tolist()


async def test_with_a_cache_for_less_than_all_slots_the_tokens_are_the_same(
    tiny, make_run, tiny_llama, monkeypatch
):
    prompts = [bytes([97 + number]) * 40 for number in range(4)]
    own = {"max_tokens": 80, "ignore_eos": True, "temperature": 0.8, "seed": 3, "logprobs": 2}
    own["frequency_penalty"] = 0.1
    expected = await asyncio.gather(*(tiny.generate(prompt, **own) for prompt in prompts))
    monkeypatch.setattr("workers.engines.transformers_memory._CPU_CACHE", 1)
    run = await make_run(engine_on(tiny_llama)).start()
    try:
        assert cache_of(run).num_blocks == 5  # one sequence of 128 tokens, and a page
        results = await asyncio.gather(*(run.generate(prompt, **own) for prompt in prompts))
    finally:
        await run.engine.close()
    assert [result.tokens for result in results] == [result.tokens for result in expected]
    assert [len(result.logprobs) for result in results] == [80] * 4


async def test_a_prompt_seen_before_is_found_in_the_cache(tiny):
    prompt = bytes(range(32, 107))
    first = await tiny.generate(prompt, max_tokens=2, ignore_eos=True)
    again = await tiny.generate(prompt, max_tokens=2, ignore_eos=True)
    assert (first.cached_tokens, again.cached_tokens) == (0, 64)  # whole pages of 32
    assert again.tokens == first.tokens


async def test_the_event_loop_turns_while_a_long_prompt_is_read(transformers_run):
    run = transformers_run
    name = run.add(await run.encode("word " * 400), max_tokens=1, ignore_eos=True)
    started = last = time.perf_counter()
    longest = 0.0
    while not run.ended(name):
        await asyncio.sleep(0.005)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert longest < (last - started) / 3


# Sequences come and go.


async def test_after_many_aborts_at_any_moment_all_memory_is_free(tiny):
    names = []
    for number in range(40):
        names.append(tiny.add(bytes([number]) * 60, max_tokens=50, ignore_eos=True))
        if number % 3:
            tiny.engine.abort(names[-(number % 5) - 1 :][0])
        if number % 4 == 0:
            await asyncio.sleep(0.01)
    for name in names[::2]:
        tiny.engine.abort(name)
    await asyncio.sleep(0.02)
    for name in names:
        tiny.engine.abort(name)
    given = [len(tiny.outputs(name)) for name in names]
    await idle(tiny)
    await asyncio.sleep(0.02)
    assert [len(tiny.outputs(name)) for name in names] == given
    assert not tiny.engine._batcher._requests
    cache = cache_of(tiny)
    cache.evict_cached_blocks()
    cache.pool.try_to_free_sectors()
    assert cache.compute_free_capacity() == 1.0


async def test_a_cancel_that_overtakes_its_sequence_is_made_good(tiny):
    name = tiny.add(PROMPT, max_tokens=100, ignore_eos=True)
    key = tiny.engine._live.pop(name)
    # As if the manager had looked for new sequences just before, and for cancels just after.
    del tiny.engine._batcher._requests[key]
    await asyncio.sleep(0.05)
    await idle(tiny)
    assert tiny.outputs(name) == []
    assert tiny.engine.steps < 60


async def test_closing_stops_what_runs_and_can_be_done_twice(make_run, tiny_llama):
    run = await make_run(engine_on(tiny_llama)).start()
    name = run.add(PROMPT, max_tokens=100, ignore_eos=True)
    await run.until(lambda: run.tokens(name))
    thread = run.engine._batcher._thread
    await run.engine.close()
    assert not thread.is_alive()
    given = len(run.outputs(name))
    await run.engine.close()
    await asyncio.sleep(0.05)
    assert len(run.outputs(name)) == given
    assert not run.ended(name)


async def test_closing_while_the_model_loads_does_not_wait_for_it(tiny_llama):
    before = threading.enumerate()
    engine = engine_on(tiny_llama)
    starting = asyncio.create_task(engine.start(lambda _: None))
    await asyncio.sleep(0.01)
    starting.cancel()
    await engine.close()
    (loading,) = (thread for thread in threading.enumerate() if thread.name == "loading")
    await asyncio.to_thread(loading.join)
    new = set(threading.enumerate()).difference(before)
    assert "transformers" not in {thread.name for thread in new}
    assert engine.steps == 1  # it did load


async def test_closing_an_engine_that_never_started_does_nothing(tiny_llama):
    await engine_on(tiny_llama).close()


# What fails is said.


@pytest.fixture
def no_logs():
    """Log records that pytest keeps hold the traceback, and that the cache."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


class Breaks:
    """Makes the model raise, a number of times."""

    def __init__(self, run, times):
        self.times = times
        self._hook = run.engine._batcher._model.register_forward_pre_hook(self)

    def __call__(self, _module, _inputs):
        if self.times:
            self.times -= 1
            raise RuntimeError("out of imagination")


async def test_when_the_model_breaks_all_running_sequences_hear_of_it_and_later_ones_run(
    tiny, no_logs
):
    expected = await tiny.generate(PROMPT, max_tokens=4, ignore_eos=True)
    names = [tiny.add(PROMPT, max_tokens=60, ignore_eos=True) for _ in range(6)]
    await tiny.until(lambda: tiny.tokens(names[0]))
    cache = weakref.ref(cache_of(tiny))
    Breaks(tiny, times=1)
    for result in await asyncio.gather(*map(tiny.end, names)):
        assert isinstance(result.error, EngineError)
        assert "out of imagination" in result.error.message
    assert [len(call) for call in tiny.calls][-1] == 6  # in one call
    later = await tiny.generate(PROMPT, max_tokens=4, ignore_eos=True)
    assert later.tokens == expected.tokens
    assert cache() is None  # two would not fit on a GPU


async def test_an_engine_that_stays_broken_says_so_at_once(tiny, no_logs):
    Breaks(tiny, times=1_000_000)
    result = await tiny.generate(PROMPT, max_tokens=4)
    assert "out of imagination" in result.error.message
    async with asyncio.timeout(20):
        with pytest.raises(EngineDiedError, match="out of imagination"):
            await tiny.engine.lost()
