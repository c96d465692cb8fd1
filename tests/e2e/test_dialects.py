"""/v1/responses and /v1/messages with their makers' clients, on real processes and a real model."""

from __future__ import annotations

import os
import signal

import anthropic
import openai
import pytest
from pydantic import BaseModel

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
QUESTION = "What is the weather in Paris?"
CAPITAL = "What is the capital of France? Answer in one sentence."


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def smollm(cluster, models_dir):
    """The URL of an API server with SmolLM2 behind it, called `m`."""
    cluster.worker("--engine", "llama_cpp", "--data-dir", str(models_dir))
    url, _ = cluster.api()
    return url


def test_both_clients_talk_to_a_real_model(cluster, smollm):
    with cluster.client(smollm) as client:
        _says_the_capital_in_a_conversation(client.responses)
        _gives_what_a_schema_asks_for(client.responses)
        _calls_functions_and_takes_results(client.responses)
    with anthropic.Anthropic(base_url=smollm, api_key="none", max_retries=0, timeout=150) as claude:
        _says_the_capital_in_a_message(claude.messages)
        _uses_tools_and_takes_results(claude.messages)


def _says_the_capital_in_a_conversation(responses):
    options = {"model": "m", "temperature": 0, "max_output_tokens": 40}
    response = responses.create(input=CAPITAL, **options)
    assert "Paris" in response.output_text
    assert response.status == "completed"
    with responses.stream(input=CAPITAL, **options) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == response.output_text
    more = responses.create(
        input="And which country is that city in?", previous_response_id=response.id, **options
    )
    assert more.usage.input_tokens > response.usage.total_tokens
    assert "France" in more.output_text


def _gives_what_a_schema_asks_for(responses):
    options = {"model": "m", "temperature": 0, "max_output_tokens": 80}
    asked = responses.parse(input="Anna is 31 years old.", text_format=Person, **options)
    assert asked.output_parsed == Person(name="Anna", age=31)


def _calls_functions_and_takes_results(responses):
    tool = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}
    options = {"model": "m", "tools": [tool], "parallel_tool_calls": False, "temperature": 0}
    with responses.stream(input=QUESTION, tool_choice="required", **options) as stream:
        kinds = {event.type for event in stream}
        response = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    call = response.output[0]
    assert (call.type, call.name, call.parsed_arguments) == (
        *("function_call", "get_weather", {"city": "Paris"}),
    )
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees"}
    told = responses.create(
        input=[result],
        previous_response_id=response.id,
        tool_choice="none",
        max_output_tokens=20,
        **options,
    )
    assert told.output_text


def _says_the_capital_in_a_message(messages):
    options = {"model": "m", "max_tokens": 40, "extra_body": {"temperature": 0}}
    turns = [{"role": "user", "content": CAPITAL}]
    message = messages.create(messages=turns, **options)
    assert "Paris" in message.content[0].text
    assert message.stop_reason == "end_turn"
    with messages.stream(messages=turns, stop_sequences=["France"], **options) as stream:
        stopped = stream.get_final_message()
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "France")
    counted = messages.count_tokens(model="m", messages=turns)
    usage = message.usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def _uses_tools_and_takes_results(messages):
    tools = [{"name": "get_weather", "input_schema": WEATHER}]
    options = {"model": "m", "max_tokens": 80, "tools": tools, "extra_body": {"temperature": 0}}
    turns = [{"role": "user", "content": QUESTION}]
    choice = {"type": "tool", "name": "get_weather"}
    with messages.stream(messages=turns, tool_choice=choice, **options) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_message()
    assert "input_json" in kinds
    (use,) = message.content
    assert (use.type, use.input, message.stop_reason) == ("tool_use", {"city": "Paris"}, "tool_use")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "22 degrees"}
    turns += [
        {"role": "assistant", "content": [use.to_dict()]},
        {"role": "user", "content": [result]},
    ]
    assert messages.create(messages=turns, **options).content


def test_a_background_response_whose_api_server_is_killed_has_failed(cluster, until):
    cluster.worker("--engine", "fake", "--fake-tick", "0.1")
    doomed, process = cluster.api()
    url, _ = cluster.api()
    asked = {"model": "m", "input": "Hello", "extra_body": {"ignore_eos": True}}
    with cluster.client(doomed) as client:
        made = client.responses.create(background=True, **asked)
    with cluster.client(url) as client:
        responses = client.responses
        until(lambda: responses.retrieve(made.id).status == "in_progress", "its beginning")
        process.kill()
        until(lambda: responses.retrieve(made.id).status == "failed", "its failure")
        failed = responses.retrieve(made.id)
        assert failed.error.code == "server_error"
        assert "gone" in failed.error.message
        *events, last = responses.retrieve(made.id, stream=True)
        said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        assert failed.output_text == said
        assert (last.type, last.response.id) == ("response.failed", made.id)
        with pytest.raises(openai.BadRequestError):
            responses.create(model="m", input="And?", previous_response_id=made.id)
    until(lambda: not cluster.running(), "the end of its job")


def test_a_background_response_goes_on_when_its_worker_is_killed(cluster):
    for _ in range(2):
        cluster.worker("--engine", "fake", "--fake-tick", "0.05")
    url, _ = cluster.api()
    asked = {"model": "m", "input": "Hello", "extra_body": {"ignore_eos": True}}
    with cluster.client(url) as client:
        responses = client.responses
        made = responses.create(background=True, max_output_tokens=60, **asked)
        with responses.retrieve(made.id, stream=True) as stream:
            events = [next(stream) for _ in range(12)]
            (worker,) = cluster.running().values()
            os.kill(cluster.pid_of(worker), signal.SIGKILL)
            events += stream
        done = responses.retrieve(made.id)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert (done.status, done.usage.output_tokens, done.output_text) == ("incomplete", 60, text)
    assert cluster.redis.hget(f"qs:{{m}}:job:{made.id}-0", "attempts") == "2"
