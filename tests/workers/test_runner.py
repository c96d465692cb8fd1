"""A job that goes wrong in the worker: it alone fails, and nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import replace

import pytest

from queueserve.encoding import decode_events, encode_events
from queueserve.errors import EngineError, InvalidRequestError
from queueserve.protocol import LOWEST, Constraint, Job, TokenLogprob
from queueserve.queue.consumer import Assignment
from workers.engines.base import Output
from workers.engines.fake import FakeEngine
from workers.engines.fake_tokens import WORDS, FakeTokenizer
from workers.run import Run
from workers.speed import SpeedMeter


class Refusing(FakeEngine):
    def add(self, sequence):
        raise RuntimeError(sequence.id)


async def test_an_engine_that_raises_on_a_job_fails_it(house):
    worker, _ = await house.worker(Refusing())
    plane = await house.plane()
    stream = await plane.owner.open(house.job())
    with pytest.raises(EngineError):
        await anext(stream)
    assert worker.runner.running == {}
    assert worker.runner._runs == {}


class Listening(FakeEngine):
    """Notes what it is asked for."""

    def __init__(self):
        super().__init__(tick=0)
        self.asked = []

    def add(self, sequence):
        self.asked.append(sequence)
        super().add(sequence)


async def test_an_engine_is_told_what_its_output_must_match(house):
    engine = Listening()
    await house.worker(engine)
    plane = await house.plane()
    constraint = Constraint("choice", '["yes","no"]', param="guided_choice")
    await anext(await plane.owner.open(house.job(constraint=None)))
    with contextlib.suppress(InvalidRequestError):
        await anext(await plane.owner.open(house.job(constraint=constraint)))
    assert [sequence.constraint for sequence in engine.asked] == [None, constraint]


async def test_a_prompt_is_not_scored_by_an_engine_that_cannot(house):
    class Unable(FakeEngine):
        def __init__(self):
            super().__init__(tick=0)
            self.info = replace(self.info, scores_prompts=False)

    await house.worker(Unable())
    plane = await house.plane()
    stream = await plane.owner.open(house.job(sampling={"prompt_logprobs": 1}))
    with pytest.raises(InvalidRequestError) as caught:
        await anext(stream)
    assert caught.value.param == "echo"


class Breaking(FakeTokenizer):
    """Its first detokenizer breaks at the tenth token."""

    broken = False

    def detokenizer(self):
        real = super().detokenizer()
        return real if self.broken else self._breaking(real)

    def _breaking(self, real):
        self.broken = True
        fed = 0

        class Detokenizer:
            def feed(self, token):
                nonlocal fed
                fed += 1
                if fed == 10:
                    raise ValueError(token)
                return real.feed(token)

            def flush(self):
                return real.flush()

        return Detokenizer()


async def test_one_bad_sequence_does_not_disturb_the_others(house, read):
    engine = FakeEngine(tick=0.01)
    engine.tokenizer = Breaking()
    await house.worker(engine)
    plane = await house.plane()
    bad = await plane.owner.open(house.job())
    await anext(bad)
    good = [await plane.owner.open(house.job()) for _ in range(3)]
    answers = await asyncio.gather(*map(read, good))
    assert [len(tokens) for _, tokens, _ in answers] == [40] * 3
    with pytest.raises(EngineError, match="could not go on"):
        async for _ in bad:
            pass
    assert (await read(await plane.owner.open(house.job())))[:2] == answers[0][:2]


def new_run():
    return Run(
        Assignment(Job(id="j", pool="m", model="m", kind="chat"), 1, "api", None, cancelled=False),
        None,
        prompt=(1,),
        prompt_hash="",
        detokenizer=FakeTokenizer().detokenizer(),
        piece=FakeTokenizer().piece,
    )


@pytest.mark.parametrize("value", [-math.inf, math.nan, -1e9])
def test_a_token_that_cannot_come_has_a_finite_logprob(value):
    run = new_run()
    run.feed((72,), (TokenLogprob(value, ((73, value),)),))
    (read,) = decode_events(encode_events([run.delta()]))
    assert read.logprobs == (TokenLogprob(LOWEST, ((73, LOWEST),), (b"H", b"I")),)


def test_the_last_token_can_be_sent_again_after_all_of_them_were():
    run = new_run()
    run.feed(tuple(WORDS[:4]), None)
    last = run.since(3)
    assert run.since(0).text.endswith(last.text)
    assert run.since(3) == last


async def test_answers_of_one_token_do_not_make_a_worker_look_fast(house, read):
    worker, _ = await house.worker()
    now = 0.0
    worker.runner.meter = meter = SpeedMeter(lambda: now)
    plane = await house.plane()
    for _ in range(3):
        await read(await plane.owner.open(house.job(sampling={"max_tokens": 1})))
    assert meter.tokens == 0
    await read(await plane.owner.open(house.job()))
    assert meter.tokens == 39


class Held(FakeEngine):
    """Steps only when the test says so."""

    def __init__(self):
        super().__init__()
        self.added = []

    def add(self, sequence):
        self.added.append(sequence.id)


async def test_of_a_step_first_tokens_leave_before_all_others(house):
    engine = Held()
    worker, _ = await house.worker(engine)
    plane = await house.plane()
    streams = [await plane.owner.open(house.job()) for _ in range(3)]

    async def added():
        return len(engine.added)

    await house.until(added, equal=3)
    old, new, older = engine.added
    worker.runner.outputs([Output(old, (WORDS[0],)), Output(older, (WORDS[0],))])
    sent = []
    publish = worker.runner._publisher.publish
    worker.runner._publisher.publish = lambda api, event: sent.append(event) or publish(api, event)
    worker.runner.outputs([Output(name, (WORDS[1],)) for name in (older, old, new)])
    kinds = [(event.job, type(event).__name__) for event in sent]
    job = {name: name.partition(":")[0] for name in engine.added}
    assert kinds == [
        (job[new], "Started"),
        (job[new], "Delta"),
        (job[older], "Delta"),
        (job[old], "Delta"),
    ]
    for stream in streams:
        await stream.aclose()
