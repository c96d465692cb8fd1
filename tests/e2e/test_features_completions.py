"""Plain completions with the official client against `queueserve up`."""

from __future__ import annotations

import openai
import pytest

FRANCE, ITALY = "The capital of France is", "The capital of Italy is"


@pytest.fixture
def ask(client, up):
    def ask(prompt: object = FRANCE, **fields):
        asked = {"model": up.chat, "prompt": prompt, "temperature": 0, "max_tokens": 4} | fields
        return client.completions.create(**asked)

    return ask


@pytest.fixture
def ids(client, up):
    def ids(text: str) -> list[int]:
        body = {"model": up.chat, "prompt": text}
        root = client.with_options(base_url=up.url)
        return root.post("/tokenize", body=body, cast_to=object)["tokens"]

    return ids


def texts(answer: object) -> list[str]:
    return [choice.text for choice in answer.choices]


def test_the_four_forms_of_a_prompt(ask, ids):
    one, two = texts(ask(FRANCE)), texts(ask([FRANCE, ITALY]))
    assert "Paris" in one[0]
    assert (two[0], "Rome" in two[1]) == (one[0], True)
    assert texts(ask(ids(FRANCE))) == one
    assert texts(ask([ids(FRANCE), ids(ITALY)])) == two


def test_a_stream_has_all_prompts_and_choices(ask):
    fields = {"prompt": [FRANCE, ITALY], "n": 2}
    joined = [""] * 4
    for chunk in ask(stream=True, **fields):
        (choice,) = chunk.choices
        joined[choice.index] += choice.text
    assert joined == texts(ask(**fields))


def test_echo_and_log_probabilities(ask):
    (choice,) = ask(echo=True, logprobs=2).choices
    assert choice.text.startswith(FRANCE)
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert told.token_logprobs[0] is None
    assert all(value <= 0 for value in told.token_logprobs[1:])
    assert told.text_offset == sorted(told.text_offset)
    assert len(told.top_logprobs[-1]) == 2


def test_the_best_of_several(ask):
    drawn = {"temperature": 1, "seed": 4, "max_tokens": 1}
    assert len(set(texts(ask(n=8, **drawn)))) > 1
    assert texts(ask(best_of=8, **drawn)) == texts(ask(max_tokens=1))  # the likeliest that there is


def test_a_suffix_is_refused(ask):
    with pytest.raises(openai.BadRequestError) as error:
        ask(suffix=" and of Italy")
    assert (error.value.param, error.value.code) == ("suffix", "unsupported_value")
