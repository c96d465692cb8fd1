"""A sequence that nobody wants any more frees its slot."""

import asyncio
import time

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_aborted_sequence_gives_nothing_more_and_frees_its_slot(run, story):
    slots = run.engine.info.slots
    long = {"ignore_eos": True}  # to the end of the context
    running = [run.add(story, **long) for _ in range(slots)]
    await run.until(lambda: all(map(run.tokens, running)))
    began = time.monotonic()
    waiting = run.add(story, max_tokens=3, ignore_eos=True)
    await run.until(lambda: all(len(run.tokens(name)) >= 4 for name in running))
    assert run.outputs(waiting) == []  # all slots are taken
    # What comes meanwhile is on its way, and must not arrive: some tokens, and never the last.
    time.sleep(min(0.3, 10 * (time.monotonic() - began)))  # noqa: ASYNC251
    run.engine.abort(running[0])
    given = run.outputs(running[0])
    assert len((await run.end(waiting)).tokens) == 3
    assert run.outputs(running[0]) == given
    for name in running:
        run.engine.abort(name)
    assert not any(map(run.ended, running))


async def test_an_abort_while_a_prompt_is_read_frees_its_slot(run, story):
    room = run.engine.info.context_length - 8
    prompt = (story * room)[:room]
    for delay in (0.0, 0.01, 0.05):
        names = [run.add(prompt, max_tokens=4) for _ in range(run.engine.info.slots)]
        await asyncio.sleep(delay)
        for name in names:
            run.engine.abort(name)
        given = list(map(run.outputs, names))
        after = await run.generate(story, max_tokens=2, ignore_eos=True)
        assert len(after.tokens) == 2
        assert list(map(run.outputs, names)) == given


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
