"""Greedy tokens are those that an engine's library gives by itself, one prompt after the other."""

import asyncio
import dataclasses
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKENS = 24
BOUND = 250.0  # seconds
PROMPTS = (
    "Once upon a time there was a",
    "The capital of France is",
    " one two three four five six" * 6,
)


async def assert_gives(subject, expected):
    """`expected`: the library's tokens after each of the prompts.

    The prompts are computed alone, and then all at once.
    """
    run = subject.run
    own = {"max_tokens": TOKENS, "ignore_eos": True, "logprobs": 5}
    prompts = [await run.encode(prompt) for prompt in PROMPTS]
    alone = [await run.generate(prompt, **own) for prompt in prompts]
    together = await asyncio.gather(*(run.generate(prompt, **own) for prompt in prompts))
    for tokens, *results in zip(expected, alone, together, strict=True):
        assert len(tokens) == TOKENS
        for result in results:
            subject.assert_same(result, dataclasses.replace(result, tokens=tuple(tokens)))


@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not here: make test-engines")
async def test_vllm_gives_what_its_own_generate_gives(vllm):
    """The same AsyncLLM, as a start takes long; it reads the text and sets its draws by itself."""
    from vllm import SamplingParams  # noqa: PLC0415

    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    expected = []
    for prompt in PROMPTS:
        async with asyncio.timeout(BOUND):
            async for output in vllm.run.engine._llm.generate(prompt, params, request_id=prompt):
                tokens = output.outputs[0].token_ids
        expected.append(tuple(tokens))
    await assert_gives(vllm, expected)


@pytest.mark.skipif(not find_spec("mlx_lm"), reason="mlx-lm is not here: make test-engines")
async def test_mlx_gives_what_its_own_generate_gives(mlx):
    from mlx.core import array  # noqa: PLC0415
    from mlx_lm import load  # noqa: PLC0415
    from mlx_lm.generate import generate_step  # noqa: PLC0415

    model, _ = load(mlx.run.engine._model_path)
    prompts = [array(await mlx.run.encode(prompt)) for prompt in PROMPTS]
    expected = [
        [token for token, _ in generate_step(prompt, model, max_tokens=TOKENS)]
        for prompt in prompts
    ]
    await assert_gives(mlx, expected)
