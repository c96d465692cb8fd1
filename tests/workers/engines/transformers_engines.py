"""Transformers engines as the tests make them, and what such a model gives without our batching."""

from __future__ import annotations

import pytest

from queueserve.errors import EngineError
from workers.engines.transformers import TransformersEngine

NEAR = 1e-3  # log-probabilities this close may change places


def engine_on(path, **options):
    return TransformersEngine(
        str(path), **({"slots": 4, "context_length": 128, "dtype": "float32"} | options)
    )


async def refusal_of(engine):
    """Why it does not start."""
    with pytest.raises(EngineError) as caught:
        await engine.start(lambda _: None)
    await engine.close()
    return caught.value.message


def generate_alone(run, prompt):
    """Twelve greedy tokens by transformers' own `generate`."""
    import torch  # noqa: PLC0415

    model = run.engine._batcher._model
    ids = torch.tensor([prompt])
    with torch.no_grad():
        tokens = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
        )
    return tokens[0, len(prompt) :].tolist()


def assert_same_up_to_near_ties(result, tokens):
    for at, (token, other) in enumerate(zip(result.tokens, tokens, strict=True)):
        if token != other:
            (_, first), (runner_up, second) = result.logprobs[at].top
            assert other == runner_up
            assert first - second < NEAR
            return
