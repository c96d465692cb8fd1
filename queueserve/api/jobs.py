"""A request becomes jobs, one for each sequence. Pure."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from msgspec.structs import replace

from queueserve.api.constraints import constraint_of
from queueserve.api.conversation import carried
from queueserve.api.limits import MAX_CHARS, MAX_JOBS
from queueserve.api.schemas.chat import ChatCompletionRequest, ImageUrl
from queueserve.api.schemas.completions import CompletionRequest
from queueserve.api.schemas.data import ModelRequest
from queueserve.api.schemas.generation import GenerationRequest
from queueserve.api.schemas.images import host_of
from queueserve.api.tools import offer_of
from queueserve.errors import InvalidRequestError
from queueserve.protocol import DEFAULT_CLASS, Job, JobKind, ModelCard, Sampling
from queueserve.settings import ApiSettings

DEFAULT_TENANT = "default"
PRIORITIES: Mapping[str | None, int] = {"priority": 4, "flex": 12}
"""service_tier → priority class; DEFAULT_CLASS for all others."""

_COMPLETION_MAX_TOKENS = 16  # OpenAI's own default, for plain completions only
_COST_OF_OUTPUT = 256  # tokens, where a request sets no bound
_COST_OF_IMAGE = 1024  # tokens, about
_CHARS_PER_TOKEN = 4
_GRACE = 30.0  # seconds in which a retry with the same Idempotency-Key finds the job still running
_MAX_KEY_CHARS = 256
_SEEDS = 2**63
_MODEL_DECIDES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a request is called, and what is drawn for it; a retry of it has the same."""

    reply_id: str  # the id that the client sees
    job_id: str  # the jobs are called `<job_id>-<index>`
    seed: int  # for requests that bring none
    tenant: str = DEFAULT_TENANT  # whose turn it takes in the queue
    digest: str = ""  # of the body; with an Idempotency-Key only
    grace: float = 0.0  # seconds

    @classmethod
    def fresh(cls, prefix: str, *, tenant: str = DEFAULT_TENANT) -> Self:
        """Make a new one; the reply's id begins with `prefix`."""
        drawn = secrets.token_bytes(20)
        reply_id, seed = f"{prefix}{drawn[:16].hex()}", int.from_bytes(drawn[16:])
        return cls(reply_id=reply_id, job_id=reply_id, seed=seed, tenant=tenant)

    @classmethod
    def of_key(
        cls, prefix: str, *, key: str, path: str, tenant: str, body: bytes, secret: str
    ) -> Self:
        """Make the one that an Idempotency-Key of a tenant stands for, at a path of the API.

        Raises InvalidRequestError.
        """
        if not 0 < len(key) <= _MAX_KEY_CHARS:
            raise InvalidRequestError(
                f"An Idempotency-Key has 1 to {_MAX_KEY_CHARS} characters.", param="Idempotency-Key"
            )
        # Lengths first, so that no other tenant, path and key give the same text.
        text = f"{len(tenant)}:{tenant}:{len(path)}:{path}:{key}".encode()
        name = hmac.digest(secret.encode(), text, "sha256")
        return cls(
            reply_id=f"{prefix}{name[:16].hex()}",
            job_id=f"idem-{name[:16].hex()}",
            seed=int.from_bytes(name[16:20]),
            tenant=tenant,
            digest=hashlib.blake2b(body, digest_size=16).hexdigest(),
            grace=_GRACE,
        )


def tenant_of(request: GenerationRequest | ModelRequest, *, key: str | None = None) -> str:
    """Return whose turn a request takes in fair queueing.

    With API keys it is the key's, `key`: who holds one gets no more by inventing users. Without
    keys it is OpenAI's `user` field.
    """
    return key or request.user or DEFAULT_TENANT


def chat_jobs(
    request: ChatCompletionRequest, identity: Identity, card: ModelCard, settings: ApiSettings
) -> list[Job]:
    """Return one job per choice. Raises InvalidRequestError."""
    max_tokens = request.max_completion_tokens or request.max_tokens
    offer, wanted = offer_of(request, card), constraint_of(request)
    chars = sum(message.chars for message in request.messages) + sum(
        len(str(tool)) for tool in offer.tools
    )
    _check_images(request.images, card, settings)
    _check_size(chars + sum(len(image.url) for image in request.images), request.n or 1)
    job = _job(
        request,
        identity,
        card,
        settings,
        max_tokens=max_tokens,
        kind="chat",
        messages=carried(request.messages),
        tools=offer.tools,
        constraint=offer.constraint(wanted),
        template_kwargs=request.chat_template_kwargs or {},
        continue_final_message=bool(request.continue_final_message),
        add_generation_prompt=request.add_generation_prompt is not False,
        cost=_cost(chars // _CHARS_PER_TOKEN + _COST_OF_IMAGE * len(request.images), max_tokens),
    )
    if offer.is_bound(wanted):  # it ends where its JSON does; a stop inside would cut a call in two
        job = replace(job, sampling=replace(job.sampling, stop=(), stop_token_ids=()))
    if request.logprobs:
        asked = replace(job.sampling, logprobs=request.top_logprobs or 0)
        job = replace(job, sampling=asked)
    return _numbered([job], request.n or 1, identity)


def _check_images(images: Sequence[ImageUrl], card: ModelCard, settings: ApiSettings) -> None:
    """Refuse images that the model does not take, or that lie where nobody may be sent to."""
    if images and not card.images:
        raise InvalidRequestError(f"The model {card.name!r} takes no images.", param="messages")
    for image in images:
        host = host_of(image.url)
        if host is not None and host not in settings.allowed_image_hosts:
            raise InvalidRequestError(
                f"Images of {host[:100]} are not allowed here; send the image as a data: URL.",
                param="messages",
            )


def _check_size(length: int, choices: int) -> None:
    """Refuse what would be large in Redis, where each choice's job carries the whole prompt."""
    if choices > 1 and length * choices > MAX_CHARS:
        raise InvalidRequestError(
            f"The prompt times n may have at most {MAX_CHARS} characters; send several requests.",
            param="n",
        )


def completion_jobs(
    request: CompletionRequest, identity: Identity, card: ModelCard, settings: ApiSettings
) -> list[Job]:
    """Return one job per prompt and choice, the choices of a prompt side by side.

    Raises InvalidRequestError.
    """
    max_tokens = _or(request.max_tokens, _COMPLETION_MAX_TOKENS)
    if max_tokens == 0 and not request.echo:
        raise InvalidRequestError("max_tokens: 0 is only for echo: true.", param="max_tokens")
    job = _job(
        request,
        identity,
        card,
        settings,
        max_tokens=max_tokens,
        kind="completion",
        constraint=constraint_of(request),
    )
    prompts = request.prompts
    if len(prompts) * request.draws > MAX_JOBS:
        raise InvalidRequestError(
            f"Prompts times n may be at most {MAX_JOBS}; send several requests.", param="n"
        )
    _check_size(sum(map(len, prompts)), request.draws)
    best = request.draws > (request.n or 1)
    logprobs = 0 if best and request.logprobs is None else request.logprobs
    echoed = request.logprobs if request.echo else None
    job = replace(
        job,
        sampling=replace(job.sampling, logprobs=logprobs, prompt_logprobs=echoed),
        show_prompt=job.show_prompt or bool(request.echo),
    )
    jobs = [
        replace(job, prompt=prompt, cost=_cost(_tokens(prompt), max_tokens)) for prompt in prompts
    ]
    return _numbered(jobs, request.draws, identity)


def data_job(
    kind: JobKind,
    request: ModelRequest,
    identity: Identity,
    card: ModelCard,
    settings: ApiSettings,
) -> Job:
    """Return the job of a request that generates nothing, still without its inputs."""
    return Job(kind=kind, **_asked(request, identity, card, settings))


def _asked(
    request: ModelRequest | GenerationRequest,
    identity: Identity,
    card: ModelCard,
    settings: ApiSettings,
) -> dict[str, Any]:
    """Return the members of a job that say who asks for what model, and for how long."""
    return {
        "id": identity.job_id,
        "pool": card.pool,
        "model": request.model,
        "tenant": identity.tenant,
        "priority": PRIORITIES.get(request.service_tier, DEFAULT_CLASS),
        "queue_timeout": settings.queue_timeout,
        "timeout": settings.request_timeout,
        "grace": identity.grace,
        "request": identity.digest,
    }


def _job(
    request: GenerationRequest,
    identity: Identity,
    card: ModelCard,
    settings: ApiSettings,
    *,
    max_tokens: int | None,
    kind: JobKind,
    **more: Any,
) -> Job:
    first = {"id": f"{identity.job_id}-0"}  # most often the only one: made once
    return Job(
        **_asked(request, identity, card, settings) | first,
        kind=kind,
        sampling=_sampling(request, identity.seed, max_tokens),
        unset=_unset(request),
        show_prompt=bool(request.return_token_ids),
        **more,
    )


def _sampling(request: GenerationRequest, seed: int, max_tokens: int | None) -> Sampling:
    if request.min_tokens and max_tokens is not None and request.min_tokens > max_tokens:
        raise InvalidRequestError(
            f"min_tokens is {request.min_tokens}, more than the {max_tokens} allowed.",
            param="min_tokens",
        )
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    greedy = request.top_p == 0  # only the most likely token is left
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens or 0,
        temperature=0.0 if greedy else _or(request.temperature, 1.0),
        top_p=1.0 if greedy else _or(request.top_p, 1.0),
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        logit_bias={int(token): by for token, by in (request.logit_bias or {}).items()},
        seed=_or(request.seed, seed),
        stop=stop,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
    )


def _unset(request: GenerationRequest) -> tuple[str, ...]:
    """Name what the model's own defaults may decide."""
    if request.top_p == 0:
        return ()
    return tuple(name for name in _MODEL_DECIDES if getattr(request, name) is None)


def _or(value: _Number | None, default: _Number) -> _Number:
    return default if value is None else value


def _tokens(prompt: str | tuple[int, ...]) -> int:
    return len(prompt) // _CHARS_PER_TOKEN if isinstance(prompt, str) else len(prompt)


def _cost(prompt_tokens: int, max_tokens: int | None) -> int:
    return max(1, prompt_tokens + (max_tokens or _COST_OF_OUTPUT))


def _numbered(jobs: Sequence[Job], choices: int, identity: Identity) -> list[Job]:
    """Return each job `choices` times, with its own id; choice i draws with seed + i."""
    numbered: list[Job] = []
    for job in jobs:
        for choice in range(choices):
            name = f"{identity.job_id}-{len(numbered)}"
            sampling, seed = job.sampling, (job.sampling.seed + choice) % _SEEDS
            if seed != sampling.seed:
                sampling = replace(sampling, seed=seed)
            as_it_is = name == job.id and sampling is job.sampling
            numbered.append(job if as_it_is else replace(job, id=name, sampling=sampling))
    return numbered
