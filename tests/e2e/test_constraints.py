"""A stream that is bound to a schema survives the death of its worker."""

from __future__ import annotations

import json
import os
import signal
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
