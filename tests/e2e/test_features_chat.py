"""Chat with the official client against `queueserve up`: one test for each feature."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import openai
import pytest

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


@pytest.fixture
def ask(client, up):
    """Ask for the capital of France, greedily, unless the fields say something else."""

    def ask(**fields):
        asked = {"model": up.chat, "messages": CAPITAL, "temperature": 0} | fields
        return client.chat.completions.create(**{"max_completion_tokens": 24} | asked)

    return ask


def said(answer: object) -> str:
    return answer.choices[0].message.content


def test_an_answer_in_one_piece(ask, up):
    answer = ask()
    assert "Paris" in said(answer)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert (answer.object, answer.model) == ("chat.completion", up.chat)
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens


def test_a_stream_with_its_usage_at_the_end(ask):
    whole = ask()
    *chunks, last = ask(stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said(whole)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks)
    assert len({(chunk.id, chunk.created) for chunk in (*chunks, last)}) == 1


def test_a_stream_without_usage(ask):
    chunks = list(ask(stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_the_clients_own_stream_helper(client, up):
    with client.chat.completions.stream(
        model=up.chat, messages=CAPITAL, temperature=0, max_completion_tokens=24
    ) as stream:
        grown = "".join(event.delta for event in stream if event.type == "content.delta")
        assert stream.get_final_completion().choices[0].message.content == grown
    assert "Paris" in grown


def test_several_choices_interleave(ask):
    fields = {"n": 3, "temperature": 1, "seed": 5, "max_completion_tokens": 16}
    order = [
        chunk.choices[0].index
        for chunk in ask(stream=True, extra_body={"ignore_eos": True}, **fields)
    ]
    assert set(order) == {0, 1, 2}
    assert sum(one != next_ for one, next_ in pairwise(order)) > 6  # not one after the other
    answer = ask(**fields)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


@pytest.mark.parametrize("stop", ["Paris", ["Berlin", "Paris"]])
def test_stop_strings_end_the_text_before_them(ask, stop):
    answer = ask(stop=stop)
    assert said(answer) == said(ask()).partition("Paris")[0]
    assert answer.choices[0].finish_reason == "stop"


def test_a_seed_gives_the_same_text_again(ask):
    """Of several seeds most: what else is in a batch moves a draw that stood on the edge."""
    drawn = {"temperature": 1, "top_p": 1, "max_completion_tokens": 6}
    with ThreadPoolExecutor() as pool:
        first, again = ([pool.submit(ask, seed=seed, **drawn) for seed in range(8)] for _ in "12")
        first, again = ([said(asked.result()) for asked in asks] for asks in (first, again))
    assert sum(one == other for one, other in zip(first, again, strict=True)) >= 4
    assert len(set(first)) > 2, first


def test_logit_bias_forbids_a_token(ask, client, up):
    told = client.with_options(base_url=up.url).post(
        "/tokenize",
        body={"model": up.chat, "prompt": " Paris", "add_special_tokens": False},
        cast_to=object,
    )
    assert "Paris" in said(ask())
    assert " Paris" not in said(ask(logit_bias={str(token): -100 for token in told["tokens"]}))


@pytest.mark.parametrize(
    "penalty",
    [
        {"frequency_penalty": 2},
        {"presence_penalty": 2},
        {"extra_body": {"repetition_penalty": 2.0}},
    ],
    ids=str,
)
def test_a_penalty_makes_a_text_repeat_itself_less(client, up, penalty):
    def most(**fields):
        asked = {"model": up.chat, "prompt": "one two one two one two one two", "max_tokens": 16}
        asked |= fields
        text = client.completions.create(temperature=0, **asked).choices[0].text
        return max(Counter(re.findall(r"\w+", text)).values())

    assert most(**penalty) < most()


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_and_their_alternatives(ask, stream):
    answer = ask(logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
    else:
        text, tokens = said(answer), answer.choices[0].logprobs.content
    assert "Paris" in text
    assert "".join(one.token for one in tokens) == text
    for one in tokens:
        assert bytes(one.bytes).decode() == one.token
        best, second = one.top_logprobs
        assert (best.token, best.logprob) == (one.token, one.logprob)  # greedy
        assert second.logprob <= best.logprob <= 0


def test_max_completion_tokens_and_the_older_max_tokens(ask):
    for field in ("max_completion_tokens", "max_tokens"):
        answer = ask(**{"max_completion_tokens": openai.omit, field: 3})
        assert answer.usage.completion_tokens == 3
        assert answer.choices[0].finish_reason == "length"


def test_who_asks_and_with_which_priority(ask):
    answer = ask(user="ann", metadata={"team": "a"}, service_tier="priority")
    assert answer.service_tier == "priority"
    assert said(answer) == said(ask())
    with pytest.raises(openai.BadRequestError) as error:
        ask(metadata={str(number): "a" for number in range(17)})
    assert error.value.param == "metadata"


def test_content_in_parts_reads_as_text(ask):
    parts = [{"type": "text", "text": CAPITAL[0]["content"]}]
    in_parts = ask(messages=[{"role": "user", "content": parts}])
    assert said(in_parts) == said(ask())
    assert in_parts.usage.prompt_tokens == ask().usage.prompt_tokens


def test_the_developer_is_the_system(ask):
    rule = "You answer every question with the single word: Banana."
    as_system, as_developer = (
        ask(messages=[{"role": role, "content": rule}, *CAPITAL])
        for role in ("system", "developer")
    )
    assert said(as_system) == said(as_developer)
    assert as_system.usage.prompt_tokens == as_developer.usage.prompt_tokens
    assert as_system.usage.prompt_tokens != ask().usage.prompt_tokens


def test_an_answer_that_was_begun_is_continued(ask):
    begun = [*CAPITAL, {"role": "assistant", "content": "The capital of France is"}]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    text = said(ask(messages=begun, extra_body=fields))
    assert text.startswith(" Paris")


def test_earlier_reasoning_is_taken_back(ask):
    turn = {"role": "assistant", "content": "Paris.", "reasoning_content": "France, so Paris."}
    answer = ask(messages=[*CAPITAL, turn, {"role": "user", "content": "Are you sure?"}])
    assert said(answer)


def test_what_samples_only_the_best_is_greedy(ask):
    greedy = said(ask())
    for only in ({"top_k": 1}, {"min_p": 1.0}):
        assert said(ask(temperature=2, seed=3, extra_body=only)) == greedy
    assert said(ask(temperature=2, seed=3, top_p=0)) == greedy


def test_ignore_eos_and_min_tokens_go_on_after_the_end(ask):
    short = ask()
    assert short.usage.completion_tokens < 20
    for beyond in ({"ignore_eos": True}, {"min_tokens": 20}):
        longer = ask(extra_body=beyond)
        assert longer.usage.completion_tokens >= 20
        assert said(longer).startswith(said(short))


def test_token_ids_are_returned(ask, client, up):
    answer = ask(extra_body={"return_token_ids": True})
    tokens = answer.choices[0].token_ids
    assert len(answer.prompt_token_ids) == answer.usage.prompt_tokens
    assert len(tokens) == answer.usage.completion_tokens
    told = client.with_options(base_url=up.url).post(
        "/detokenize", body={"model": up.chat, "tokens": tokens}, cast_to=object
    )
    assert told["prompt"] == said(answer)
    stopped = ask(extra_body={"stop_token_ids": tokens[3:4]})
    assert stopped.usage.completion_tokens < len(tokens)


def test_the_template_gets_its_switches(ask):
    assert said(ask(extra_body={"chat_template_kwargs": {"enable_thinking": False}}))
    with pytest.raises(openai.BadRequestError) as error:
        ask(extra_body={"chat_template_kwargs": {"messages": []}})
    assert error.value.param == "chat_template_kwargs"


def test_a_client_that_leaves_its_stream_frees_its_slot(ask):
    endless = {"max_completion_tokens": 4000, "extra_body": {"ignore_eos": True}}
    for _ in range(6):  # more than there are slots, each for a minute
        with ask(stream=True, **endless) as stream:
            next(stream)
    assert said(ask())
