"""The short form of `make chaos`: a storm of some seconds, and a bug that the checks must find."""

from __future__ import annotations

import pytest
from harness import can_fail, storm
from harness.faults import FAULTS
from harness.report import Report

# For `make chaos` alone.
_LONG = {
    "Redis: hangs 3 to 8 s",
    "Redis: hangs 20 s",
    "API server: SIGTERM",
    "all: restarted one by one",
}


async def test_nothing_is_lost_and_nothing_runs_twice(tmp_path):
    report = Report("a short storm", logs=tmp_path)
    kinds = [fault for fault in FAULTS if fault.name not in _LONG]
    await storm.run(storm.Storm(requests=100, faults=12, pause=0.5, seed=1, kinds=kinds), report)
    print(report)
    assert not report.violations


@pytest.mark.parametrize("bug", can_fail.PROVOKED_BY)
async def test_the_checks_find_a_bug(bug):
    assert await can_fail.found(bug, seed=1)


async def test_the_checks_find_what_is_left_behind():
    assert can_fail.not_found(await can_fail.leaks_found(seed=1)) == []
