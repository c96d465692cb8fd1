"""What is asked of llama.cpp's server for one sequence: sampling in its own words.

Every option that bears on the draw is given each time, as llama.cpp's defaults are not neutral
(top_k 40, top_p 0.95, min_p 0.05, temperature 0.8), and in the order that other servers have:
temperature before top_k, top_p and min_p.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from queueserve.errors import InvalidRequestError
from queueserve.protocol import Sampling
from workers.engines.base import Sequence

_SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
# At temperature 0 llama.cpp would still take the exponential of every logit: half a millisecond a
# token for 49,152 of them, of one slot after the other.
_GREEDY = 1
_FORCE = 1000.0  # added to a logit: more than any two logits are apart
_LARK = "%llguidance {}"  # tells such a grammar from llama.cpp's own kind
_RANDOM_SEED = 0xFFFFFFFF  # llama.cpp's word for "any seed"


def check(sequence: Sequence, vocabulary_size: int) -> None:
    """Raise InvalidRequestError for a token that the model does not have."""
    sampling = sequence.sampling
    named: tuple[tuple[str, Iterable[int]], ...] = (
        ("prompt", sequence.prompt),
        ("prompt", sequence.generated),
        ("logit_bias", sampling.logit_bias),
        ("stop_token_ids", sampling.stop_token_ids),
    )
    for param, tokens in named:
        for token in tokens:
            if not 0 <= token < vocabulary_size:
                raise InvalidRequestError(
                    f"token {token} is not in the vocabulary of {vocabulary_size}", param=param
                )
    if not sequence.prompt:
        raise InvalidRequestError("the prompt has no tokens", param="prompt")


def seed_at(seed: int, index: int) -> int:
    """The seed for what is drawn from output token `index` on: 32 bits, never llama.cpp's "any"."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % _RANDOM_SEED


def needs_steps(sampling: Sampling) -> bool:
    """Whether each token needs a request of its own.

    llama.cpp counts the prompt for these two penalties, OpenAI's definition only what was
    generated. So the penalties are put into the bias of each token.
    """
    return bool(sampling.presence_penalty or sampling.frequency_penalty)


def _bias(sampling: Sampling, generated: Iterable[int]) -> dict[int, float]:
    bias = dict(sampling.logit_bias)
    if needs_steps(sampling):
        for token, count in Counter(generated).items():
            penalty = sampling.presence_penalty + sampling.frequency_penalty * count
            bias[token] = bias.get(token, 0.0) - penalty
    return bias


def draw(
    sequence: Sequence,
    generated: list[int],
    *,
    slot: int,
    count: int,
    stream: bool,
    banned: Iterable[int] = (),
    only: Iterable[int] = (),
    grammar: str | None = None,
) -> dict[str, Any]:
    """A request for up to `count` tokens after `generated`; `banned` ones never come.

    With `only`, no others come: it must not go with a repetition penalty, which multiplies. With a
    `grammar`, in llguidance's Lark, banned ones come where it leaves no other.
    """
    sampling = sequence.sampling
    biases = _bias(sampling, generated)
    biases |= {token: biases.get(token, 0.0) + _FORCE for token in only}
    bias: list[list[Any]] = [[token, by] for token, by in biases.items()]
    penalised = sampling.repetition_penalty != 1.0
    tokens = [*sequence.prompt, *generated]
    return {
        **_common(tokens, slot=slot, count=count),
        "stream": stream,
        "return_progress": stream,
        "seed": seed_at(sampling.seed, len(generated)),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k if sampling.temperature else _GREEDY,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": len(tokens) + count if penalised else 0,
        "logit_bias": bias + [[token, -_FORCE if grammar else False] for token in banned],
        "grammar": f"{_LARK}\n{grammar.removeprefix(_LARK)}" if grammar else "",
        "n_probs": 0 if sampling.logprobs is None else max(1, sampling.logprobs),
    }


def look(tokens: list[int], *, slot: int, forced: int, alternatives: int) -> dict[str, Any]:
    """A request that tells how likely each token is after `tokens`; it draws `forced`."""
    return {
        **_common(tokens, slot=slot, count=1),
        "temperature": 0.0,
        "top_k": _GREEDY,
        "logit_bias": [[forced, _FORCE]],
        "n_probs": alternatives,
    }


def ends() -> dict[str, Any]:
    """A request whose answer names the tokens that end a sequence: those that ignore_eos bans."""
    return {**_common([0], slot=0, count=1), "temperature": 0.0, "ignore_eos": True}


def _common(tokens: list[int], *, slot: int, count: int) -> dict[str, Any]:
    return {
        "prompt": tokens,
        "n_predict": count,
        "id_slot": slot,
        "cache_prompt": True,
        "verbose": True,  # the OpenAI form of an answer has no token ids, the verbose part has
        "return_tokens": True,
        "samplers": _SAMPLERS,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
