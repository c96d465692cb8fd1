"""How likely a prompt is, token by token: for echo with log-probabilities.

Continuous batching computes scores where a token is to be drawn only, so this is a pass of its own.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from queueserve.protocol import TokenLogprob

Model: TypeAlias = Any  # a PreTrainedModel: transformers is not followed by mypy

_CHUNK = 256  # tokens: their scores for a whole vocabulary take some 100 MB


def score(model: Model, tokens: tuple[int, ...], top: int) -> tuple[TokenLogprob, ...]:
    """Return the log-probability of each token but the first after those before it.

    The running batch waits for it, as it does for a long prompt.
    """
    scored: list[TokenLogprob] = []
    cache = None
    with torch.inference_mode():
        ids = torch.tensor([tokens], device=model.device)
        for start in range(0, len(tokens) - 1, _CHUNK):
            part = ids[:, start : min(start + _CHUNK, len(tokens) - 1)]
            out = model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logprobs = torch.log_softmax(out.logits[0].float(), dim=-1)
            wanted = ids[0, start + 1 : start + 1 + part.shape[1]]
            own = logprobs.gather(1, wanted.unsqueeze(1)).squeeze(1).tolist()
            best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
            tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            scored += (
                TokenLogprob(value, tuple(zip(ids_, values, strict=True)))
                for value, (ids_, values) in zip(own, tops, strict=True)
            )
    return tuple(scored)
