"""Responses in the background whose API server or worker is killed."""

from __future__ import annotations

import os
import signal

import openai
import pytest


def test_a_background_response_whose_api_server_is_killed_has_failed(cluster, until):
    cluster.worker("--engine", "fake", "--fake-tick", "0.1")
    doomed, process = cluster.api("--heartbeat-timeout", "3")  # soon missed
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
