"""Faults on demand: each hurts what its prompt says, and nothing else."""

from __future__ import annotations

import asyncio

from queueserve.errors import EngineError
from workers.engines.fake import FakeEngine
from workers.engines.fake_faults import FaultyEngine
from workers.engines.fake_tokens import VOCABULARY

PLAIN = "hello"
TOKENS = 30


def tokens_of(text):
    return tuple(VOCABULARY.index(bytes([byte])) for byte in text.encode())


async def start(make_run, engine=FaultyEngine):
    return await make_run(engine(tick=0.001)).start()


def add(run, text):
    return run.add(prompt=tokens_of(text), max_tokens=TOKENS, ignore_eos=True)


async def test_without_a_fault_it_is_the_fake_engine(make_run):
    faulty, plain = await start(make_run), await start(make_run, FakeEngine)
    assert (await faulty.end(add(faulty, PLAIN))) == (await plain.end(add(plain, PLAIN)))


async def test_out_of_memory_fails_its_sequence_alone(make_run):
    run = await start(make_run)
    bad, good = add(run, "[[oom 5]]"), add(run, PLAIN)
    ended = await run.end(bad)
    assert isinstance(ended.error, EngineError)
    assert len(ended.tokens) == 4
    assert len((await run.end(good)).tokens) == TOKENS


async def test_a_crash_comes_at_the_token_whoever_made_the_first_ones(make_run, monkeypatch):
    killed = []
    monkeypatch.setattr("os.kill", lambda *args: killed.append(args))
    run = await start(make_run)
    first = await run.end(add(run, "[[crash 31]]"))
    assert len(first.tokens) == TOKENS
    assert len(killed) == 1  # at its end, as it never came so far
    await run.end(add(run, "[[crash 5]]"))
    assert len(killed) == 2


async def test_a_stall_stops_every_sequence_until_it_is_over(make_run):
    plain = await start(make_run)
    whole = await plain.end(add(plain, PLAIN))
    run = await start(make_run)
    other, stalled = add(run, PLAIN), add(run, "[[stall 5 0.2]]")
    began = asyncio.get_running_loop().time()
    assert await run.end(other) == whole
    assert len((await run.end(stalled)).tokens) == TOKENS
    assert asyncio.get_running_loop().time() - began > 0.2


async def test_a_stall_without_an_end_has_none(make_run):
    run = await start(make_run)
    name = add(run, "[[stall 5]]")
    await run.until(lambda: len(run.tokens(name)) == 5)
    steps = run.engine.steps
    add(run, PLAIN)  # nothing that comes later sets it going again
    await asyncio.sleep(0.05)
    assert run.engine.steps == steps
    await run.engine.close()
