"""Constraints with real processes, a real model and the openai client; and through a kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

OPTIONS = {
    "fake": ("--engine", "fake", "--fake-tick", "0.1"),
    "llama_cpp": ("--engine", "llama_cpp", "--threads", "1"),
}
TELL = [{"role": "user", "content": "Describe a lighthouse as JSON."}]
Short = Annotated[str, Field(max_length=24)]


class Light(BaseModel):
    name: Short
    colour: Literal["red", "white", "striped"]
    height: Annotated[int, Field(ge=1, le=200)]
    keepers: Annotated[list[Short], Field(min_length=3, max_length=4)]


@pytest.mark.timeout(180)
def test_a_small_model_gives_what_was_asked_for(cluster, models_dir):
    """135M parameters, greedy and drawn, several at once: all parse."""
    cluster.worker(*OPTIONS["llama_cpp"], "--data-dir", str(models_dir))
    url, _ = cluster.api()
    client = cluster.client(url)

    def parse(temperature: float):
        return client.chat.completions.parse(
            model="m", messages=TELL, response_format=Light, n=2, temperature=temperature
        )

    def choose(**extra):
        answer = client.chat.completions.create(
            model="m", messages=TELL, max_tokens=40, extra_body=extra
        )
        return answer.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        parsed = [pool.submit(parse, temperature) for temperature in (0.0, 0.7, 1.0, 1.0)]
        free = pool.submit(choose)
        choice = pool.submit(choose, guided_choice=["north", "south"])
        regex = pool.submit(choose, structured_outputs={"regex": r"\d{1,3} m"})
        grammar = pool.submit(choose, guided_grammar='root ::= "N" [0-9] "E" [0-9]')
    for answer in parsed:
        for made in answer.result().choices:
            assert isinstance(made.message.parsed, Light)
            assert made.finish_reason == "stop"
    assert choice.result() in {"north", "south"}
    assert re.fullmatch(r"\d{1,3} m", regex.result())
    assert re.fullmatch("N[0-9]E[0-9]", grammar.result())
    assert free.result()


@pytest.mark.parametrize("engine", OPTIONS)  # the contract of engines covers the others
@pytest.mark.timeout(240)
def test_a_constrained_stream_survives_the_death_of_its_worker(cluster, engine, models_dir):
    options = (*OPTIONS[engine], "--data-dir", str(models_dir))
    for _ in range(2):
        cluster.worker(*options)
    url, _ = cluster.api()
    schema = Light.model_json_schema() | {"additionalProperties": False}
    named = {"name": "light", "schema": schema, "strict": True}
    stream = cluster.client(url).chat.completions.create(
        model="m",
        messages=TELL,
        temperature=0,
        stream=True,
        logprobs=True,
        response_format={"type": "json_schema", "json_schema": named},
    )
    text, reason, killed = "", None, []
    for chunk in stream:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        reason = choice.finish_reason or reason
        if len(text) > 12 and not killed:
            killed += cluster.running().values()
            os.kill(cluster.pid_of(killed[0]), signal.SIGKILL)
    assert killed, text
    assert reason == "stop"
    jsonschema.validate(json.loads(text), schema)
