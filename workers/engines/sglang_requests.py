"""From a sequence to SGLang's parameters, and from what SGLang gives to outputs. Pure."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, TypeAlias

from queueserve.errors import EngineError, InvalidRequestError, QueueServeError, WorkerLostError
from queueserve.protocol import TokenLogprob
from workers.engines.base import Output, Sequence
from workers.engines.grammar import to_lark
from workers.engines.penalties import biases

Given: TypeAlias = dict[str, Any]  # one chunk of a stream: "output_ids" and "meta_info"

_SEEDS = 2**63  # SGLang's are below it
_BAN = -1000.0  # in logits


def parameters(sequence: Sequence, *, left: int, ends: frozenset[int]) -> dict[str, Any]:
    """SGLang's sampling_params for up to `left` tokens after `prompt` + `generated`.

    `ends` are the model's own end-of-sequence tokens. With ignore_eos SGLang ignores all other
    tokens that end, too, and the end of a constraint: where there are any, the model's own are
    banned instead, and come only where a constraint leaves nothing else.

    """
    own, index = sequence.sampling, len(sequence.generated)
    bias = biases(own, sequence.generated)
    bans = own.ignore_eos and (sequence.constraint is not None or own.stop_token_ids)
    if bans:
        bias |= dict.fromkeys(ends.difference(own.stop_token_ids), _BAN)
    return {
        "max_new_tokens": left,
        "min_new_tokens": min(max(0, own.min_tokens - index), left),
        "temperature": own.temperature,
        "top_p": own.top_p,
        "top_k": own.top_k or -1,
        "min_p": own.min_p if own.temperature else 0.0,
        "presence_penalty": own.presence_penalty,
        "frequency_penalty": own.frequency_penalty,
        "repetition_penalty": own.repetition_penalty,
        "logit_bias": {str(token): value for token, value in bias.items()} or None,
        "sampling_seed": own.seed % _SEEDS,
        "stop_token_ids": list(own.stop_token_ids),
        "ignore_eos": own.ignore_eos and not bans,
        "ebnf": None if sequence.constraint is None else to_lark(sequence.constraint),
    }


def check(sequence: Sequence, *, seeds_count: bool) -> None:
    """Raise InvalidRequestError for what SGLang cannot do: some of it would end its scheduler.

    Raises WorkerLostError for a sequence that it cannot go on with.
    """
    own, bound = sequence.sampling, sequence.constraint is not None
    if bound and own.min_tokens > 0:
        raise InvalidRequestError(
            "the sglang engine cannot bind an output and its least length", param="min_tokens"
        )
    if seeds_count and own.min_p > 0 and own.temperature > 0:
        raise InvalidRequestError(
            "SGLang cannot cut by min_p while it runs with --enable-deterministic-inference",
            param="min_p",
        )
    if sequence.generated and (bound or own.repetition_penalty != 1):
        raise WorkerLostError(
            "SGLang cannot go on in the middle of an output with a constraint or a repetition "
            "penalty."
        )


def refusal(sequence: Sequence, error: Exception) -> QueueServeError:
    """What SGLang raised for a sequence, for its client; the engine goes on."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ValueError):
        return _refused(sequence, message)
    return EngineError(f"SGLang could not start the sequence: {message}")


def _refused(sequence: Sequence, message: str) -> InvalidRequestError:
    constraint = sequence.constraint
    return InvalidRequestError(message, param=None if constraint is None else constraint.param)


def output(sequence: Sequence, given: Given, *, first: bool) -> Output:
    """What a chunk of SGLang's stream says; `first` of this sequence."""
    about = given["meta_info"]
    tokens, end = tuple(given["output_ids"]), about["finish_reason"]
    reason = None if end is None else end["type"]
    if reason not in {None, "stop", "length"}:
        return Output(sequence.id, error=_ended(sequence, end))
    if reason == "stop" and tokens and tokens[-1] == end.get("matched"):
        tokens = tokens[:-1]  # it is not part of the answer
    cached = about.get("cached_tokens") if first else None
    return Output(
        sequence.id,
        tokens,
        _logprobs(sequence, tokens, about),
        reason,
        cached_tokens=None if cached is None else min(cached, len(sequence.prompt)),
    )


def _ended(sequence: Sequence, end: dict[str, Any]) -> QueueServeError:
    message = " ".join((end.get("message") or end["type"]).split())
    if end.get("status_code") == HTTPStatus.BAD_REQUEST:
        return _refused(sequence, message)
    return EngineError(f"SGLang ended the sequence: {message}")


def _logprobs(
    sequence: Sequence, tokens: tuple[int, ...], about: dict[str, Any]
) -> tuple[TokenLogprob, ...] | None:
    """Those of `tokens`. SGLang gives (log-probability, token, None) for each of them."""
    asked = sequence.sampling.logprobs
    if asked is None:
        return None
    own = about["output_token_logprobs"][: len(tokens)]
    best = about["output_top_logprobs"] if asked else [()] * len(own)
    return tuple(
        TokenLogprob(value, tuple((token, other) for other, token, _ in top or ()))
        for (value, _, _), top in zip(own, best, strict=False)
    )
