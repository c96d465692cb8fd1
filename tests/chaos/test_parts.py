"""A part that breaks off is a violation in its table, which names the seed; the next part runs."""

from __future__ import annotations

import asyncio

from click.testing import CliRunner
from harness import __main__ as command
from harness.report import Report


async def never_whole(report: Report) -> None:
    report.row("seen so far", "something")
    async with asyncio.TaskGroup() as group:
        group.create_task(never())


async def never() -> None:
    raise TimeoutError("a whole cluster did not come")


async def fine(report: Report) -> None:
    report.row("seen", "all")


def test_what_was_seen_before_it_broke_off_is_shown():
    report = Report("a part, seed 7")
    command.run_part(never_whole, report)
    assert report.violations == ["broke off: TimeoutError('a whole cluster did not come')"]
    assert "seen so far" in str(report)


def test_the_next_part_runs_and_the_exit_status_tells(monkeypatch):
    monkeypatch.setattr(command._Parts, "storm", lambda self, report: never_whole(report))
    monkeypatch.setattr(command._Parts, "soak", lambda self, report: fine(report))
    result = CliRunner().invoke(command.main, ["storm", "soak", "--seed", "7"])
    assert result.exit_code == 1
    assert "storm, seed 7" in result.stdout
    assert "broke off: TimeoutError" in result.stdout
    assert "soak, seed 7" in result.stdout
    assert CliRunner().invoke(command.main, ["soak", "--seed", "7"]).exit_code == 0
