"""Vectors from a model that vLLM runs with `--runner pooling`."""

from __future__ import annotations

import asyncio
import itertools
from array import array
from typing import Any, TypeAlias

from vllm.pooling_params import PoolingParams

from queueserve.errors import EngineError

Llm: TypeAlias = Any  # an AsyncLLM: vllm is not followed by mypy

_NUMBERS = itertools.count()


async def embed(llm: Llm, inputs: list[tuple[int, ...]]) -> list[array[float]]:
    """A float32 vector of length 1 for each input; one that nobody awaits any more is aborted.

    Raises EngineError.
    """
    try:
        return list(await asyncio.gather(*(_vector(llm, tokens) for tokens in inputs)))
    except Exception as error:  # vLLM raises what it likes
        raise EngineError(f"vLLM could not embed: {error}") from error


async def _vector(llm: Llm, tokens: tuple[int, ...]) -> array[float]:
    prompt = {"type": "token", "prompt_token_ids": list(tokens)}
    params = PoolingParams(task="embed")
    async for output in llm.encode(prompt, params, request_id=f"embed-{next(_NUMBERS)}"):
        vector = output.outputs.data.float()
        return array("f", (vector / vector.norm().clamp(min=1e-12)).tolist())
    raise EngineError("vLLM gave no vector")
