"""A client finds what must never be in a stream; the audit, what must never be in Redis."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable

import pytest
from harness.audit import Audit
from harness.catalogue import Ask, ask
from harness.clients import Attempt, Client, Manner, Violation
from harness.wire import Answer

TEXT = "one two three"


def chunk(text: str = "", *, end: str | None = None, reply: str = "chatcmpl-a") -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": end}
    return data(json.dumps({"id": reply, "choices": [choice]}).encode())


def data(what: bytes) -> bytes:
    return b"data: " + what + b"\n\n"


DONE = data(b"[DONE]")


def expecting() -> Ask:
    question = ask("a question")
    question.expected = {0: (TEXT, "length")}
    return question


async def read(events: Iterable[bytes], question: Ask | None = None) -> Attempt:
    """What a client makes of a stream of these; raises Violation."""
    reader = asyncio.StreamReader()
    for event in events:
        reader.feed_data(b"%x\r\n%b\r\n" % (len(event), event))
    reader.feed_data(b"0\r\n\r\n")
    reader.feed_eof()
    attempt = Attempt("api0", began=0.0, status=200)
    answer = Answer(200, {"transfer-encoding": "chunked"}, reader)
    client = Client(dict, random.Random(1))
    await client._stream(answer, question or expecting(), Manner(), attempt)
    return attempt


async def test_a_whole_stream_is_fine():
    attempt = await read([chunk("one "), chunk("two "), chunk("three"), chunk(end="length"), DONE])
    assert (attempt.how, attempt.reply) == ("done", "chatcmpl-a")


async def test_a_stream_without_an_end_was_cut():
    assert (await read([chunk("one ")])).how == "cut"


WRONG = {
    "a gap": [chunk("one "), chunk("three"), chunk(end="length"), DONE],
    "a gap at the end": [chunk("one "), chunk("two "), chunk(end="length"), DONE],
    "a duplicate": [chunk("one "), chunk("one "), chunk("two three"), chunk(end="length"), DONE],
    "text after the end of its choice": [chunk(TEXT), chunk(end="length"), chunk(" four"), DONE],
    "text after the end": [chunk(TEXT), chunk(end="length"), DONE, chunk(" four")],
    "a second end": [chunk(TEXT), chunk(end="length"), DONE, DONE],
    "a second id": [chunk("one "), chunk("two three", reply="chatcmpl-b")],
    "another reason": [chunk(TEXT), chunk(end="stop"), DONE],
    "an end without an end of its choice": [chunk(TEXT), DONE],
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_must_not_be_in_a_stream(what):
    with pytest.raises(Violation):
        await read(WRONG[what])


@pytest.mark.parametrize("code", ["worker_lost", "no_worker", "engine_error"])
async def test_an_error_that_no_fault_explains(code):
    error = json.dumps({"error": {"code": code, "message": "It failed."}}).encode()
    with pytest.raises(Violation):
        await read([chunk("one "), data(error)])


JOB = "chatcmpl-a-0"
LINES = {
    "epoch 5 after epoch 7": [
        ("submit", JOB),
        ("dispatch", JOB, "7", "w", "submit"),
        ("submit", "other"),
        ("dispatch", "other", "5", "v", "submit"),
    ],
    "epoch 7 after epoch 7": [
        ("submit", JOB),
        ("dispatch", JOB, "7", "w", "submit"),
        ("orphan", JOB, "7", True),
    ],
    "while w holds it": [
        ("submit", JOB),
        ("dispatch", JOB, "7", "w", "submit"),
        ("dispatch", JOB, "8", "v", "resume"),
    ],
    "did not resume": [("submit", JOB), ("dispatch", JOB, "7", "w", "nobody")],
    "ends twice": [
        ("submit", JOB),
        ("dispatch", JOB, "7", "w", "submit"),
        ("end", JOB, "done", "running", "7", "w"),
        ("end", JOB, "failed", "done", "7", "w"),
    ],
    "two accepted finishes": [
        ("submit", JOB),
        ("dispatch", JOB, "7", "w", "submit"),
        ("finish", JOB, "accepted", "7", "w", "done"),
        ("finish", JOB, "accepted", "7", "w", "done"),
    ],
    "ended it under epoch 6": [
        ("submit", JOB),
        ("dispatch", JOB, "7", "w", "submit"),
        ("finish", JOB, "accepted", "6", "v", "done"),
    ],
    "dispatched after its end": [
        ("submit", JOB),
        ("end", JOB, "cancelled", "queued", "0", ""),
        ("dispatch", JOB, "7", "w", "submit"),
    ],
}


@pytest.mark.parametrize("found", LINES)
def test_what_must_not_be_in_the_audit(found):
    audit = Audit()
    for line in LINES[found]:
        audit.note(*line)
    assert [found in each for each in audit.violations] == [True]


def test_a_job_that_changes_its_worker_is_fine():
    audit = Audit()
    for line in (
        ("submit", JOB),
        ("dispatch", JOB, "7", "w", "submit"),
        ("orphan", JOB, "8", True),
        ("dispatch", JOB, "9", "v", "resume"),
        ("finish", JOB, "accepted", "9", "v", "done"),
        ("end", JOB, "done", "running", "9", "v"),
    ):
        audit.note(*line)
    assert audit.violations == []
    assert audit.open_jobs() == []
