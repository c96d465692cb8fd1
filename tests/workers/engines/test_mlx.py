"""The mlx engine beside its contract: what it refuses, what it survives, how large it is."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from queueserve.errors import EngineError
from workers.engines.base import EngineDiedError, Fallible
from workers.engines.mlx import MlxEngine

pytest.importorskip("mlx_lm")

from workers.engines.mlx_loading import sizes

BOUND = 60.0
SHAPE = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "max_position_embeddings": 1000,
}


@pytest.fixture
async def run(make_run, tiny_llama):
    engine = MlxEngine(str(tiny_llama), slots=2, dtype="float32")
    yield await make_run(engine).start()
    await engine.close()


def test_slots_and_context_are_what_was_asked_for_or_what_the_memory_holds():
    assert sizes(SHAPE, weights=0, dtype="auto", slots=None, context=None)[:2] == (8, 1000)
    assert sizes(SHAPE, weights=0, dtype="auto", slots=3, context=50)[:2] == (3, 50)
    with pytest.raises(EngineError, match="was made for 1000"):
        sizes(SHAPE, weights=0, dtype="auto", slots=None, context=1001)
    vast = SHAPE | {"max_position_embeddings": 1 << 40}
    slots, context, spare = sizes(vast, weights=0, dtype="auto", slots=None, context=None)
    assert slots == 1
    assert context < 1 << 40
    assert spare < SHAPE["hidden_size"] * SHAPE["num_hidden_layers"]  # less than a token takes
    with pytest.raises(EngineError, match="no memory for a context"):
        sizes(vast, weights=0, dtype="auto", slots=None, context=1 << 39)


def test_a_containers_memory_is_the_memory(control_groups):
    token = 2 * 4 * 2 * 8 * 2  # keys and values of two heads in four layers, 8 numbers each
    control_groups(["2:memory:/box"], {"memory/box/memory.limit_in_bytes": 4 * 3500 * token})
    size = sizes(SHAPE, weights=0, dtype="auto", slots=None, context=None)
    assert size == (3, 1000, 500 * token)


async def test_a_checkpoint_that_cannot_be_loaded_says_so(tmp_path, tiny_llama):
    with pytest.raises(EngineError, match="there is no directory"):
        await MlxEngine(str(tmp_path / "none")).start(lambda _: None)
    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(EngineError, match="mlx-lm cannot load"):
        await MlxEngine(str(tmp_path)).start(lambda _: None)


async def test_an_unknown_dtype_is_refused(tiny_llama):
    with pytest.raises(EngineError, match="knows no --dtype int3"):
        await MlxEngine(str(tiny_llama), dtype="int3").start(lambda _: None)


async def test_what_a_sequence_before_had_of_a_prompt_is_not_computed_again(run):
    prompt, other = tuple(range(1, 60)), (*range(1, 40), 7, 7, 7)
    first = await run.generate(prompt, max_tokens=6, ignore_eos=True)
    assert first.cached_tokens == 0
    again, forked = await asyncio.gather(
        run.generate(prompt, max_tokens=6, ignore_eos=True),
        run.generate(other, max_tokens=6, ignore_eos=True),
    )
    assert (again.cached_tokens, forked.cached_tokens) == (57, 39)
    assert again.tokens == first.tokens
    alone = await run.generate((3, *other), max_tokens=1)
    assert alone.cached_tokens == 0
    taken_over = await run.generate(prompt, first.tokens[:4], max_tokens=6, ignore_eos=True)
    assert taken_over.tokens == first.tokens[4:]
    assert taken_over.cached_tokens == len(prompt)


async def test_what_was_kept_of_a_fork_is_what_would_be_computed(make_run, run, tiny_llama):
    other = (*range(1, 40), 7, 7, 7)
    await run.generate(tuple(range(1, 60)), max_tokens=6, ignore_eos=True)
    forked = await run.generate(other, max_tokens=12, ignore_eos=True, logprobs=0)
    fresh = await make_run(MlxEngine(str(tiny_llama), slots=1, dtype="float32")).start()
    whole = await fresh.generate(other, max_tokens=12, ignore_eos=True, logprobs=0)
    await fresh.engine.close()
    assert (forked.cached_tokens, whole.cached_tokens) == (39, 0)
    assert forked.tokens == whole.tokens
    for one, same in zip(forked.logprobs, whole.logprobs, strict=True):
        assert one.logprob == pytest.approx(same.logprob, abs=1e-3)


async def test_a_batch_that_breaks_is_an_error_and_the_next_one_runs(run, monkeypatch):
    def broken():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run.engine._batcher._generator, "next", broken)
    lost = await run.generate((1, 2, 3), max_tokens=4)
    assert isinstance(lost.error, EngineError)
    assert "out of memory" in lost.error.message
    assert len((await run.generate((1, 2, 3), max_tokens=4, ignore_eos=True)).tokens) == 4


async def test_a_sequence_that_cannot_begin_is_an_error_and_those_that_run_go_on(run, monkeypatch):
    from workers.engines import mlx_batching  # noqa: PLC0415

    def broken(*_):
        raise RuntimeError("out of memory")

    running = asyncio.create_task(run.generate((1, 2, 3), max_tokens=30, ignore_eos=True))
    await asyncio.sleep(0)
    monkeypatch.setattr(mlx_batching, "score", broken)
    async with asyncio.timeout(BOUND):
        lost = await run.generate((1, 2, 3), max_tokens=4, prompt_logprobs=1)
        assert isinstance(lost.error, EngineError)
        assert "out of memory" in lost.error.message
        assert len((await running).tokens) == 30


def break_once(monkeypatch, batcher, part, *, at):
    whole, times = getattr(batcher, part), itertools.count()

    def broken(*given):
        if next(times) == at:
            raise RuntimeError("out of memory")
        return whole(*given)

    monkeypatch.setattr(batcher, part, broken)


async def test_what_breaks_in_the_middle_of_a_step_ends_all_that_run(run, monkeypatch):
    break_once(monkeypatch, run.engine._batcher, "_given", at=1)  # the second of two sequences
    two = [run.generate((1, 2, n), max_tokens=1, ignore_eos=True) for n in (3, 4)]
    async with asyncio.timeout(BOUND):
        assert all(one.error for one in await asyncio.gather(*two))
        assert len((await run.generate((1, 2, 3), max_tokens=4, ignore_eos=True)).tokens) == 4


async def test_an_abort_that_breaks_ends_all_that_run_and_not_the_engine(run, monkeypatch):
    break_once(monkeypatch, run.engine._batcher, "_remove", at=0)
    one, other = (run.add((1, 2, n), max_tokens=200, ignore_eos=True) for n in (3, 4))
    async with asyncio.timeout(BOUND):
        await run.until(lambda: run.tokens(one))
        run.engine.abort(one)
        assert (await run.end(other)).error
        assert len((await run.generate((1, 2, 3), max_tokens=4, ignore_eos=True)).tokens) == 4


async def test_an_engine_that_cannot_go_on_after_an_error_says_so_at_once(run, monkeypatch):
    def broken():
        raise RuntimeError("out of memory")

    batcher = run.engine._batcher
    monkeypatch.setattr(batcher._generator, "next", broken)
    monkeypatch.setattr(batcher, "_new_generator", broken)
    assert isinstance(run.engine, Fallible)
    async with asyncio.timeout(BOUND):
        assert (await run.generate((1, 2, 3), max_tokens=4)).error
        with pytest.raises(EngineDiedError, match="out of memory"):
            await run.engine.lost()
