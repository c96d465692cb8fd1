"""POST /v1/completions, and the models: on a real Redis and a fake engine."""

from __future__ import annotations

import openai
import pytest


@pytest.fixture(autouse=True)
async def _a_worker(worker):
    await worker()


async def complete(api, prompt, **options):
    return await api.client.completions.create(model="m", prompt=prompt, temperature=0, **options)


async def test_a_prompt_as_text_gets_sixteen_tokens_by_default(api):
    answer = await complete(api, "Once upon a time", extra_body={"ignore_eos": True})
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


async def test_several_prompts_come_back_in_order_with_an_index_over_prompts_times_n(api):
    alone = [(await complete(api, text)).choices[0].text for text in ("one", "two")]
    answer = await complete(api, ["one", "two"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [alone[0]] * 2 + [alone[1]] * 2


async def test_prompts_as_token_ids(api):
    alone = await complete(api, [1, 2, 3])
    assert alone.usage.prompt_tokens == 3
    both = await complete(api, [[1, 2, 3], [4, 5]])
    assert both.usage.prompt_tokens == 5
    assert both.choices[0].text == alone.choices[0].text


async def test_a_stream_brings_the_same_text(api):
    answer = await complete(api, ["one", "two"])
    texts = ["", ""]
    reasons = {}
    async for chunk in await complete(api, ["one", "two"], stream=True):
        assert chunk.object == "text_completion"
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in answer.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in answer.choices}


async def test_a_token_outside_the_vocabulary_is_a_400(api):
    with pytest.raises(openai.BadRequestError) as caught:
        await complete(api, [1, 2_000_000_000], stream=True)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "prompt")


async def test_models_are_listed_and_described(api, worker):
    await worker(pool="org/other")
    models = (await api.client.models.list()).data
    assert [model.id for model in models] == ["m", "org/other"]
    assert (models[0].object, models[0].owned_by) == ("model", "queueserve")
    assert (await api.client.models.retrieve("org/other")).id == "org/other"
    with pytest.raises(openai.NotFoundError) as caught:
        await api.client.models.retrieve("nope")
    assert caught.value.code == "model_not_found"
