"""A job as a request to a server that speaks the OpenAI API, and its refusals as our errors. Pure.

What the API cannot carry is refused here, with the field's name: servers ignore what they do not
know, and an option that is ignored in silence is a wrong answer.
"""

from __future__ import annotations

from typing import Any

import orjson

from queueserve.errors import (
    ContextLengthExceededError,
    EngineError,
    InvalidRequestError,
    QueueServeError,
)
from queueserve.protocol import Constraint, Job, Sampling

_BINDERS = frozenset({"queueserve", "vllm"})
"""Servers (`owned_by` in their list of models) that know vLLM's `structured_outputs`."""
_DEFAULTS = Sampling()
_REFUSED = ("logprobs", "prompt_logprobs")
_REFUSES_US = frozenset({401, 403})
_CLIENTS_FAULT = frozenset({400, 413, 422})
_MAX_MESSAGE = 2000  # characters


def request_of(job: Job, *, model: str, owner: str) -> tuple[str, dict[str, Any]]:
    """Return the endpoint and the body that a job becomes. Raises InvalidRequestError.

    `model` is the server's own name for it, `owner` what the server says who owns it.
    """
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(job),
    }
    if job.constraint is not None:
        body |= _bound(job, job.constraint, owner)
    if job.kind == "completion":
        return "completions", body | {"prompt": job.prompt}
    body["messages"] = job.messages
    if job.tools:
        body["tools"] = job.tools
    if job.template_kwargs:
        body["chat_template_kwargs"] = job.template_kwargs
    if job.continue_final_message:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    elif not job.add_generation_prompt:
        body["add_generation_prompt"] = False
    return "chat/completions", body


def _sampling(job: Job) -> dict[str, Any]:
    """Return what the request has set; the server's own defaults count for the rest."""
    for name in _REFUSED:
        if getattr(job.sampling, name) is not None:
            raise InvalidRequestError(f"The server of this model gives no {name} here.", param=name)
    if job.show_prompt:
        raise InvalidRequestError(
            "The server of this model shows no tokens: echo and return_token_ids cannot be had.",
            param="return_token_ids",
        )
    told: dict[str, Any] = {"seed": job.sampling.seed}
    always = ("temperature", "top_p")  # their defaults elsewhere may be others
    for name in Sampling.__struct_fields__:
        value = getattr(job.sampling, name)
        if name not in job.unset and (name in always or value != getattr(_DEFAULTS, name)):
            told[name] = value
    if job.sampling.logit_bias:
        told["logit_bias"] = {str(token): by for token, by in job.sampling.logit_bias.items()}
    return told


def _bound(job: Job, constraint: Constraint, owner: str) -> dict[str, Any]:
    if constraint.param == "tool_choice":
        return {"tool_choice": "required"}  # of the tools that may be called; no others are offered
    if job.tools:
        raise InvalidRequestError(
            "The server of this model binds an output to a format or to tools, not to one of both.",
            param=constraint.param,
        )
    if job.kind == "completion" and owner not in _BINDERS:
        raise InvalidRequestError(  # OpenAI has no format there, and llama.cpp ignores one
            "The server of this model binds no plain completion.", param=constraint.param
        )
    if constraint.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if constraint.kind == "json_schema":
        schema = {"name": "output", "schema": _read(constraint), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if owner not in _BINDERS:
        raise InvalidRequestError(
            f"The server of this model binds no output to a {constraint.kind}.",
            param=constraint.param,
        )
    value = _read(constraint) if constraint.kind == "choice" else constraint.value
    return {"structured_outputs": {constraint.kind: value}}


def _read(constraint: Constraint) -> Any:
    try:
        return orjson.loads(constraint.value)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"not valid JSON: {error}", param=constraint.param) from error


def read(body: bytes) -> Any:
    """Return what a server's answer says: its JSON, or its text."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode(errors="replace")


def refusal(status: int, body: Any) -> QueueServeError:
    """Return what an answer that is none stands for. `body` is its JSON, or its text."""
    told = body.get("error", body) if isinstance(body, dict) else body
    error: dict[str, Any] = told if isinstance(told, dict) else {"message": told}
    said = error.get("message") or error.get("detail")
    message = str(said or "without a reason")[:_MAX_MESSAGE]
    param = error.get("param") if isinstance(error.get("param"), str) else None
    if status in _REFUSES_US:  # its message may quote the key
        return EngineError(f"The server of this model refuses the worker's key ({status}).")
    if status in _CLIENTS_FAULT:
        long = error.get("code") == ContextLengthExceededError.code
        kind = ContextLengthExceededError if long else InvalidRequestError
        return kind(message, param=param)
    return EngineError(f"The server of this model answered {status}: {message}")
