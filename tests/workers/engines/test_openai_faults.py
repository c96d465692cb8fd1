"""Servers that misbehave: whatever they send, a job ends, and their health is told."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from queueserve.errors import EngineError
from queueserve.protocol import Constraint, Job, Sampling
from workers.adapters import EngineOptions, ModelSource, make_engine
from workers.engines import openai, openai_health
from workers.engines.base import Sequence
from workers.engines.openai import OpenAIEngine

BOUND = 20.0
LISTED = json.dumps({"data": [{"id": "m", "max_model_len": 100}]})
SAID = {"choices": [{"delta": {"content": "No."}, "finish_reason": "stop"}]}
MUST_CALL = Constraint("json_schema", "{}", "tool_choice")


class Scripted:
    """A server by hand: it sends `list` to a GET, and `answer` to a POST."""

    def __init__(self):
        self.list = (200, LISTED)
        self.answer = ""
        self.asked = 0  # times that an answer was
        self.stays = False  # the connection, after an answer
        self.gone = asyncio.Event()  # whoever asked has closed a connection that stayed
        self.trickles = False  # its list
        self.base = ""
        self.connections = set()

    async def serve(self, reader, writer):
        self.connections.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            asked = head.startswith("post")
            self.asked += asked
            if asked:
                await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
            status, body = (200, self.answer) if asked else self.list[:2]
            more = "" if asked else "".join(f"{line}\r\n" for line in self.list[2:])
            writer.write(f"HTTP/1.1 {status} x\r\nConnection: close\r\n{more}\r\n{body}".encode())
            await writer.drain()
            while self.trickles and not asked:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
            if asked and self.stays:
                await reader.read()
                self.gone.set()
        writer.close()


@pytest.fixture
async def server(monkeypatch):
    monkeypatch.setattr(openai_health, "_EVERY", 0.02)
    made = Scripted()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.base = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    yield made
    listening.close()
    async with asyncio.timeout(BOUND):
        await asyncio.gather(*made.connections)


@pytest.fixture
async def engine(server):
    made = OpenAIEngine("m", api_base=server.base, slots=1)
    yield made
    await made.close()


def events(*of):
    return "".join(f"data: {json.dumps(event)}\n\n" for event in of) + "data: [DONE]\n\n"


async def outcome(engine, **fields):
    """All that one sequence gives."""
    outputs, over = [], asyncio.Event()

    def sink(given):
        outputs.extend(given)
        if given[-1].finish or given[-1].error:
            over.set()

    await engine.start(sink)
    job = Job(
        id="j", pool="m", model="m", kind="chat", messages=({"role": "user"},), timeout=60, **fields
    )
    engine.add(Sequence(id="j:1", prompt=(), sampling=Sampling(), job=job))
    async with asyncio.timeout(BOUND):
        await over.wait()
    return outputs


async def test_a_call_that_must_come_and_does_not_ends_the_job(server, engine):
    server.answer = events(SAID)
    [*_, last] = await outcome(engine, constraint=MUST_CALL)
    assert isinstance(last.error, EngineError)
    assert "made no call" in last.error.message


@pytest.mark.parametrize(
    "usage", ["much", {"prompt_tokens": "7", "completion_tokens": 2.5}, {"prompt_tokens": -1}]
)
async def test_a_usage_that_is_none_counts_as_none(server, engine, usage):
    server.answer = events(SAID, {"choices": [], "usage": usage})
    outputs = await outcome(engine)
    assert (outputs[-1].finish, outputs[-1].prompt_tokens) == ("stop", None)
    assert sum(len(output.tokens) for output in outputs) == 1


async def test_a_connection_that_stays_open_after_an_answer_is_closed(server, engine):
    server.answer, server.stays = events(SAID), True
    outputs = await outcome(engine)
    assert outputs[-1].finish == "stop"
    async with asyncio.timeout(BOUND):
        await server.gone.wait()


async def test_a_server_that_says_no_more_after_its_finish_holds_no_slot(
    server, engine, monkeypatch
):
    monkeypatch.setattr(openai, "_LINGER", 0.1)
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    server.answer = events(SAID, usage).removesuffix("data: [DONE]\n\n")
    server.stays = True
    outputs = await outcome(engine)
    assert (outputs[-1].finish, outputs[-1].prompt_tokens) == ("stop", 7)
    assert sum(len(output.tokens) for output in outputs) == 3
    async with asyncio.timeout(BOUND):
        await server.gone.wait()


# Servers that do not stream

WHOLE = {
    "choices": [{"message": {"role": "assistant", "content": "No."}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}


@pytest.mark.parametrize("indent", [None, 2])
async def test_an_answer_in_one_piece_is_taken_as_it_is(server, engine, indent):
    server.answer = json.dumps(WHOLE, indent=indent)
    outputs = await outcome(engine)
    assert (outputs[-1].finish, outputs[-1].prompt_tokens) == ("length", 7)
    assert sum(len(output.tokens) for output in outputs) == 3
    assert server.asked == 1


@pytest.mark.parametrize(
    "answer, says",
    [
        ("<html>\n<h1>Welcome</h1>", "sent no JSON object, but: <html>"),
        ("Welcome", "sent no JSON object, but: Welcome"),
        ('{"message": {"content": "No."}, "done": true}', "something that is no answer"),
        ('{"error": {"message": "out of memory"}}', "out of memory"),
    ],
)
async def test_what_is_no_answer_is_told_and_not_asked_for_again(server, engine, answer, says):
    server.answer = answer
    [last] = await outcome(engine)
    assert isinstance(last.error, EngineError)
    assert says in last.error.message
    assert server.asked == 1


# Its list of models


@pytest.mark.parametrize(
    "answer, says",
    [
        ((401, "<html>Unauthorized</html>"), "refuses the worker's key"),
        ((400, "no such thing"), "no such thing"),
        ((301, "", "Location: https://elsewhere/v1/models"), "on to https://elsewhere/v1/models"),
        ((200, "[]"), "no model 'm': it has none"),
        ((200, '{"data": 7}'), "no model 'm': it has none"),
        ((200, '{"data": [{"id": "n", "aliases": 7}]}'), "no model 'm': it has n"),
    ],
)
async def test_a_list_that_no_waiting_mends_is_an_error_at_once(server, engine, answer, says):
    server.list = answer
    with pytest.raises(EngineError, match=says):
        async with asyncio.timeout(BOUND):
            await engine.start(lambda _: None)


@pytest.mark.parametrize(
    "answer", [(503, "<html>"), (400, "{}"), (200, "<html>"), (200, '{"data": 7}')]
)
async def test_a_server_is_lost_whatever_it_lists_and_found_again(server, engine, answer):
    await engine.start(lambda _: None)
    server.list = answer
    async with asyncio.timeout(BOUND):
        assert await engine.lost()
        server.list = (200, LISTED)
        await engine.back()


async def test_a_list_that_trickles_is_no_answer(server, engine, monkeypatch):
    await engine.start(lambda _: None)
    monkeypatch.setattr(openai_health, "_WITHIN", 0.3)
    server.trickles = True
    async with asyncio.timeout(BOUND):
        assert "does not answer" in await engine.lost()


# The worker's key


@pytest.fixture
def made(monkeypatch, server):
    def make(key):
        monkeypatch.setenv("QUEUESERVE_API_BASE_KEY", key)
        source = ModelSource(path="m", origin="m", engine="openai", name="m")
        return make_engine(source, EngineOptions(api_base=server.base, slots=1))

    return make


async def test_the_end_of_a_keys_line_is_no_part_of_it(made):
    engine = made("sk-secret\n")
    assert engine._client.headers["Authorization"] == "Bearer sk-secret"
    await engine.start(lambda _: None)
    await engine.close()


@pytest.mark.parametrize("key", ["sk-\nsecret", "sk-secr\u00e9t", "sk-\x7fsecret"])
def test_a_key_that_no_header_carries_is_refused_and_not_quoted(made, key):
    with pytest.raises(EngineError, match="QUEUESERVE_API_BASE_KEY has characters") as refused:
        made(key)
    assert "secr" not in refused.value.message
