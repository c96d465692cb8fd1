"""The functions against the model, and the proof that the machine would notice.

QUEUESERVE_HYPOTHESIS=thorough looks for many minutes, and at other examples each time.
"""

from __future__ import annotations

import os

import pytest
import redis as sync_redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from queue_machine import QueueMachine
from queue_remote import Remote

from queueserve.queue.functions import Functions

_THOROUGH = os.environ.get("QUEUESERVE_HYPOTHESIS") == "thorough"
_SETTINGS = settings(
    max_examples=2000 if _THOROUGH else 100,
    stateful_step_count=60 if _THOROUGH else 40,
    deadline=None,
    derandomize=not _THOROUGH,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def machine(redis_url, functions):
    """Makes the machine for a library; `damage` replaces a piece of its Lua by another one."""
    with sync_redis.Redis.from_url(redis_url) as client:
        remotes = []

        def make(damage: tuple[str, str] | None = None) -> type[QueueMachine]:
            library = damaged(functions, *damage) if damage else functions
            client.function_load(library._source, replace=True)
            remotes.append(Remote(client, library))
            return type("Machine", (QueueMachine,), {"remote": remotes[-1]})

        yield make
        for remote in remotes:
            remote.ask("", "freeze", "")
            remote.close()
        client.function_flush()


def damaged(functions: Functions, right: str, wrong: str) -> Functions:
    """The library with a bug, under a name of its own."""
    assert functions._source.count(right) == 1
    bad = Functions(functions.redis)
    bad._version = "damaged"
    source = functions._source.replace(right, wrong)
    bad._source = source.replace(functions._version, bad._version)
    return bad


@pytest.mark.timeout(7200 if _THOROUGH else 300)
def test_the_functions_do_what_the_model_does(machine):
    run_state_machine_as_test(machine(), settings=_SETTINGS)


BUGS = {
    "finish without its epoch check": (
        "if fields[2] ~= epoch or fields[3] ~= worker then",
        "if fields[3] ~= worker then",
    ),
    "a reaper that requeues a streaming job itself": (
        "redis.call('HSET', job, 'state', 'orphaned', 'epoch', epoch, 'worker', '', 'notified', 1)",
        """redis.call('HSET', job, 'state', 'queued', 'epoch', epoch, 'worker', '')
           redis.call('ZADD', key(root, 'queue'), redis.call('HGET', job, 'rank'), id)""",
    ),
    "dispatch that ignores alive": (
        "alive = expiry and tonumber(expiry) > time,",
        "alive = true,",
    ),
    "cancel that frees the lease at once": (
        "redis.call('HSET', key(root, 'lease', worker), id, epoch .. ' cancel')",
        "redis.call('HDEL', key(root, 'lease', worker), id)",
    ),
    "an epoch that restarts with what Redis remembers": (
        "math.max(number(last, 0) + 1, (previous or 0) + 1, time)",
        "math.max(number(last, 0) + 1, (previous or 0) + 1)",
    ),
    "a suspect that gets company": (
        "seat.state = 'alone'",
        "seat.state = 'ready'",
    ),
    "a grace time that a dispatch forgets": (
        "look_at(root, id, job.end_by, job.end_by, job.detached)",
        "look_at(root, id, job.end_by, job.end_by)",
    ),
}


@pytest.mark.parametrize("redis_server", ["valkey"], indirect=True)  # the machine is on trial
@pytest.mark.parametrize("bug", BUGS)
def test_the_machine_notices(machine, bug):
    found = settings(_SETTINGS, max_examples=1000, phases=[Phase.generate])
    buggy = machine(BUGS[bug])  # not below: that the bug could not be put in is no proof
    with pytest.raises(AssertionError):
        run_state_machine_as_test(buggy, settings=found)
