"""A server that speaks the OpenAI API as an engine: QueueServe itself, and llama.cpp's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace

import openai
import pytest
import uvicorn

from queueserve.api.app import control_plane, create_app
from queueserve.api.server import config
from queueserve.errors import EngineError
from queueserve.settings import ApiSettings
from workers.engines.fake import FakeEngine
from workers.engines.openai import OpenAIEngine
from workers.settings import WorkerSettings
from workers.worker import Worker

BOUND = 60.0
HEARTBEAT = 2.0
SLOTS = 2
HELLO = [{"role": "user", "content": "hello"}]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer"}},
            "required": ["place", "days"],
        },
    },
}


class Server(uvicorn.Server):
    """uvicorn as a task of the test: it leaves the signals alone."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


class Place:
    """Systems on one Redis, told apart by their prefixes: `back:` is behind `qs:`."""

    def __init__(self, redis_url, redis, stack):
        self.redis_url = redis_url
        self.redis = redis
        self._stack = stack

    async def api(self, prefix="qs:", *, port=0, **settings):
        made = ApiSettings(
            port=port,
            redis_url=self.redis_url,
            key_prefix=prefix,
            heartbeat_timeout=HEARTBEAT,
            **settings,
        )
        server = Server(config(create_app(made, open_plane=control_plane), made))
        task = asyncio.create_task(server.serve())

        async def stop():
            server.should_exit = True
            async with asyncio.timeout(BOUND):
                await task

        self._stack.push_async_callback(stop)
        await self.until(lambda: server.started or task.done())
        port = server.servers[0].sockets[0].getsockname()[1]
        return SimpleNamespace(port=port, base=f"http://127.0.0.1:{port}/v1", stop=stop)

    async def worker(self, engine, name, *, prefix="qs:", wait=True, **more):
        settings = WorkerSettings(
            redis_url=self.redis_url,
            model_names=(name,),
            prefix=prefix,
            heartbeat_timeout=HEARTBEAT,
            grace=0.2,
            **more,
        )
        stop = asyncio.Event()
        task = asyncio.create_task(Worker(engine, settings).run(stop))

        async def end():
            stop.set()
            async with asyncio.timeout(BOUND):
                await task

        self._stack.push_async_callback(end)
        if wait:
            await self.until(lambda: self.alive(name, prefix))

    async def alive(self, name="front", prefix="qs:"):
        return await self.redis.zcard(f"{prefix}{{{name}}}:alive")

    async def leases(self, name, prefix):
        workers = await self.redis.zrange(f"{prefix}{{{name}}}:alive", 0, -1)
        held = [
            await self.redis.hlen(f"{prefix}{{{name}}}:lease:{one.decode()}") for one in workers
        ]
        return sum(held)

    async def gone(self, name="front"):
        return not await self.alive(name)

    async def until(self, condition):
        async with asyncio.timeout(BOUND):
            while True:
                value = condition()
                if await value if asyncio.iscoroutine(value) else value:
                    return
                await asyncio.sleep(0.01)

    def client(self, base):
        client = openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0, timeout=BOUND)
        self._stack.push_async_callback(client.close)
        return client


@pytest.fixture
async def place(redis_url, redis):
    async with contextlib.AsyncExitStack() as stack:
        yield Place(redis_url, redis, stack)


def engine_of(base, model="m", **options):
    return OpenAIEngine(model, api_base=base, **({"slots": SLOTS} | options))


@pytest.fixture
async def both(place):
    """A system with the model `m`, and one before it that calls it `front`."""
    await place.worker(FakeEngine(tick=0.005), "m", prefix="back:")
    back = await place.api("back:")
    await place.worker(engine_of(back.base), "front")
    front = await place.api()
    return SimpleNamespace(
        back=back,
        front=front,
        ask_back=place.client(back.base),
        ask=place.client(front.base),
    )


async def asked(client, model, **options):
    defaults = {"temperature": 0, "max_tokens": 20, "messages": HELLO}
    return await client.chat.completions.create(model=model, **(defaults | options))


async def text_of(stream):
    text, reason, usage = "", None, None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason, usage


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 3},
        {"temperature": 0.9, "seed": 7},
        {"extra_body": {"min_tokens": 30, "ignore_eos": True}, "max_tokens": 40},
        {"logit_bias": {"270": 100}, "presence_penalty": 0.5},
        {"stop": [" the"], "max_tokens": 200},
        {"messages": [{"role": "system", "content": "Be brief."}, *HELLO]},
        {"extra_body": {"structured_outputs": {"regex": "[ab]{4}"}}},
        {"response_format": {"type": "json_object"}},
    ],
)
async def test_an_answer_is_that_of_the_server_behind(both, options):
    expected = await asked(both.ask_back, "m", **options)
    answer = await asked(both.ask, "front", **options)
    assert answer.choices[0].message.content == expected.choices[0].message.content
    assert answer.choices[0].finish_reason == expected.choices[0].finish_reason
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens > 0
    streamed = await asked(
        both.ask, "front", **options, stream=True, stream_options={"include_usage": True}
    )
    text, reason, usage = await text_of(streamed)
    assert (text, reason) == (
        expected.choices[0].message.content,
        expected.choices[0].finish_reason,
    )
    assert usage.prompt_tokens == expected.usage.prompt_tokens


async def test_tokens_are_counted_as_the_server_counts_them(both):
    # Its characters often take several tokens, which come as one piece of text.
    options = {"max_tokens": 64, "extra_body": {"ignore_eos": True}}
    expected = await asked(both.ask_back, "m", **options)
    answer = await asked(both.ask, "front", **options)
    assert answer.usage.completion_tokens == expected.usage.completion_tokens == 64


@pytest.mark.parametrize("prompt", ["Once upon a time", [300, 301, 302]])
async def test_a_plain_prompt_goes_on_as_it_is(both, prompt):
    options = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
    expected = await both.ask_back.completions.create(model="m", **options)
    answer = await both.ask.completions.create(model="front", **options)
    assert answer.choices[0].text == expected.choices[0].text
    assert answer.usage.total_tokens == expected.usage.total_tokens


async def test_a_bad_request_comes_back_as_the_server_refuses_it(both):
    options = {"extra_body": {"stop_token_ids": [99_999]}}
    with pytest.raises(openai.BadRequestError) as expected:
        await asked(both.ask_back, "m", **options)
    with pytest.raises(openai.BadRequestError) as refused:
        await asked(both.ask, "front", **options)
    assert refused.value.body["message"] == expected.value.body["message"]
    assert refused.value.body["param"] == "stop_token_ids"


async def test_a_prompt_that_is_too_long_for_the_server_is_a_400(both):
    long = [{"role": "user", "content": "x" * 5000}]
    with pytest.raises(openai.BadRequestError) as refused:
        await asked(both.ask, "front", messages=long)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "options,param",
    [({"logprobs": True}, "logprobs"), ({"extra_body": {"return_token_ids": True}}, None)],
)
async def test_what_cannot_be_had_through_the_api_is_refused(both, options, param):
    with pytest.raises(openai.BadRequestError) as refused:
        await asked(both.ask, "front", **options)
    assert refused.value.param == (param or "return_token_ids")


@pytest.mark.parametrize(
    "options",
    [
        {"parallel_tool_calls": False},
        {"parallel_tool_calls": True, "temperature": 1, "seed": 3},
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
    ],
)
async def test_calls_come_back_as_calls(both, options):
    options = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 600} | options
    expected = (await asked(both.ask_back, "m", **options)).choices[0]
    answer = (await asked(both.ask, "front", **options)).choices[0]
    assert answer.finish_reason == expected.finish_reason == "tool_calls"
    calls, others = answer.message.tool_calls, expected.message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [
        json.loads(call.function.arguments) for call in others
    ]
    assert {call.function.name for call in calls} == {"weather"}


async def test_a_client_that_goes_away_frees_the_slot_of_the_server(place, both):
    options = {"max_tokens": 3000, "extra_body": {"ignore_eos": True}, "stream": True}
    stream = await asked(both.ask, "front", **options)
    await anext(stream)
    assert await place.leases("m", "back:") == 1
    await stream.close()

    async def free():
        return not await place.leases("m", "back:")

    await place.until(free)


async def test_a_worker_is_gone_while_its_server_is_down_and_comes_back_with_it(place, both):
    assert (await asked(both.ask, "front")).choices[0].message.content
    await both.back.stop()
    await place.until(place.gone)
    await place.api("back:", port=both.back.port)
    await place.until(place.alive)
    assert (await asked(both.ask, "front")).choices[0].message.content


async def test_a_worker_waits_for_a_server_that_is_not_there_yet(place, free_port):
    port = free_port()
    await place.worker(engine_of(f"http://127.0.0.1:{port}/v1"), "front", wait=False)
    await place.worker(FakeEngine(tick=0), "m", prefix="back:")
    assert not await place.alive()
    await place.api("back:", port=port)
    await place.until(place.alive)


async def test_the_key_is_sent_and_a_wrong_one_is_told(place):
    await place.worker(FakeEngine(tick=0), "m", prefix="back:")
    back = await place.api("back:", api_keys=("secret-1",))
    engine = engine_of(back.base, api_key="other-1")
    with pytest.raises(EngineError, match=r"refuses the worker's key \(401\)") as refused:
        await engine.start(lambda _: None)
    await engine.close()
    assert "other-1" not in str(refused.value)
    await place.worker(engine_of(back.base, api_key="secret-1"), "front")
    front = await place.api()
    assert (await asked(place.client(front.base), "front")).choices[0].message.content


async def test_a_model_that_the_server_does_not_have_is_told_with_those_it_has(place):
    await place.worker(FakeEngine(tick=0), "m", prefix="back:")
    back = await place.api("back:")
    engine = engine_of(back.base, "other")
    with pytest.raises(EngineError, match="no model 'other': it has m"):
        await engine.start(lambda _: None)
    await engine.close()


# A server that breaks

CHUNK = {"choices": [{"index": 0, "delta": {"content": "some"}, "finish_reason": None}]}
LAST = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
LISTED = {"data": [{"id": "m", "max_model_len": 100}]}


class Brittle:
    """A server by hand: `broken` says after how many of an answer's chunks connections end."""

    def __init__(self):
        self.broken = []
        self.bodies = []
        self.dies = False
        self.port = 0

    async def open(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def asked(self):
        return len(self.bodies)

    def close(self):
        self._server.close()

    async def _serve(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            if head.startswith("get"):
                writer.write(json.dumps(LISTED).encode())
            else:
                length = int(head.partition("content-length: ")[2].split()[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                sent = self.broken.pop(0) if self.broken else 2
                for chunk in [CHUNK, CHUNK, LAST][: sent + (sent == 2)]:
                    writer.write(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n")
                    await writer.drain()
                if self.dies:
                    self.close()
        writer.close()


@pytest.fixture
async def brittle(place):
    server = Brittle()
    await server.open()
    await place.worker(engine_of(f"http://127.0.0.1:{server.port}/v1"), "front")
    front = await place.api(allowed_image_hosts=("images.example",))
    yield SimpleNamespace(server=server, ask=place.client(front.base))
    server.close()


async def test_an_answer_that_breaks_off_before_it_begins_is_asked_for_again(brittle):
    brittle.server.broken = [0, 0]
    answer = await asked(brittle.ask, "front")
    assert answer.choices[0].message.content == "somesome"
    assert brittle.server.asked == 3


async def test_a_server_that_never_answers_is_an_error(brittle):
    brittle.server.broken = [0] * 9
    with pytest.raises(openai.InternalServerError, match="does not answer"):
        await asked(brittle.ask, "front")
    assert brittle.server.asked == 3


IMAGE = "data:image/png;base64,iVBORw0KGgo="
SEEN = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
    {"type": "image_url", "image_url": {"url": "https://images.example/cat.png"}},
]


async def test_images_go_on_as_they_are(brittle):
    messages = [{"role": "user", "content": SEEN}]
    answer = await asked(brittle.ask, "front", messages=messages, n=2)
    assert answer.choices[1].message.content == "somesome"
    assert [body["messages"] for body in brittle.server.bodies] == [messages, messages]
    seen = [
        {"type": "input_text", "text": SEEN[0]["text"]},
        {"type": "input_image", "image_url": IMAGE, "detail": "low"},
        {"type": "input_image", "image_url": SEEN[2]["image_url"]["url"], "detail": "auto"},
    ]
    made = await brittle.ask.responses.create(
        model="front", input=[{"role": "user", "content": seen}]
    )
    assert made.output_text == "somesome"
    [*_, body] = brittle.server.bodies
    assert body["messages"][0]["content"][:2] == SEEN[:2]
    assert body["messages"][0]["content"][2]["image_url"]["url"] == seen[2]["image_url"]


async def test_a_server_whose_model_takes_no_images_refuses_them(both):
    with pytest.raises(openai.BadRequestError, match="The model 'm' takes no images") as refused:
        await asked(both.ask, "front", messages=[{"role": "user", "content": SEEN[:2]}])
    assert refused.value.param == "messages"


async def test_an_answer_that_breaks_off_later_is_an_error_and_no_second_beginning(brittle):
    brittle.server.broken = [1]
    with pytest.raises(openai.InternalServerError, match="broke off"):
        await asked(brittle.ask, "front")
    assert brittle.server.asked == 1


@pytest.mark.parametrize("sent", [0, 1])
async def test_when_a_server_dies_what_has_begun_ends_and_the_rest_starts_over(
    place, brittle, sent
):
    brittle.server.dies, brittle.server.broken = True, [sent]
    answer = asyncio.create_task(asked(brittle.ask, "front"))
    await place.until(place.gone)
    brittle.server.dies = False
    await brittle.server.open()
    if sent:
        with pytest.raises(openai.APIStatusError, match="cannot be continued"):
            await answer
    else:
        assert (await answer).choices[0].message.content == "somesome"


# llama.cpp's own server


async def test_llama_cpp_server_becomes_a_worker(place, llama_cpp_server):
    await place.worker(engine_of(llama_cpp_server.base, llama_cpp_server.model), "front")
    front = await place.api()
    question = [{"role": "user", "content": "What is the capital of France? One sentence."}]
    options = {"messages": question, "max_tokens": 24}
    expected = await asked(place.client(llama_cpp_server.base), llama_cpp_server.model, **options)
    answer = await asked(place.client(front.base), "front", **options)
    assert answer.choices[0].message.content == expected.choices[0].message.content
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens


@pytest.mark.parametrize("slots, expected", [(None, 4), (9, 9)])
async def test_slots_are_those_that_llama_cpp_tells_unless_they_are_given(
    llama_cpp_server, slots, expected
):
    engine = engine_of(llama_cpp_server.base, llama_cpp_server.model, slots=slots)
    await engine.start(lambda _: None)
    assert engine.info.slots == expected
    await engine.close()
