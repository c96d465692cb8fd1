"""Jobs that answer with data: what they answer, and that the queue's promises hold for them."""

from __future__ import annotations

import asyncio
import base64
import math
from array import array

import pytest

from queueserve.errors import (
    ContextLengthExceededError,
    EngineError,
    InvalidRequestError,
    NoWorkerError,
    RequestTimeoutError,
)
from queueserve.protocol import Answered, Inputs
from workers.engines import fake
from workers.engines.fake import FakeEngine
from workers.engines.fake_tokens import BOS
from workers.engines.fake_vectors import DIMENSIONS

BOUND = 60.0  # seconds that any single wait may take, on however busy a machine
TEXTS = ("the queue runs", "the worker waits", "日本語", "")


async def answer(plane, job) -> Answered:
    """The one event that carries data; anything else of it would be a delivery in parts."""
    async with asyncio.timeout(BOUND):
        stream = await plane.owner.open(job)
        events = [event async for batch in stream for event in batch]
    answers = [event for event in events if isinstance(event, Answered)]
    assert len(answers) == 1
    assert events[-1] is answers[0]
    return answers[0]


def vector(row: str) -> array:
    return array("f", base64.b64decode(row))


def cosine(one, other) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.fixture
def ask(house):
    """Make a job that asks for data."""

    def make(kind, *items, messages=(), timeout=600.0, **inputs):
        asked = Inputs(items=items, **inputs)
        return house.job(kind=kind, inputs=asked, messages=messages, timeout=timeout)

    return make


@pytest.fixture
async def plane(house):
    return await house.plane()


async def test_a_vector_for_each_item_in_their_order(house, plane, ask):
    worker, _ = await house.worker()
    whole = await answer(plane, ask("embed", *TEXTS))
    vectors = [vector(row) for row in whole.rows]
    assert [len(v) for v in vectors] == [DIMENSIONS] * len(TEXTS)
    assert [math.hypot(*v) for v in vectors] == pytest.approx([1] * len(TEXTS))
    alone = [(await answer(plane, ask("embed", text))).rows[0] for text in TEXTS]
    assert list(whole.rows) == alone
    lengths = [len(await worker._engine.tokenizer.encode(t, add_special=True)) for t in TEXTS]
    assert whole.prompt_tokens == sum(lengths)


async def test_token_ids_are_taken_as_they_are(house, plane, ask):
    worker, _ = await house.worker()
    tokens = await worker._engine.tokenizer.encode(TEXTS[0], add_special=True)
    rows = (await answer(plane, ask("embed", tokens, TEXTS[0]))).rows
    assert rows[0] == rows[1]


async def test_a_shorter_vector_is_the_beginning_of_the_whole_one_scaled_to_length_1(
    house, plane, ask
):
    await house.worker()
    [whole] = (await answer(plane, ask("embed", "text"))).rows
    [short] = (await answer(plane, ask("embed", "text", dimensions=5))).rows
    assert math.hypot(*vector(short)) == pytest.approx(1)
    head = vector(whole)[:5]
    assert list(vector(short)) == pytest.approx([x / math.hypot(*head) for x in head], rel=1e-5)
    with pytest.raises(InvalidRequestError, match="16 dimensions") as error:
        await answer(plane, ask("embed", "text", dimensions=17))
    assert error.value.param == "dimensions"


async def test_what_is_too_long_is_an_error_that_names_it_or_is_cut(house, plane, ask):
    await house.worker(FakeEngine(tick=0, context_length=4))
    with pytest.raises(ContextLengthExceededError, match=r"documents\[8\] has 6") as error:
        await answer(plane, ask("embed", "a", "abcde", first=7, param="documents"))
    assert error.value.param == "documents"
    cut = await answer(plane, ask("embed", "abcde", truncate=-1))
    assert cut.rows == (await answer(plane, ask("embed", "abc"))).rows  # the BOS token is kept
    shorter = await answer(plane, ask("embed", "abcde", truncate=2))
    assert shorter.rows == (await answer(plane, ask("embed", "a"))).rows
    assert shorter.prompt_tokens == 2


async def test_a_worker_may_cut_whatever_is_too_long(house, plane, ask):
    await house.worker(FakeEngine(tick=0, context_length=4), truncate=True)
    assert (await answer(plane, ask("embed", "abcde"))).prompt_tokens == 4


async def test_a_token_that_the_model_does_not_have_is_refused(house, plane, ask):
    await house.worker()
    with pytest.raises(InvalidRequestError, match="no token 99999"):
        await answer(plane, ask("embed", (BOS, 99999)))


async def test_no_tokens_are_no_input(house, plane, ask):
    await house.worker()
    with pytest.raises(InvalidRequestError, match=r"input\[1\] is empty"):
        await answer(plane, ask("embed", (BOS,), ()))


async def test_scores_are_cosines_of_one_query_or_of_pairs(house, plane, ask):
    await house.worker()
    vectors = [vector(row) for row in (await answer(plane, ask("embed", *TEXTS))).rows]
    one = await answer(plane, ask("score", *TEXTS, queries=TEXTS[:1]))
    assert list(one.rows) == pytest.approx([cosine(vectors[0], v) for v in vectors])
    assert one.rows[0] == pytest.approx(1)
    pairs = await answer(plane, ask("score", *TEXTS[:2], queries=TEXTS[2:]))
    expected = [cosine(vectors[2], vectors[0]), cosine(vectors[3], vectors[1])]
    assert list(pairs.rows) == pytest.approx(expected)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["embed", "score"])
async def test_what_is_no_number_is_an_error_and_no_answer(
    house, plane, ask, monkeypatch, *, kind, number
):
    monkeypatch.setattr(fake, "vector_of", lambda _: array("f", [0.5, number, 0.5]))
    await house.worker()
    queries = ("the queue",) if kind == "score" else ()
    with pytest.raises(EngineError, match="is no number"):
        await answer(plane, ask(kind, "the worker", queries=queries))


async def test_tokens_and_back(house, plane, ask):
    await house.worker()
    tokens = await answer(plane, ask("tokenize", *TEXTS))
    assert tokens.rows[0][0] == BOS
    bare = await answer(plane, ask("tokenize", *TEXTS, add_special=False))
    assert [row[1:] for row in tokens.rows] == list(bare.rows)
    assert tokens.prompt_tokens == bare.prompt_tokens + len(TEXTS)
    assert (await answer(plane, ask("detokenize", *map(tuple, bare.rows)))).rows == TEXTS
    with pytest.raises(InvalidRequestError, match="token id"):
        await answer(plane, ask("detokenize", (99999,)))


async def test_messages_become_the_tokens_of_their_prompt(house, plane, ask):
    await house.worker()
    job = ask("tokenize", messages=({"role": "user", "content": "hello"},))
    [tokens] = (await answer(plane, job)).rows
    [text] = (await answer(plane, ask("detokenize", tuple(tokens)))).rows
    assert "hello" in text
    assert "assistant" in text


async def test_a_model_says_what_it_can_do_and_refuses_the_rest(house, plane, ask):
    engine = FakeEngine()
    object.__setattr__(engine.info, "tasks", ("chat", "completion"))
    await house.worker(engine)
    card = await plane.directory.find("m")
    assert card.tasks == ("chat", "completion", "detokenize", "tokenize")
    with pytest.raises(InvalidRequestError, match="embed: it takes chat, completion"):
        await answer(plane, ask("embed", "text"))


# What the queue promises


async def test_a_worker_that_leaves_does_not_show(house, plane, ask):
    _, stop = await house.worker(FakeEngine(tick=30))
    stream = await plane.owner.open(ask("embed", *TEXTS))
    await anext(stream)  # it runs, on the one worker that is there
    await house.worker(FakeEngine(tick=0))
    stop.set()
    async with asyncio.timeout(BOUND):
        events = [event async for batch in stream for event in batch]
    assert [len(event.rows) for event in events if isinstance(event, Answered)] == [len(TEXTS)]


@pytest.mark.usefixtures("soon_missed")
async def test_a_lost_answer_comes_from_the_stored_result(house, plane, ask):
    worker, _ = await house.worker()
    publish, lost = worker._publisher.publish, []

    def lose(api, event):
        if isinstance(event, Answered):
            lost.append(event)
        else:
            publish(api, event)

    worker._publisher.publish = lose
    got = await answer(plane, ask("embed", *TEXTS))
    assert got.rows == lost[0].rows
    assert got.prompt_tokens == lost[0].prompt_tokens


async def test_an_answer_is_kept_for_half_a_minute_not_for_two(house, plane, ask):
    await house.worker()
    job = ask("embed", "text")
    await answer(plane, job)
    await house.until(lambda: house.redis.hexists(f"qs:{{m}}:job:{job.id}", "result"), equal=1)
    assert 0 < await house.redis.ttl(f"qs:{{m}}:job:{job.id}") <= 30


async def test_a_reader_that_leaves_stops_the_work_and_frees_the_slot(house, plane, ask):
    engine = FakeEngine(tick=0.02, slots=1)
    worker, _ = await house.worker(engine)
    stream = await plane.owner.open(ask("embed", *(["text"] * 5000)))
    await anext(stream)
    await stream.aclose()
    await house.until(lambda: asyncio.sleep(0, len(worker.runner.running)), equal=0)
    steps = engine.steps
    assert steps < 1000
    assert (await answer(plane, ask("embed", "text"))).rows
    assert engine.steps == steps + 1


async def test_deadlines_hold(house, plane, ask):
    await house.worker(FakeEngine(tick=30))
    with pytest.raises(RequestTimeoutError):
        await answer(plane, ask("embed", "text", timeout=0.3))


async def test_without_a_worker_it_waits_in_the_queue(house, plane, ask):
    job = house.job(kind="embed", inputs=Inputs(items=("a",)), messages=(), queue_timeout=0.2)
    with pytest.raises(NoWorkerError):
        await answer(plane, job)


async def test_a_full_engine_does_not_hold_up_the_tokenizer(house, plane, ask):
    await house.worker(FakeEngine(tick=0.05, slots=1))
    busy = await plane.owner.open(house.job(sampling={"max_tokens": 4000}))
    await anext(busy)
    waiting = await plane.owner.open(house.job())
    for _ in range(20):
        assert (await answer(plane, ask("tokenize", "text"))).rows
    assert not busy.ended
    assert waiting.started is None
    await busy.aclose()
    await waiting.aclose()
