"""What a reader gets of a job, whatever the channel does: no token twice, none missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queueserve.errors import ContextLengthExceededError, RequestTimeoutError, WorkerLostError
from queueserve.protocol import (
    Answer,
    Answered,
    Delta,
    Failed,
    Finished,
    Inputs,
    Job,
    Orphaned,
    Progress,
    Result,
    Started,
)
from queueserve.queue.producer import Standing
from queueserve.queue.stream import JobStream, Need

JOB = Job(id="j", pool="m", model="m", kind="chat")
TEXTS = ["a", "bc", "", "d", "", "éf", "g", "", "", "h"]


async def nothing(_stream):
    pass


def stream(epoch: int = 1) -> JobStream:
    """A stream whose job runs under this epoch, as Redis says; 0: it waits."""
    reader = JobStream(JOB, nothing)
    reader.placed("running" if epoch else "queued", epoch, f"w{epoch}" if epoch else "")
    return reader


def started(epoch=1, seq=0, prompt_hash="p"):
    return Started("j", epoch, seq, 5, 0, prompt_hash, "f", f"w{epoch}")


def delta(start, end, epoch=1):
    pos = len("".join(TEXTS[:start]))
    return Delta("j", epoch, start, pos, "".join(TEXTS[start:end]), tuple(range(start, end)))


def finished(epoch=1, text="!"):
    return Finished("j", epoch, len(TEXTS), len("".join(TEXTS)), text, "stop")


async def read(stream: JobStream) -> tuple[str, list[int]]:
    text, tokens = "", []
    assert stream.ended  # or it would be waited for
    async for events in stream:
        for event in events:
            if isinstance(event, Delta):
                assert event.pos == len(text)
                assert event.seq == len(tokens)
                text += event.text
                tokens += event.tokens
            elif isinstance(event, Finished):
                assert event.pos == len(text)
                text += event.text
    return text, tokens


WHOLE = ("".join(TEXTS) + "!", list(range(len(TEXTS))))


async def test_events_in_order_give_the_whole_output():
    reader = stream()
    for event in [started(), delta(0, 4), delta(4, 10), finished()]:
        assert reader.accept(event) is Need.NOTHING
    assert await read(reader) == WHOLE


async def test_a_gap_is_asked_for_and_filled():
    reader = stream()
    reader.accept(started())
    reader.accept(delta(0, 2))
    assert reader.accept(delta(3, 5)) is Need.RESYNC
    assert reader.accept(Progress("j", 1, 5, 5)) is Need.RESYNC
    assert reader.accept(finished()) is Need.RESYNC
    reader.accept(started(seq=5))
    reader.accept(delta(2, 10))
    reader.accept(finished())
    assert await read(reader) == WHOLE


async def test_a_lost_start_is_asked_for():
    assert stream().accept(delta(0, 1)) is Need.RESYNC


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 10))))
async def test_overlaps_are_trimmed_at_any_cut(cuts):
    reader = stream()
    reader.accept(started())
    have = 0
    for back, length in [*cuts, (0, 10)]:
        start = max(0, have - back)
        end = min(start + length, len(TEXTS))
        assert reader.accept(delta(start, end)) is Need.NOTHING
        have = max(have, end)
    reader.accept(finished())
    assert await read(reader) == WHOLE


async def test_after_an_orphan_the_old_worker_is_not_heard_and_the_new_one_goes_on():
    reader = stream()
    reader.accept(started())
    reader.accept(delta(0, 3))
    assert reader.accept(Orphaned("j", 2)) is Need.PROOF
    assert reader.placed("orphaned", 2, "") is Need.RESUME
    assert reader.parked == 2
    assert reader.continuation.tokens == (0, 1, 2)
    assert reader.continuation.chars == 3
    assert reader.accept(delta(3, 6)) is Need.NOTHING  # the zombie, under its old epoch
    assert reader.continuation.tokens == (0, 1, 2)
    assert reader.accept(started(epoch=3, seq=3)) is Need.PROOF
    assert reader.placed("running", 3, "w3") is Need.NOTHING
    reader.accept(delta(3, 10, epoch=3))
    reader.accept(finished(epoch=3))
    assert await read(reader) == WHOLE


async def test_another_output_for_tokens_already_sent_is_an_error_not_a_mixture():
    reader = stream()
    reader.accept(started())
    reader.accept(delta(0, 3))
    reader.placed("running", 3, "w3")
    reader.accept(started(epoch=3))
    reader.accept(Delta("j", 3, 0, 0, "xyz", (0, 9, 9, 9)))
    with pytest.raises(WorkerLostError):
        await read(reader)


async def test_another_prompt_on_the_next_worker_is_an_error():
    reader = stream()
    reader.accept(started())
    reader.placed("running", 3, "w3")
    reader.accept(started(epoch=3, prompt_hash="other"))
    with pytest.raises(WorkerLostError):
        await read(reader)


# Who may say something: the worker that holds the job, as Redis says


async def test_an_event_that_comes_before_the_answer_to_submit_waits_for_it():
    reader = JobStream(JOB, nothing)
    for event in [started(), delta(0, 10), finished()]:
        assert reader.accept(event) is Need.NOTHING
    assert reader.started is None
    assert reader.placed("running", 1, "w1") is Need.NOTHING
    assert await read(reader) == WHOLE


async def test_a_newer_epoch_counts_only_when_redis_confirms_it():
    reader = stream(0)
    forged = Delta("j", 99, 0, 0, "forged", (7,))
    for event in [started(99), forged, started(5), delta(0, 10, epoch=5), finished(5)]:
        assert reader.accept(event) is Need.PROOF
    assert (reader.started, reader.tokens) == (None, [])
    assert reader.placed("running", 5, "w5") is Need.NOTHING
    assert await read(reader) == WHOLE


async def test_a_forged_epoch_does_not_shut_the_real_worker_out():
    reader = stream()
    reader.accept(started())
    reader.accept(delta(0, 3))
    for event in [Orphaned("j", 10**15), started(10**15), Failed("j", 10**15, "cancelled", "")]:
        assert reader.accept(event) is Need.PROOF
    assert reader.placed("running", 1, "w1") is Need.NOTHING
    reader.accept(delta(3, 10))
    reader.accept(finished())
    assert await read(reader) == WHOLE


async def test_the_start_on_a_worker_that_does_not_hold_the_job_is_dropped():
    reader = stream()
    assert reader.accept(Started("j", 1, 0, 5, 0, "p", "f", "somebody")) is Need.NOTHING
    assert reader.started is None
    assert reader.accept(delta(0, 3)) is Need.RESYNC


async def test_a_failure_of_a_job_that_nobody_runs_is_asked_for_in_redis():
    assert stream(0).accept(Failed("j", 0, "queue_timeout", "late")) is Need.RESYNC


async def test_what_nobody_confirms_is_kept_up_to_a_bound():
    reader = stream(0)
    for _ in range(1000):
        reader.accept(delta(0, 1, epoch=9))
    assert len(reader._unproven) == 256
    reader.placed("queued", 0, "")
    assert reader._unproven == []


async def test_a_word_from_redis_that_is_late_changes_nothing():
    reader = stream(5)
    assert reader.placed("running", 3, "w3") is Need.NOTHING
    assert (reader.epoch, reader.worker) == (5, "w5")


async def test_a_failure_comes_after_what_was_delivered():
    reader = stream()
    reader.accept(started())
    reader.accept(delta(0, 2))
    reader.accept(Failed("j", 1, "request_timeout", "too long"))
    first = await anext(reader)
    assert [type(event) for event in first] == [Started, Delta]
    with pytest.raises(RequestTimeoutError, match="too long"):
        await anext(reader)


async def test_a_failure_keeps_its_code_and_param():
    reader = stream()
    reader.accept(Failed("j", 1, "context_length_exceeded", "m", "messages"))
    with pytest.raises(ContextLengthExceededError) as error:
        await anext(reader)
    assert error.value.param == "messages"


def standing(state, *, epoch=1, result=None, error=None):
    return Standing(False, state, epoch, "w1", 0, result, error)


@pytest.mark.parametrize("have", range(len(TEXTS) + 1))
async def test_a_lost_tail_comes_from_the_stored_result(have):
    result = Result(WHOLE[0], tuple(WHOLE[1]), "stop", 5, 0, fingerprint="engine 1")
    reader = stream()
    if have:
        reader.accept(started())
        reader.accept(delta(0, have))
    assert reader.stand(standing("done", result=result)) is Need.NOTHING
    assert have or reader.started.fingerprint == "engine 1"
    assert await read(reader) == WHOLE


async def test_what_redis_says_decides_after_a_silence():
    assert stream().stand(standing("running")) is Need.RESYNC
    assert stream().stand(standing("orphaned", epoch=4)) is Need.RESUME
    assert stream().stand(standing("queued")) is Need.NOTHING
    failed = stream()
    failed.stand(standing("expired", error=RequestTimeoutError("late")))
    with pytest.raises(RequestTimeoutError):
        await anext(failed)


# Jobs that answer with data

DATA = Job(id="j", pool="m", model="m", kind="embed", inputs=Inputs(items=("a", "b")))


def data_stream() -> JobStream:
    reader = JobStream(DATA, nothing)
    reader.placed("running", 1, "w1")
    return reader


async def test_an_answer_ends_the_job_whatever_came_before():
    for before in ([], [started()], [started(), Progress("j", 1, 0, 0)]):
        reader = data_stream()
        assert [reader.accept(event) for event in before] == [Need.NOTHING] * len(before)
        answered = Answered("j", 1, ("AAAA", "BBBB"), 7)
        assert reader.accept(answered) is Need.NOTHING
        assert reader.accept(Answered("j", 1, ("again",), 7)) is Need.NOTHING
        assert [event async for batch in reader for event in batch] == [
            *(event for event in before if isinstance(event, Started)),
            answered,
        ]


async def test_an_orphan_that_answers_with_data_starts_over():
    reader = data_stream()
    reader.accept(started())
    assert reader.accept(Orphaned("j", 2)) is Need.PROOF
    assert reader.placed("orphaned", 2, "") is Need.RESUME
    assert reader.continuation is None
    assert reader.accept(Answered("j", 1, ("zombie",), 7)) is Need.NOTHING
    assert not reader.ended
    reader.placed("running", 3, "w3")
    reader.accept(Answered("j", 3, ("new",), 7))
    assert reader.ended


async def test_a_lost_answer_comes_from_the_stored_result():
    reader = data_stream()
    reader.accept(started())
    assert reader.stand(standing("done", result=Answer(("AAAA",), 7))) is Need.NOTHING
    events = [event async for batch in reader for event in batch]
    assert events[-1] == Answered("j", 1, ("AAAA",), 7)
