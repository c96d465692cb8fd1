"""A pool as data: what the server has, and what the model says that it must have."""

from __future__ import annotations

from typing import Any

from queue_model import Model
from queue_records import FINAL, Order
from queue_remote import Remote

from queueserve.queue.keys import PoolKeys

_CLASS = 2**48
_FIELDS = ("state", "epoch", "worker", "attempts", "api", "cancel", "detached")


def _scores(pairs: list[Any]) -> dict[str, int]:
    names, scores = pairs[::2], pairs[1::2]
    return {name.decode(): int(float(score)) for name, score in zip(names, scores, strict=True)}


def _hash(found: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in found.items()}


def server_view(remote: Remote, model: Model) -> dict[str, Any]:
    """What is in Redis; the model only says which names to look for."""
    keys = remote.keys
    workers, jobs, apis = sorted(model.workers), sorted(model.jobs), sorted(model.by_api)
    sets = (keys.queue, keys.alone, keys.alive, keys.apis, keys.due)
    answers = iter(
        remote.read(
            *(("ZRANGE", name, 0, -1, "WITHSCORES") for name in sets),
            *(("ZRANGE", name, 0, -1) for name in (keys.free, keys.dead)),
            *(("HGETALL", name) for name in (keys.waiting, keys.reserved, keys.state)),
            *(("HGETALL", keys.lease(worker)) for worker in workers),
            *(("HGET", keys.worker(worker), "slots") for worker in workers),
            *(("SMEMBERS", keys.by_api(api)) for api in apis),
            *(("HMGET", keys.job(job), *_FIELDS) for job in jobs),
            ("KEYS", "*"),
        )
    )
    queue, alone, alive, known_apis, due = (_scores(next(answers)) for _ in sets)
    offered, dead = ([name.decode() for name in next(answers)] for _ in range(2))
    waiting, reserved, state = (_hash(next(answers)) for _ in range(3))
    leases = {worker: _hash(next(answers)) for worker in workers}
    shown = {worker: next(answers) for worker in workers}
    return {
        "queue": list(queue.items()),
        "alone": list(alone.items()),
        "reserved": reserved,
        "dead": set(dead),
        "alive": alive,
        "apis": known_apis,
        "due": due,
        "free": [name for name in offered if _may_take(name, alive, shown, model.now)],
        "waiting": {tenant: int(count) for tenant, count in waiting.items()},
        "virtual": {int(k[2:]): int(v) for k, v in state.items() if k.startswith("V:")},
        "epoch": int(state.get("epoch", 0)),
        "leases": leases,
        "by_api": {api: {job.decode() for job in next(answers)} for api in apis},
        "jobs": {job: _job(next(answers)) for job in jobs},
        "left behind": _left_behind(keys, next(answers), workers, apis),
    }


def _left_behind(
    keys: PoolKeys, found: list[bytes], workers: list[str], apis: list[str]
) -> set[str]:
    """The keys of workers and API servers that are gone."""
    per_worker = (keys.worker, keys.lease, keys.inbox)
    rightful = {of(worker) for of in per_worker for worker in workers}
    rightful |= {keys.by_api(api) for api in apis}
    kinds = tuple(of("") for of in (*per_worker, keys.by_api))
    names = {name.decode() for name in found}
    return {name for name in names if name.startswith(kinds)} - rightful


def _may_take(name: str, alive: dict[str, int], shown: dict[str, Any], now: int) -> bool:
    # The others are passed over, and taken out of the set, when their turn comes.
    return alive.get(name, 0) > now and shown[name] is not None


def _job(row: list[Any]) -> dict[str, Any]:
    state, epoch, worker, attempts, api, cancel, detached = row
    known = state and state.decode()
    return {
        "state": known,
        "epoch": int(epoch or 0),
        "worker": (worker or b"").decode(),
        "attempts": int(attempts or 0),
        "api": (api or b"").decode(),
        "cancel": cancel.decode() if cancel and known not in FINAL else None,  # an end may keep it
        "detached": detached and int(detached),
    }


def model_view(model: Model) -> dict[str, Any]:
    """The same, worked out from the model's jobs."""
    waiting: dict[str, int] = {}
    for job in model.queue():
        tenant = _order(model, job).tenant
        waiting[tenant] = waiting.get(tenant, 0) + 1
    leases = {
        worker: {
            job: f"{model.jobs[job].epoch}" + (" cancel" if model.jobs[job].cancel else "")
            for job in model.leases(worker)
        }
        for worker in model.workers
    }
    return {
        "queue": _ranked(model, model.queue()),
        "alone": _ranked(model, model.suspects()),
        "reserved": model.reserved,
        "dead": model.dead,
        "alive": {name: worker.expiry for name, worker in model.workers.items()},
        "apis": model.apis,
        "due": {name: job.due for name, job in model.jobs.items() if job.open},
        "free": model.free(),
        "waiting": waiting,
        "virtual": model.virtual,
        "epoch": model.epoch,
        "leases": leases,
        "by_api": model.by_api,
        "jobs": {
            name: {field: getattr(job, field) for field in _FIELDS}
            for name, job in model.jobs.items()
        },
        "left behind": set(),
    }


def _ranked(model: Model, jobs: list[str]) -> list[tuple[str, int]]:
    return [(job, _order(model, job).klass * _CLASS + model.jobs[job].tag) for job in jobs]


def _order(model: Model, job: str) -> Order:
    order = model.jobs[job].order
    assert order is not None
    return order
