"""From a sequence to vLLM's parameters, and from what vLLM gives to outputs. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, TypeAlias

from vllm import exceptions
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from queueserve.errors import EngineError, InvalidRequestError, QueueServeError
from queueserve.protocol import Sampling, TokenLogprob
from workers.engines.base import Output, Sequence
from workers.engines.grammar import to_lark
from workers.engines.penalties import biases

RequestOutput: TypeAlias = Any  # vllm is not followed by mypy

_BIASES = 1024  # more of them would end vLLM's engine process


def parameters(
    sequence: Sequence, *, left: int, ends: Iterable[int], seeds_by_position: bool
) -> SamplingParams:
    """How vLLM draws the up to `left` tokens after `prompt` + `generated`, which is its prompt.

    `ends` are the model's end-of-sequence tokens. `seeds_by_position`: a seed and a token's
    position decide its draw, so that a continuation draws what the undisturbed run would have
    drawn. Raises InvalidRequestError, and ValueError for values that vLLM refuses.
    """
    own, index = sequence.sampling, len(sequence.generated)
    bias = biases(own, sequence.generated)
    ignores_ends = own.ignore_eos
    if sequence.constraint is not None and ignores_ends:
        # Where the constraint is fulfilled nothing but an end may come: it is unlikely, not banned.
        bias |= dict.fromkeys(ends, -100.0)
        ignores_ends = False
    if len(bias) > _BIASES:
        raise InvalidRequestError(
            f"vLLM takes biases for {_BIASES} tokens at most: logit_bias, and for a sequence that "
            "goes on here the penalties of what was generated elsewhere",
            param="logit_bias",
        )
    return SamplingParams(
        max_tokens=left,
        min_tokens=min(max(0, own.min_tokens - index), left),
        temperature=own.temperature,
        top_p=own.top_p,
        top_k=own.top_k,
        min_p=own.min_p,
        presence_penalty=own.presence_penalty,
        frequency_penalty=own.frequency_penalty,
        repetition_penalty=own.repetition_penalty,
        logit_bias=bias or None,
        seed=_seed(own, 0 if seeds_by_position else index),
        stop_token_ids=list(own.stop_token_ids),
        ignore_eos=ignores_ends,
        logprobs=own.logprobs,
        prompt_logprobs=None if sequence.generated else own.prompt_logprobs,
        structured_outputs=_structured(sequence),
        detokenize=False,  # text is the runner's business
        output_kind=RequestOutputKind.DELTA,
    )


def _seed(own: Sampling, index: int) -> int | None:
    if own.temperature == 0:
        return None
    if index == 0:
        return own.seed
    digest = hashlib.blake2b(f"{own.seed}:{index}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")  # other draws than the first tokens had


def _structured(sequence: Sequence) -> StructuredOutputsParams | None:
    constraint = sequence.constraint
    if constraint is None:
        return None
    if sequence.sampling.min_tokens > 0:
        # vLLM bans the end until then, also where the constraint allows nothing else.
        raise InvalidRequestError(
            "the vllm engine cannot bind an output and its least length", param="min_tokens"
        )
    return StructuredOutputsParams(grammar=to_lark(constraint))


def refusal(sequence: Sequence, error: Exception) -> QueueServeError:
    """What vLLM raised for a sequence, for its client; the engine goes on."""
    message = " ".join(str(error.args[0]).split()) if error.args else type(error).__name__
    if not isinstance(error, (ValueError, getattr(exceptions, "VLLMClientError", ValueError))):
        return EngineError(f"vLLM could not start the sequence: {message}")
    param = getattr(error, "parameter", None)
    if param is None and sequence.constraint is not None:
        param = sequence.constraint.param
    return InvalidRequestError(message, param=param)


def output(sequence: Sequence, given: RequestOutput, *, first: bool) -> Output:
    """What a delta of vLLM says; `first` of this sequence."""
    completion = given.outputs[0]
    tokens, reason = tuple(completion.token_ids), completion.finish_reason
    if reason not in {None, "stop", "length"}:
        return Output(sequence.id, error=EngineError(f"vLLM ended the sequence: {reason}"))
    if reason == "stop":  # by the last token, which is not part of the answer
        tokens = tokens[:-1]
    if sequence.sampling.max_tokens == 0:  # only the prompt was asked for; vLLM draws one at least
        tokens, reason = (), "length"
    cached = given.num_cached_tokens if first else None
    return Output(
        sequence.id,
        tokens,
        _logprobs(sequence, tokens, completion.logprobs),
        reason,
        cached_tokens=None if cached is None else min(cached, len(sequence.prompt)),
        prompt_logprobs=_scores(
            sequence.prompt[1:], given.prompt_logprobs, sequence.sampling.prompt_logprobs
        ),
    )


def _logprobs(
    sequence: Sequence, tokens: tuple[int, ...], positions: Any
) -> tuple[TokenLogprob, ...] | None:
    asked = sequence.sampling.logprobs
    if asked is None or positions is None:
        return None
    return tuple(map(_logprob, tokens, positions, [asked] * len(tokens)))


def _scores(
    tokens: tuple[int, ...], positions: Any, asked: int | None
) -> tuple[TokenLogprob, ...] | None:
    """Of the prompt's tokens but the first, for which vLLM has None."""
    if asked is None or not positions:
        return None
    return tuple(map(_logprob, tokens, positions[1:], [asked] * len(tokens)))


def _logprob(token: int, position: Any, asked: int) -> TokenLogprob:
    """One token's; vLLM gives the token itself and the most likely ones, by rank."""
    best = sorted(position.items(), key=lambda item: item[1].rank)[:asked]
    top = tuple((other, value.logprob) for other, value in best if value.rank <= asked)
    return TokenLogprob(position[token].logprob, top)
