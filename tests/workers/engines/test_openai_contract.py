"""The engines' contract as far as an API of text can keep it, before llama.cpp's own server."""

from __future__ import annotations

import asyncio
import itertools
import json

import jsonschema
import pytest
import pytest_asyncio

from queueserve.errors import ContextLengthExceededError, InvalidRequestError, WorkerLostError
from queueserve.protocol import Constraint, Job, Sampling
from workers.engines.base import Sequence
from workers.engines.openai import OpenAIEngine

pytestmark = pytest.mark.asyncio(loop_scope="session")

BOUND = 60.0
STORY = "Once upon a time there was a"
LONG = {"max_tokens": 2000, "ignore_eos": True}
PAIR = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}, "of": {"enum": ["a", "b"]}},
    "required": ["yes", "of"],
    "additionalProperties": False,
}


class Relayed:
    """A started engine, what it gives, and the text of it."""

    def __init__(self, server):
        self.engine = OpenAIEngine(server.model, api_base=server.base)
        self.calls = []
        self.texts = {}
        self._ids = itertools.count()
        self._moved = asyncio.Event()

    def _sink(self, outputs):
        self.calls += outputs
        self._moved.set()
        for output in outputs:
            pieces = map(self.engine.tokenizer.detokenizer().feed, output.tokens)
            self.texts[output.id] = self.texts.get(output.id, "") + "".join(pieces)

    async def start(self):
        await self.engine.start(self._sink)
        return self

    def add(self, prompt=STORY, *, name=None, constraint=None, generated=(), chat=(), **sampling):
        name = name or f"sequence-{next(self._ids)}"
        own = Sampling(**({"temperature": 0.0} | sampling))
        job = Job(
            id=name,
            pool="m",
            model="m",
            kind="chat" if chat else "completion",
            messages=chat,
            prompt=prompt,
            sampling=own,
            constraint=constraint,
        )
        self.engine.add(Sequence(id=name, prompt=(), generated=generated, sampling=own, job=job))
        return name

    def outputs(self, name):
        return [output for output in self.calls if output.id == name]

    def count(self, name):
        return sum(len(output.tokens) for output in self.outputs(name))

    async def until(self, condition):
        async with asyncio.timeout(BOUND):
            while not condition():
                self._moved.clear()
                await self._moved.wait()

    async def end(self, name):
        await self.until(lambda: any(one.finish or one.error for one in self.outputs(name)))
        return self.outputs(name)[-1]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def run(llama_cpp_server):
    relayed = await Relayed(llama_cpp_server).start()
    yield relayed
    await relayed.engine.close()


async def test_it_says_what_it_is(run):
    info = run.engine.info
    assert (info.engine, info.version) == ("openai", "llamacpp")
    assert (info.slots, info.context_length, info.relays) == (4, 4096, True)


async def test_tokens_come_as_they_are_made_and_the_end_once_and_last(run):
    name = run.add(max_tokens=7, ignore_eos=True)
    last = await run.end(name)
    outputs = run.outputs(name)
    assert last.finish == "length"
    assert run.count(name) == 7
    assert [output.finish for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert len(outputs) > 3
    await asyncio.sleep(0.05)
    assert run.outputs(name) == outputs


async def test_the_prompts_tokens_are_told_at_the_end(run):
    assert (await run.end(run.add(max_tokens=2))).prompt_tokens == 7


async def test_the_most_likely_tokens_and_seeded_draws_repeat(run):
    for own in ({}, {"temperature": 1.0, "seed": 5}):
        names = []
        for _ in range(2):  # one after the other: other batches sum in another order
            names.append(run.add(max_tokens=12, ignore_eos=True, **own))
            await run.end(names[-1])
        first, second = (run.texts[name] for name in names)
        assert first == second
    other = run.add(max_tokens=12, ignore_eos=True, temperature=1.0, seed=6)
    await run.end(other)
    assert run.texts[other] != first


async def test_a_bias_forces_and_bans(run):
    plain = run.add(max_tokens=1)
    await run.end(plain)
    banned = run.add(max_tokens=1, logit_bias={253: -100.0, 345: -100.0, 1165: -100.0})
    forced = run.add(max_tokens=3, logit_bias={300: 100.0}, ignore_eos=True)
    await run.end(banned)
    await run.end(forced)
    assert len(set(run.texts[forced].split())) == 1
    assert run.texts[forced] != run.texts[plain]


async def test_an_aborted_sequence_gives_nothing_more_and_frees_its_slot(run):
    running = [run.add(**LONG) for _ in range(run.engine.info.slots)]
    await run.until(lambda: all(map(run.count, running)))
    run.engine.abort(running[0])
    given = run.outputs(running[0])
    assert (await run.end(run.add(max_tokens=3, ignore_eos=True))).finish == "length"
    assert run.outputs(running[0]) == given
    for name in running[1:]:
        assert not run.outputs(name)[-1].finish
        run.engine.abort(name)


async def test_the_name_of_an_aborted_sequence_can_be_used_again(run):
    first = run.add(**LONG)
    await run.until(lambda: run.count(first))
    run.engine.abort(first)
    before = run.count(first)
    run.add(max_tokens=3, ignore_eos=True, name=first)
    await run.end(first)
    assert run.count(first) - before == 3


async def test_aborting_what_is_not_there_does_nothing(run):
    run.engine.abort("never seen")
    name = run.add(max_tokens=2)
    await run.end(name)
    run.engine.abort(name)
    assert (await run.end(run.add(max_tokens=2, ignore_eos=True))).finish == "length"


async def test_what_cannot_run_is_refused_and_others_go_on(run):
    other = run.add(max_tokens=20, ignore_eos=True)
    long = await run.end(run.add("word " * 5000, max_tokens=1))
    assert isinstance(long.error, (ContextLengthExceededError, InvalidRequestError))
    unbound = await run.end(run.add(constraint=Constraint("regex", "[ab]"), max_tokens=2))
    assert isinstance(unbound.error, InvalidRequestError)
    plain = await run.end(run.add(constraint=Constraint("json_object"), max_tokens=2))
    assert isinstance(plain.error, InvalidRequestError)  # it would go unbound
    begun = await run.end(run.add(generated=(0,), max_tokens=4))
    assert isinstance(begun.error, WorkerLostError)
    assert (await run.end(other)).finish == "length"
    assert run.count(other) == 20


async def test_an_output_satisfies_its_schema(run):
    constraint = Constraint("json_schema", json.dumps(PAIR))
    own = {"max_tokens": 200, "temperature": 1.0, "seed": 3}
    name = run.add(constraint=constraint, chat=({"role": "user", "content": "Yes?"},), **own)
    assert (await run.end(name)).finish == "stop"
    jsonschema.validate(json.loads(run.texts[name]), PAIR)


async def test_steps_grow_while_something_runs(run):
    before = run.engine.steps
    await run.end(run.add(max_tokens=6, ignore_eos=True))
    assert run.engine.steps - before >= 6
