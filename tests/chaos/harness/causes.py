"""Whether what was done to a cluster explains how its requests ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from harness.audit import Audit
from harness.clients import Attempt, Client
from harness.cluster import Api, Cluster
from harness.periods import Periods

NOTICED_WITHIN = 5.0  # seconds after its cause in which a client sees an end, on a slow machine
WORKERS_LOST = 3  # before a job is given up


def explained(cluster: Cluster, clients: Iterable[Client], audit: Audit) -> list[str]:
    """Requests that ended in a way that nothing explains which was done to the cluster.

    Its server must have been hurt, or its way to the client or to Redis, or Redis itself, so short
    a time before the end that one may come of the other.
    """
    attempts = [attempt for client in clients for attempt in client.attempts]
    apis = {api.name: api for api in cluster.apis}
    found = [
        f"request {attempt.reply or '?'} at {attempt.api} ended with {attempt.how}, "
        "and nothing explains it"
        for attempt in attempts
        if not _has_cause(cluster, apis[attempt.api], attempt)
    ]
    return found + _crashes(attempts, audit)


def _has_cause(cluster: Cluster, api: Api, attempt: Attempt) -> bool:
    causes, window = _causes(cluster, api, attempt.how)
    if not causes:
        return True
    # What its way to the client held back had happened before.
    held = api.door.disturbed.between(attempt.ended, attempt.ended, window=NOTICED_WITHIN)
    happened = min([attempt.ended, *(period.began for period in held)])
    return any(cause.between(happened, attempt.ended, window=window) for cause in causes)


def _causes(cluster: Cluster, api: Api, how: str) -> tuple[tuple[Periods, ...], float]:
    """What may end a request like this, and for how many seconds after it was over.

    No causes: there is no need of one.
    """
    renewal = cluster.size.heartbeat + NOTICED_WITHIN
    match how:
        case "cut":
            return (api.killed, api.door.disturbed), NOTICED_WITHIN
        case "refused":
            return (api.killed, api.told, api.door.disturbed), NOTICED_WITHIN
        case "server_closing":
            return (api.told,), NOTICED_WITHIN
        case "server_expired" | "redis_unavailable":
            hurt = (cluster.redis_hurt, api.link.disturbed, api.link.slowed, api.stopped)
            return hurt, renewal
    return (), 0.0


def _crashes(attempts: list[Attempt], audit: Audit) -> list[str]:
    """Clients that were told `worker_crashed` of a job that has not lost so many workers."""
    told = [each for each in attempts if each.how == "worker_crashed" and not each.poison]
    losses = audit.losses()
    named = [each.reply.rpartition("-")[2] for each in told if each.reply]
    found = [
        f"request {name} ended with worker_crashed, and its jobs have lost {lost} workers"
        for name in named
        if (lost := losses.get(name, 0)) < WORKERS_LOST
    ]
    # A job that never had a token has no name for its client: as many may be as there are others.
    given_up = Counter(name for name, lost in losses.items() if lost >= WORKERS_LOST)
    spare = (given_up - Counter(named)).total()
    nameless = sum(not each.reply for each in told)
    if nameless > spare:
        found.append(f"{nameless} requests ended with worker_crashed, {spare} jobs were given up")
    return found
