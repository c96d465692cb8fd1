"""How a request ended must come of what was done: each end that does not is found."""

from __future__ import annotations

import random
import time

import pytest
from harness.audit import Audit
from harness.causes import explained
from harness.clients import Attempt, Client
from harness.cluster import Cluster, Size


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path, Size())


def unexplained(cluster: Cluster, attempt: Attempt, audit: Audit | None = None) -> list[str]:
    client = Client(cluster.ports, random.Random(1))
    client.attempts.append(attempt)
    return explained(cluster, [client], audit or Audit())


def attempt(how: str, *, after: float = 1.0, **more) -> Attempt:
    """One at the first API server that ends so many seconds from now."""
    now = time.monotonic()
    return Attempt("api0", now, ended=now + after, how=how, **more)


CAUSES = {
    "cut": ["killed", "door"],
    "refused": ["killed", "told", "door"],
    "server_closing": ["told"],
    "server_expired": ["redis", "link", "slowed", "stopped"],
    "redis_unavailable": ["redis", "link", "slowed", "stopped"],
}


def hurt(cluster: Cluster, cause: str) -> None:
    api = cluster.apis[0]
    periods = {
        "killed": api.killed,
        "told": api.told,
        "stopped": api.stopped,
        "door": api.door.disturbed,
        "link": api.link.disturbed,
        "slowed": api.link.slowed,
        "redis": cluster.redis_hurt,
    }
    periods[cause].add(0.5)


@pytest.mark.parametrize("how", CAUSES)
def test_an_end_needs_a_cause(cluster, how):
    assert unexplained(cluster, attempt(how))


@pytest.mark.parametrize("how, cause", [(how, each) for how in CAUSES for each in CAUSES[how]])
def test_a_cause_explains_what_comes_soon_after_it(cluster, how, cause):
    hurt(cluster, cause)
    assert unexplained(cluster, attempt(how)) == []
    assert unexplained(cluster, attempt(how, after=30.0))


@pytest.mark.parametrize("how", CAUSES)
def test_what_was_done_to_another_server_explains_nothing(cluster, how):
    other = cluster.apis[1]
    for periods in (other.killed, other.told, other.stopped, other.door.disturbed):
        periods.add(0.5)
    other.link.disturbed.add(0.5)
    assert unexplained(cluster, attempt(how))


@pytest.mark.parametrize("how", ["cut", "refused", "server_closing"])
def test_a_hurt_redis_cuts_off_nobody(cluster, how):
    hurt(cluster, "redis")
    assert unexplained(cluster, attempt(how))


def test_what_the_way_to_the_client_held_back_had_happened_before(cluster):
    cluster.redis_hurt.add(0.5)
    assert unexplained(cluster, attempt("server_expired", after=20.0))
    cluster.apis[0].door.disturbed.add(20.0)
    assert unexplained(cluster, attempt("server_expired", after=20.0)) == []


def test_what_needs_no_cause(cluster):
    assert unexplained(cluster, attempt("done")) == []


def lost(workers: int, *, charged: bool = True) -> Audit:
    audit = Audit()
    audit.note("submit", "chatcmpl-a-0")
    for number in range(workers):
        audit.note("dispatch", "chatcmpl-a-0", str(2 * number + 1), "w", "resume")
        audit.note("orphan", "chatcmpl-a-0", str(2 * number + 2), charged)
    return audit


@pytest.mark.parametrize("reply", ["chatcmpl-a", ""])
def test_a_job_was_given_up_before_it_had_lost_three_workers(cluster, reply):
    crashed = attempt("worker_crashed", reply=reply)
    assert unexplained(cluster, crashed, lost(2))
    assert unexplained(cluster, crashed, lost(3, charged=False))
    assert unexplained(cluster, crashed, lost(3)) == []


def test_another_job_was_given_up(cluster):
    assert unexplained(cluster, attempt("worker_crashed", reply="chatcmpl-b"), lost(3))


def test_one_job_is_no_reason_for_two_requests(cluster):
    client = Client(cluster.ports, random.Random(1))
    client.attempts += [attempt("worker_crashed"), attempt("worker_crashed")]
    assert explained(cluster, [client], lost(3))


def test_a_prompt_that_crashes_its_workers_may_be_told_so(cluster):
    assert unexplained(cluster, attempt("worker_crashed", poison=True)) == []
