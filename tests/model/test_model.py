"""The protocol holds at every interleaving of a small system, and the explorer finds what is wrong.

`make model` looks at larger systems, for some minutes.
"""

from __future__ import annotations

import os

import pytest
from explorer import explore
from queue_world import Bugs, begin

SMALL = [(2, 1, 1, 1), (2, 2, 1, 1), (2, 1, 1, 2)]
LARGE = [(2, 1, 2, 1), (3, 1, 1, 1), (3, 2, 1, 1), (2, 1, 2, 2)]
SYSTEMS = SMALL + (LARGE if os.environ.get("QUEUESERVE_MODEL") == "large" else [])

# Errors that the design is made against, with the number of faults that shows each.
KNOWN = {
    "a finish without its epoch check": (
        Bugs(finish_without_epoch=True),
        2,
        "another answer than Redis",
    ),
    "a pop that is the only record of a claim": (
        Bugs(pop_is_the_only_record=True),
        1,
        "a job is lost",
    ),
    "a worker that forgets what it has finished": (
        Bugs(no_dedup=True),
        0,
        "runs twice under one epoch",
    ),
    "a reaper that requeues a streaming job itself": (
        Bugs(reaper_requeues=True),
        1,
        "a mixture of two runs",
    ),
    "an API server that resumes what another one reads": (
        Bugs(resume_by_anybody=True),
        2,
        "a mixture of two runs",
    ),
    "a finish of what has ended": (
        Bugs(finish_twice=True),
        0,
        "two finishes of 0 were accepted",
    ),
    "a finish that is refused and frees a slot all the same": (
        Bugs(finish_frees_twice=True),
        0,
        "-1 of 1 slots",
    ),
    "a dispatch that does not count slots": (
        Bugs(slots_uncounted=True),
        0,
        "2 of 1 slots",
    ),
    "an epoch that is counted where a write may be lost": (
        Bugs(epoch_from_redis=True),
        1,
        "was there before",
    ),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers, jobs, faults, apis", SYSTEMS)
def test_every_interleaving_keeps_the_invariants(workers, jobs, faults, apis):
    found = explore(begin(workers, jobs, faults, apis), Bugs())
    assert found.violation == "", "\n".join(found.trace)
    print(f"{apis} API servers, {workers} workers, {jobs} jobs, {faults} faults: {found.states}")


@pytest.mark.parametrize("bug", KNOWN)
def test_a_known_bug_is_found(bug):
    bugs, faults, violation = KNOWN[bug]
    jobs = 1 + bugs.slots_uncounted
    found = explore(begin(2, jobs, faults, 1 + bugs.resume_by_anybody), bugs)
    assert violation in found.violation
    assert found.trace


def test_what_was_found_can_be_followed():
    found = explore(begin(1, 1, 1), Bugs(pop_is_the_only_record=True))
    assert found.trace == ("submit 0 at 0", "claim 0 is lost")
