"""The sampling that a model's makers recommend applies to what a request leaves open, only."""

from __future__ import annotations

import json

import pytest

from queueserve.protocol import Job, Sampling
from workers.defaults import recommended, with_defaults

DEFAULTS = {"temperature": 0.2, "top_p": 0.9}


def job(**fields) -> Job:
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=7)
    return Job(id="j", pool="m", model="m", kind="chat", sampling=sampling, **fields)


def test_what_is_left_open_becomes_the_models_default():
    drawn = with_defaults(job(unset=("temperature", "top_p", "top_k")), DEFAULTS)
    assert (drawn.temperature, drawn.top_p, drawn.max_tokens) == (0.2, 0.9, 7)


def test_what_the_client_has_set_stays():
    drawn = with_defaults(job(unset=("top_p",)), DEFAULTS)
    assert (drawn.temperature, drawn.top_p) == (1.0, 0.9)


def test_a_generation_config_recommends(tmp_path):
    config = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": "x", "eos_token_id": 2}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert recommended(tmp_path) == {"temperature": 0.6, "top_k": 20}


@pytest.mark.parametrize("wrong", ["NaN", "Infinity", "-1", "true", "false", "1e9", "null", '"2"'])
def test_what_no_engine_could_draw_with_is_not_recommended(tmp_path, wrong):
    text = f'{{"do_sample": true, "temperature": {wrong}, "top_k": 20.0, "repetition_penalty": 0}}'
    (tmp_path / "generation_config.json").write_text(text)
    found = recommended(tmp_path)
    assert found == {"top_k": 20}
    assert isinstance(found["top_k"], int)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"temperature": 0.6}', '{"do_sample": false}'])
def test_a_file_that_says_nothing_recommends_nothing(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    assert recommended(tmp_path) == {}


def test_no_file_recommends_nothing(tmp_path):
    assert recommended(tmp_path) == {}
